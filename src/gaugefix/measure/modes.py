"""Classes between two linear maps: only the product M = AᵀB counts, and its singular modes are what lives and dies.

With weight decay on both factors the penalty on M is the nuclear norm, λ‖M‖_* (arXiv 2309.16932, rotation symmetry;
arXiv 2210.01212). At a stationary point σ_i(G) = λ on the live modes of G = −∂L/∂M and σ_i(G) ≤ λ on the others, so
the rank of M is the number of σ_i(G) at λ.
"""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.ghost_blocks import GhostBlock, dense_block
from gaugefix.measure.ghost_model import GhostModel
from gaugefix.measure.records import Record
from gaugefix.measure.sizes import DEFAULT_TOLERANCE
from gaugefix.symmetry import Slice, Symmetries, Units
from gaugefix.symmetry.groups import Rotation
from gaugefix.task import Task

#: a tenth of the size of a freshly initialised mode: a class of smaller ones is dead, not merely small
_REFERENCE = 0.05
Sides = tuple[tuple[Slice, ...], tuple[Slice, ...]]


@dataclass(frozen=True, eq=False)
class ProductModes(Record):
    """The singular modes of the product of every fiber of a linear class (r = size of the class).

    Attributes:
        values: ``(fibers, r)`` singular values of M, descending.
        drives: ``(fibers, r)`` p_iᵀ G q_i of every live mode, λ at a stationary point; nan for dead ones.
        live: ``(fibers, r)`` modes of size √σ at least ``tolerance`` of the largest one of the class
            (or of 0.05, a tenth of a fresh one).
    """

    values: np.ndarray
    drives: np.ndarray
    live: np.ndarray

    @property
    def rank(self) -> int:
        """Number of live modes, all fibers together."""
        return int(self.live.sum())


def two_sides(units: Units, symmetries: Symmetries | Sequence[Units]) -> Sides | None:
    """The slices of the two factors of a class between linear maps.

    Args:
        units: the class.
        symmetries: the search result it comes from, which knows the two sides of queries and keys.

    Returns:
        Covariant and contravariant slices, or None if the class is not linear or its sides are not known.
    """
    if units.outgoing and units.incoming and not units.gains:
        linear = "linear" in units.flags or units.activation == "identity"
        return (units.incoming, units.outgoing) if linear else None
    for s in symmetries if isinstance(symmetries, Symmetries) else ():
        if isinstance(s, Rotation) and s.units is not None and s.units.name == units.name and not s.orthogonal:
            pairs = list(zip(s.units.slices, s.polarity, strict=True))
            sides: Sides = (tuple(x for x, p in pairs if p > 0), tuple(x for x, p in pairs if p < 0))
            if len(pairs) == len(units.slices) and sides[0] and sides[1]:
                return sides
    return None


