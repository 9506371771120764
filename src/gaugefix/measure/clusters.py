"""Which units of a class are one and the same up to the gauge of their activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gaugefix.measure.activations import known_activation
from gaugefix.measure.sizes import unit_length, unit_rows
from gaugefix.symmetry import Units


@dataclass(frozen=True, eq=False)
class Clusters:
    """Live units by what they compute.

    Attributes:
        clusters: every live unit in one, in ascending order.
        sign_tied: pairs (unit, leader of its cluster) of opposite sign, where the sign is a gauge of an activation
            that is not linear.
        nearest_pair: the closest two of different clusters, if there are two.
        nearest_distance: their relative distance; nan if there is no pair.
    """

    clusters: tuple[tuple[int, ...], ...]
    sign_tied: tuple[tuple[int, int], ...]
    nearest_pair: tuple[int, int] | None
    nearest_distance: float

    def per_fiber(self, units: Units) -> list[int]:
        """Number of clusters in every fiber.

        Args:
            units: the class.

        Returns:
            One count per fiber.
        """
        counts: list[int] = np.bincount([c[0] // units.size for c in self.clusters], minlength=units.fibers).tolist()
        return counts


def find_clusters(
    params: Mapping[str, Tensor], units: Units, live: np.ndarray, sizes: np.ndarray, tol: float, *, linear: bool = False
) -> Clusters:
    """Group the live units of every fiber around the largest of each group.

    Args:
        params: parameters by name.
        units: the class.
        live: ``(n,)`` mask.
        sizes: ``(n,)`` sizes; larger units lead.
        tol: relative distance below which two units are one.
        linear: whether the class has a general linear group: then agreement is a matter of basis and no two are one.

    Returns:
        The clusters.
    """
    activation = known_activation(units.activation)
    signed = activation is not None and activation.odd
    features = _features(params, units)
    clusters: list[tuple[int, ...]] = []
    tied: list[tuple[int, int]] = []
    nearest: tuple[float, tuple[int, int] | None] = (math.inf, None)
    for fiber in range(units.fibers):
        members = np.arange(fiber * units.size, (fiber + 1) * units.size)
        members = members[live[members]]
        members = members[np.argsort(-sizes[members], kind="stable")]
        leaders: list[int] = []
        groups: list[list[int]] = []
        for i in members.tolist():
            distances, negative = _distances(features[leaders], features[i], signed)
            k = int(distances.argmin()) if leaders else -1
            if leaders and distances[k] < tol and not linear:
                groups[k].append(i)
                tied += [(i, leaders[k])] if negative[k] and units.activation != "identity" else []
                continue
            if leaders and distances[k] < nearest[0]:
                nearest = (float(distances[k]), (leaders[k], i))
            leaders.append(i)
            groups.append([i])
        clusters += [tuple(sorted(g)) for g in groups]
    pair = None if nearest[1] is None else (min(nearest[1]), max(nearest[1]))
    return Clusters(tuple(clusters), tuple(tied), pair, nearest[0] if pair else math.nan)


def _features(params: Mapping[str, Tensor], units: Units) -> np.ndarray:
    """What a unit computes: its incoming slice, of norm 1 if scale is a gauge; a head has no such gauge."""
    rows = unit_rows(params, units, "write" if units.incoming else None)
    if units.homogeneous and units.incoming and units.kind != "head":
        return unit_length(rows)
    return rows


def _distances(others: np.ndarray, row: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """‖a − b‖/√2 relative to √(‖a‖² + ‖b‖²), the smaller over the sign where it is a gauge, and whether it was −."""
    total = np.sqrt((others**2).sum(1) + (row**2).sum())
    gap = np.linalg.norm(others - row, axis=1)
    negative = np.zeros(len(others), dtype=bool)
    if signed:
        other = np.linalg.norm(others + row, axis=1)
        negative = other < gap
        gap = np.minimum(gap, other)
    return np.asarray(gap / (math.sqrt(2) * np.where(total > 0, total, 1.0))), negative
