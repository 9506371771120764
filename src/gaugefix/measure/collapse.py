"""Collapse: which units are dead, which are copies of each other, which layers have lost rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gaugefix.measure.records import Record
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
    """(being built)."""
    raise NotImplementedError