def product_modes(
    params: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    units: Units,
    sides: Sides,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ProductModes:
    """Singular modes of a linear class with the pull on each.

    Args:
        params: parameters by name.
        gradients: of the mean data loss, without weight decay.
        units: the class.
        sides: from `two_sides`.
        tolerance: size of a dead mode relative to the largest.

    Returns:
        The modes. Cost: a few decompositions of ``(size, size)`` matrices for every fiber.
    """
    a, b = (_factor(params, units, side) for side in sides)
    slope = _factor(gradients, units, sides[0])  # −B Gᵀ
    values, drives = [], []
    for fa, fb, fs in zip(a, b, slope, strict=True):
        p, s, q = _modes(fa, fb)
        values.append(s)
        # q = Bᵀc, so that G q = −(∂L/∂A)ᵀ c
        c = np.linalg.pinv(fb.T, rcond=1e-10) @ q
        drives.append(np.einsum("di,di->i", p, -fs.T @ c))
    padding = [(0, 0), (0, units.size - len(values[0]))]
    spectrum = np.pad(np.stack(values), padding)
    sizes = np.sqrt(spectrum)
    live = sizes >= tolerance * max(float(sizes.max(initial=0.0)), _REFERENCE)
    return ProductModes(spectrum, np.where(live, np.pad(np.stack(drives), padding), np.nan), live)


def dead_mode_block(
    copy: Task, units: Units, sides: Sides, *, max_samples: int = 4096, seed: int = 0
) -> GhostBlock | None:
    """Ghosts in the place of dead modes, for a model that cannot be widened.

    The class is turned into the gauge in which its modes are its units; a dead mode is then a unit of zero size, and
    its block of the Hessian is that of a ghost.

    Args:
        copy: from `exact_copy`; it is not changed.
        units: the class.
        sides: from `two_sides`.
        max_samples: stop after the batch that reaches this number.
        seed: of the check.

    Returns:
        The block of the fibers with a dead mode, nan modes for the others; None if no mode is dead.
    """
    model = copying.deepcopy(copy.model)
    params = dict(model.named_parameters())
    a, b = (_factor(params, units, side) for side in sides)
    turned: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    values = []
    for fa, fb in zip(a, b, strict=True):
        p, s, q = _modes(fa, fb)
        values.append(s)
        for out, vectors in zip(turned, (p, q), strict=True):
            out.append(_padded((vectors * np.sqrt(s)).T, units.size))
    sizes = np.sqrt(np.stack(values))
    full = sizes.shape[1] == units.size
    dead = (
        sizes[:, -1] < DEFAULT_TOLERANCE * max(float(sizes.max()), _REFERENCE) if full else np.ones(units.fibers, bool)
    )
    if not dead.any():
        return None
    for rows, side in zip(turned, sides, strict=True):
        block = np.stack(rows)
        block[dead, -1] = 0.0
        _store(params, units, side, block)
    ghosts = [s.only(int(f), [units.size - 1]) for f in np.flatnonzero(dead) for s in (*sides[0], *sides[1])]
    merged = _stack(ghosts, int(dead.sum()))
    one = GhostModel(dataclasses.replace(copy, model=model), model, merged, max_samples=max_samples)
    found = dense_block(one, one, seed, "dead modes")
    spectra = np.full((units.fibers, found.spectra.shape[1]), np.nan)
    spectra[dead] = found.spectra
    return dataclasses.replace(found, spectra=spectra)


def _stack(ghosts: list[Slice], fibers: int) -> list[Slice]:
    """One slice with all fibers for each slice of the class."""
    count = len(ghosts) // fibers
    out = []
    for i in range(count):
        parts = [ghosts[f * count + i] for f in range(fibers)]
        others = {d: np.concatenate([p.others[d] for p in parts]) for d in parts[0].others}
        out.append(Slice(parts[0].param, parts[0].dim, np.concatenate([p.index for p in parts]), parts[0].role, others))
    return out


def _factor(params: Mapping[str, Tensor], units: Units, side: Sequence[Slice]) -> np.ndarray:
    """``(fibers, size, entries)`` of one side, in float64."""
    parts = [s.take(params[s.param].detach()).reshape(units.fibers, units.size, -1) for s in side]
    stacked: np.ndarray = torch.cat(parts, dim=2).double().cpu().numpy()
    return stacked


def _store(params: Mapping[str, Tensor], units: Units, side: Sequence[Slice], rows: np.ndarray) -> None:
    start = 0
    for s in side:
        p = params[s.param].detach()
        shape = s.take(p).shape
        width = int(np.prod(shape[2:]))
        part = torch.as_tensor(rows[:, :, start : start + width].copy(), dtype=p.dtype, device=p.device)
        p.copy_(s.put(p, part.reshape(shape)))
        start += width


def _modes(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition of aᵀb without forming it: columns p, values, columns q."""
    qa, ra = np.linalg.qr(a.T)
    qb, rb = np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(ra @ rb.T, full_matrices=False)
    return qa @ u, s, qb @ vt.T


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of zeros below, if a side is narrower than the class."""
    return np.vstack([rows, np.zeros((size - len(rows), rows.shape[1]))])
