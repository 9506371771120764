"""How close the units of a class are to each other: mirrors and duplicates, from Gram matrices on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.activations import known_activation
from gaugefix.monitor.shards import whole
from gaugefix.monitor.watched import WatchedClass
from gaugefix.symmetry.units import Slice

#: entries of a Gram matrix that are made at once, 4 MB in float32
BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class Pairs:
    """How close the units of one class are to each other.

    Attributes:
        participation: (tr K)²/‖K‖² of the Gram matrix K of the incoming rows (of norm 1 if scale is a gauge), the
            number of directions that they fill: 1 if all are parallel, n for n orthogonal rows of one size.
        distinct: live units after merging those with equal incoming rows, as `gaugefix.measure.collapse_report` counts.
        partner: ``(n,)`` nearest live unit of every live unit in all its parameters, −1 if there is none.
        distance: ``(n,)`` relative distance to the mirror of the two, as `Mirror.distance`, in the balanced gauge where
            scale is one; 0 if they are equal, nan without a partner. Below 1e-3 it is rounding.
    """

    participation: float
    distinct: int
    partner: np.ndarray
    distance: np.ndarray


def pairs(
    w: WatchedClass, params: Mapping[str, Tensor], squares: Mapping[str, np.ndarray], live: np.ndarray, tolerance: float
) -> Pairs:
    """Compare all units of a class with each other.

    Args:
        w: the class.
        params: parameters by name.
        squares: ``(n,)`` squared norms of every role that the class has.
        live: ``(n,)`` mask.
        tolerance: distance below which incoming rows are equal.

    Returns:
        The comparison. Cost: two Gram matrices, n² times the entries of a unit; memory: a few times `BLOCK` entries.
    """
    u = w.units
    shape = (u.fibers, u.size)
    first = params[u.slices[0].param]
    device = first.device

    def on_device(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values.reshape(shape), dtype=torch.float32, device=device)

    norm = {role: on_device(np.sqrt(v)) for role, v in squares.items()}
    alive = torch.as_tensor(live.reshape(shape), device=device)
    activation = known_activation(u.activation)
    odd = activation is not None and activation.odd
    unit = {role: 1 / n.clamp_min(1e-30) for role, n in norm.items()}
    feature_roles = ("write",) if "write" in norm else tuple(norm)
    scale_free = u.homogeneous and "write" in norm
    gauge = scale_free and "read" in norm and "gain" not in norm
    size = (norm["write"] * norm["read"]).sqrt() if gauge else None
    total = 2 * size**2 if size is not None else sum((n**2 for n in norm.values()), torch.zeros(shape, device=device))
    own = sum((norm[r] ** 2 for r in feature_roles), torch.zeros(shape, device=device))
    if scale_free:
        own = (own > 0).to(own.dtype)

    zero = torch.zeros((), device=device)
    rows = max(1, BLOCK // max(1, u.fibers * u.size))
    partner, distance, near, square = [], [], [], zero
    for start in range(0, u.size, rows):
        part = slice(start, min(start + rows, u.size))
        gram = {role: _gram(w, role, params, part) for role in norm}
        if scale_free:
            gram["write"] = gram["write"] * unit["write"][:, part, None] * unit["write"][:, None]
        features = sum((gram[r] for r in feature_roles), zero)
        square = square + features.square().sum()
        if gauge and size is not None:
            gram["read"] = gram["read"] * unit["read"][:, part, None] * unit["read"][:, None]
            both = sum(gram.values(), zero) * size[:, part, None] * size[:, None]
        elif scale_free:  # the norms have been taken out of the features only
            both = sum((g for r, g in gram.items() if r != "write"), zero)
            both = both + gram["write"] * norm["write"][:, part, None] * norm["write"][:, None]
        else:
            both = sum(gram.values(), zero)
        allowed = alive[:, part, None] & alive[:, None]
        allowed[:, :, part].diagonal(dim1=1, dim2=2).fill_(False)
        near.append((_distances(features, own, part, odd) < tolerance) & allowed)
        far = _distances(both, total, part, odd).masked_fill(~allowed, torch.inf)
        best = far.min(dim=2)
        distance.append(best.values)
        partner.append(best.indices)
    found = torch.cat(distance, dim=1).double().cpu().numpy()
    which = torch.cat(partner, dim=1).cpu().numpy() + u.size * np.arange(u.fibers)[:, None]
    filled = float(own.double().sum() ** 2 / square.double().clamp_min(1e-300)) if float(square) > 0 else 0.0
    known = np.isfinite(found)
    return Pairs(
        filled,
        _distinct(near, live.reshape(shape), total),
        np.where(known, which, -1).reshape(-1),
        np.where(known, found, np.nan).reshape(-1),
    )


def _distances(gram: Tensor, squares: Tensor, part: slice, odd: bool) -> Tensor:
    """‖a − b‖/√2 relative to √(‖a‖² + ‖b‖²), the smaller over the sign where it is a gauge."""
    both = squares[:, part, None] + squares[:, None]
    inner = gram.abs() if odd else gram
    return ((both - 2 * inner) / (2 * both.clamp_min(1e-30))).clamp_min(0).sqrt()


def _distinct(near: Sequence[Tensor], live: np.ndarray, size: Tensor) -> int:
    """Live units less those within the tolerance of a larger one that is kept."""
    some = torch.cat([n.any(2) for n in near], dim=1).cpu().numpy()
    if not some.any():
        return int(live.sum())
    close = torch.cat([n.cpu() for n in near], dim=1).numpy()
    order = size.cpu().numpy()
    copies = 0
    for fiber in range(len(live)):
        covered = np.zeros(live.shape[1], dtype=bool)
        members = np.flatnonzero(some[fiber])
        for i in members[np.argsort(-order[fiber, members], kind="stable")]:
            if covered[i]:
                copies += 1
            else:
                covered |= close[fiber, i]
    return int(live.sum()) - copies


def _gram(w: WatchedClass, role: str, params: Mapping[str, Tensor], part: slice) -> Tensor:
    """Inner products of some units with all units of their fiber, ``(fibers, part, size)``."""
    total = None
    with _exact_products():
        for s in w.units.slices:
            if s.role == role:
                rows = unit_entries(s, params)
                product = rows[:, part] @ rows.transpose(1, 2)
                total = product if total is None else total + product
    assert total is not None
    return total


def unit_entries(s: Slice, params: Mapping[str, Tensor]) -> Tensor:
    """Entries of a slice; gathered from all processes, not copied where the units are a plain dimension.

    Args:
        s: the slice.
        params: parameters by name.

    Returns:
        ``(fibers, units, entries)``, float32 or float64.
    """
    tensor = whole(params[s.param].detach())
    if not s.others and s.index.shape[2] == 1 and s.index.shape[0] == 1 and s.index.shape[1] == tensor.shape[s.dim]:
        moved = tensor.movedim(s.dim, 0)
        order = s.index.reshape(-1)
        if (order == np.arange(len(order))).all():
            return _wide(moved.reshape(1, len(order), -1))
    return _wide(s.take(tensor).reshape(*s.index.shape[:2], -1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products in full float32: TF32 would blur distances below 0.03."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
