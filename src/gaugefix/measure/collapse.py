"""Collapse: which units are dead, which are copies of each other, which layers have lost rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import units_of
from gaugefix.measure.clusters import find_clusters
from gaugefix.measure.modes import Sides, two_sides
from gaugefix.measure.records import Record
from gaugefix.measure.sizes import DEFAULT_TOLERANCE, live_units, unit_rows, unit_sizes
from gaugefix.measure.spectra import class_rank, effective_rank
from gaugefix.symmetry import Symmetries, Units


@dataclass(frozen=True, eq=False)
class UnitCollapse(Record):
    """How far one class of units has collapsed (n = fibers * size rows, in the order of `Units.rows`).

    Attributes:
        name: of the class.
        size: units per fiber.
        fibers: independent copies of the class.
        activation: of the class.
        kind: of the class.
        norms: ``(n,)`` size of every unit, √(‖incoming‖‖outgoing‖): it does not change under rescaling.
        dead: units whose size is below ``tolerance`` of the class's typical size.
        duplicates: clusters of two or more live units with the same incoming slice, up to scale and sign where
            the activation allows; the largest first.
        distinct: live units after merging duplicates.
        inactive: live units that are never switched on by the inputs (ReLU only; empty without inputs).
        effective_rank: exp(entropy of the normalised spectrum).
        numerical_rank: number of singular values that are not zero, given the dtype and the gaps.
        max_rank: what the shapes allow.
        spectrum: ``(max_rank,)`` singular values, descending.
        nearest_pair: the two distinct live units closest to becoming one, if there are two.
        nearest_distance: relative distance of that pair to its mirror, as `Mirror.distance`; nan if no pair.
        tolerance: relative size below which a unit is dead and a distance is zero.
        verdict: "healthy", "collapsed" (every unit dead), or any of "dead units", "duplicate units", "low rank"
            joined by ", ".
        sign_tied: those duplicates that are negatives of each other, as pairs (odd activations that are not linear).
            Flipping the sign of one unit makes them plain duplicates, so that they are no verdict of their own.
    """

    name: str
    size: int
    fibers: int
    activation: str
    kind: str
    norms: np.ndarray
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    distinct: int
    inactive: tuple[int, ...]
    effective_rank: float
    numerical_rank: int
    max_rank: int
    spectrum: np.ndarray
    nearest_pair: tuple[int, int] | None
    nearest_distance: float
    tolerance: float
    verdict: str
    sign_tied: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class CollapseReport(Record):
    """Collapse of every class of a model.

    Attributes:
        units: one entry per class.
        n_dead: dead units over all classes.
        n_duplicate: units that could be merged away: live units minus distinct ones.
        n_units: units over all classes.
    """

    units: tuple[UnitCollapse, ...]
    n_dead: int
    n_duplicate: int
    n_units: int


def collapse_report(
    params: Mapping[str, Tensor],
    units: Symmetries | Sequence[Units],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
) -> CollapseReport:
    """Find dead units, duplicate units and lost rank, and tell them apart.

    *Dead*: size √(‖w‖‖u‖) below ``tolerance`` of the class's reference size, so that its product is below
    ``tolerance²``. A unit on its way out shrinks exponentially and never reaches zero, so a threshold is needed; two
    decades below the largest unit separate what trains from what decays, and a class in which every unit is that
    small has collapsed. The reference is the largest unit, or a tenth of a freshly initialised one if that is larger.

    *Duplicate*: live units with one incoming slice, up to a positive factor if the activation is homogeneous and up
    to sign if it is odd (*sign-tied*). They compute one feature and merge exactly, whatever their outgoing weights.
    A class with a general linear group has none: whether two of its units agree is a matter of basis, its rank is not.

    *Low rank*: the incoming matrix of the live, distinct units (each row of norm 1 if the activation is homogeneous,
    so that an unbalanced layer is not mistaken for a thin one) has fewer nonzero singular values than its shape
    allows; for a class between linear maps (queries and keys of a head, values and outputs, adapters) it is the
    product of its two sides, fiber by fiber, which no change of basis alters.
    Singular values count as zero below ``σ₁ max(shape) eps(dtype)``, or behind a gap of a factor 10 whose lower edge
    is below ``σ₁ tolerance / (10 max(shape))``, far under the smallest singular value of a random square matrix.

    Args:
        params: parameters by name, such as ``dict(model.named_parameters())``.
        units: what `find_symmetries` gave, or the classes themselves.
        inputs: the input of classes by name, ``(samples, d)``, from `class_inputs`; then ReLU units that are never
            switched on are listed as inactive.
        tolerance: relative size below which a unit is dead and two units are equal; default 0.01.

    Returns:
        The report. Cost: one SVD and one Gram matrix per class.

    Raises:
        MeasurementError: if the tolerance is not in (0, 1).

    Example:
        >>> import torch
        >>> from gaugefix.symmetry import Slice, Units
        >>> index = np.arange(3).reshape(1, 3, 1)
        >>> hidden = Units("0", 3, 1, (Slice("w", 0, index, "write"), Slice("u", 1, index, "read")), "relu")
        >>> w = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
        >>> found = collapse_report({"w": w, "u": torch.ones(4, 3)}, [hidden]).units[0]
        >>> found.verdict, found.dead, found.duplicates
        ('dead units, duplicate units', (2,), ((0, 1),))
    """
    tol = DEFAULT_TOLERANCE if tolerance is None else tolerance
    if not 0 < tol < 1:
        raise MeasurementError(f"collapse_report: tolerance must be in (0, 1), got {tol!r}; the default is 0.01.")
    classes = [
        _collapse(params, u, rank_sides(u, units), (inputs or {}).get(u.name), tol) for u in units_of(units) if u.slices
    ]
    return CollapseReport(
        tuple(classes),
        n_dead=sum(len(c.dead) for c in classes),
        n_duplicate=sum(len(c.norms) - len(c.dead) - c.distinct for c in classes),
        n_units=sum(len(c.norms) for c in classes),
    )


def rank_sides(units: Units, symmetries: Symmetries | Sequence[Units]) -> Sides | None:
    """The two sides of a class whose rank is that of their product: between linear maps, and not a class of heads.

    Args:
        units: the class.
        symmetries: the search result it comes from, which knows the two sides of queries and keys.

    Returns:
        Slices of the two sides, or None.
    """
    return two_sides(units, symmetries) if not units.flags or "linear" in units.flags else None


def _collapse(
    params: Mapping[str, Tensor], units: Units, sides: Sides | None, inputs: Tensor | None, tol: float
) -> UnitCollapse:
    sizes, live = unit_sizes(params, units), live_units(params, units, tol)
    found = find_clusters(params, units, live, sizes, tol, linear="linear" in units.flags)
    rank = class_rank(params, units, live, found.per_fiber(units), sides, tol)
    spectrum = rank.spectrum
    duplicates = tuple(tuple(c) for c in sorted(found.clusters, key=len, reverse=True) if len(c) > 1)
    findings = {
        "dead units": not live.all(),
        "duplicate units": bool(duplicates),
        "low rank": rank.rank < rank.expected,
    }
    verdict = ", ".join(k for k, found_it in findings.items() if found_it) or "healthy"
    return UnitCollapse(
        name=units.name,
        size=units.size,
        fibers=units.fibers,
        activation=units.activation,
        kind=units.kind,
        norms=sizes,
        dead=tuple(int(i) for i in np.flatnonzero(~live)),
        duplicates=duplicates,
        distinct=len(found.clusters),
        inactive=_inactive(params, units, inputs, live),
        effective_rank=effective_rank(spectrum),
        numerical_rank=rank.rank,
        max_rank=rank.max_rank,
        spectrum=spectrum,
        nearest_pair=found.nearest_pair,
        nearest_distance=found.nearest_distance,
        tolerance=tol,
        verdict=verdict if live.any() else "collapsed",
        sign_tied=tuple(sorted((min(a, b), max(a, b)) for b, a in found.sign_tied)),
    )


def _inactive(params: Mapping[str, Tensor], units: Units, inputs: Tensor | None, live: np.ndarray) -> tuple[int, ...]:
    """Live ReLU units whose pre-activation is never positive on the data."""
    if inputs is None or units.activation != "relu" or not units.incoming:
        return ()
    rows = unit_rows(params, units, "write")
    h = inputs.detach().double().cpu().numpy().reshape(-1, inputs.shape[-1])
    if rows.shape[1] == h.shape[1] + 1:
        h = np.hstack([h, np.ones((len(h), 1))])
    if rows.shape[1] != h.shape[1]:
        return ()
    return tuple(int(i) for i in np.flatnonzero(live & ~(h @ rows.T > 0).any(0)))
