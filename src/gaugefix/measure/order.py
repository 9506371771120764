"""Order parameters: which symmetries of the architecture the weights themselves have, and how far they are from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.activations import known_activation
from gaugefix.measure.classes import rescaling_fails, units_of
from gaugefix.measure.collapse import collapse_report
from gaugefix.measure.records import Record
from gaugefix.measure.sizes import live_units, unit_rows
from gaugefix.symmetry import Mirror, Symmetries, Symmetry, Units

_BROKEN = 0.05


@dataclass(frozen=True, eq=False)
class DistinctUnits(Record):
    """Units of a class that are different from each other, incoming and outgoing weights together.

    Attributes:
        name: of the class.
        distinct: number of clusters of live units.
        live: number of live units.
        clusters: units of every cluster, the largest first.
        distances: ``(fibers, size, size)`` relative distances m = ‖a ∓ b‖/(‖a‖ + ‖b‖) in the gauge of the activation;
            0 for the same, at most 1.
        tolerance: relative distance below which units are linked.
    """

    name: str
    distinct: int
    live: int
    clusters: tuple[tuple[int, ...], ...]
    distances: Float[np.ndarray, "fibers size size"] = field(repr=False)
    tolerance: float


@dataclass(frozen=True, eq=False)
class OrderParameters(Record):
    """How symmetric the weights of one class are (arXiv 2502.05300).

    Attributes:
        name: of the class.
        kind: of the class.
        swap: smallest relative distance m of two live units; 0 where a permutation is restored; nan without a pair.
        sign: smallest relative size of a unit; 0 where a unit's own mirror (sign, or dropping it) is restored.
        distinct: clusters of live units at ``threshold``.
        dead: units of zero size.
        rank: numerical rank of the class.
        max_rank: what the shapes allow.
        stabiliser: permutations that leave the weights as they are, "S_3 × S_2"; "1" if all is broken.
        broken: whether no symmetry of the class is left at the threshold.
        threshold: relative distance below which a symmetry counts as restored.
    """

    name: str
    kind: str
    swap: float
    sign: float
    distinct: int
    dead: int
    rank: int
    max_rank: int
    stabiliser: str
    broken: bool
    threshold: float


def distinct_units(
    params: Mapping[str, Tensor], symmetries: Symmetries | Sequence[Units], *, tolerance: float = _BROKEN
) -> tuple[DistinctUnits, ...]:
    """Count the different units of every class after the gauge is taken out.

    Units are compared with all their weights. Where rescaling is a symmetry a unit is first brought to equal norms of
    its two sides, and where the activation is odd the sign that fits better is taken. Clusters are those of single
    linkage: a chain of near units is one.

    Args:
        params: parameters by name.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        tolerance: relative distance below which two units are linked.

    Returns:
        One entry per class. Dead units are in no cluster. Cost: one Gram matrix per fiber.

    Raises:
        MeasurementError: if the tolerance is not in (0, 1).

    Example:
        >>> import torch
        >>> from gaugefix.symmetry import Slice
        >>> index = np.arange(3).reshape(1, 3, 1)
        >>> hidden = Units("0", 3, 1, (Slice("w", 0, index, "write"), Slice("u", 1, index, "read")), "relu")
        >>> w = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> u = torch.tensor([[2.0, 1.0, 1.0]])
        >>> distinct_units({"w": w, "u": u}, [hidden])[0].clusters
        ((0, 1), (2,))
    """
    if not 0 < tolerance < 1:
        raise MeasurementError(f"distinct_units: tolerance must be in (0, 1), got {tolerance!r}.")
    return tuple(_distinct(params, u, symmetries, tolerance) for u in units_of(symmetries) if u.slices)


def order_parameters(
    params: Mapping[str, Tensor], symmetries: Symmetries | Sequence[Units], *, threshold: float = _BROKEN
) -> tuple[OrderParameters, ...]:
    """Order parameters of every class: 0 where the weights have a symmetry, towards 1 where they break it.

    Args:
        params: parameters by name.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        threshold: relative distance below which a symmetry counts as restored.

    Returns:
        One entry per class; none if there are no classes.
    """
    collapse = {c.name: c for c in collapse_report(params, symmetries).units}
    found = []
    for d in distinct_units(params, symmetries, tolerance=threshold):
        c = collapse[d.name]
        pairs = d.distances[:, *np.triu_indices(d.distances.shape[1], 1)]
        swap = float(np.nanmin(pairs)) if np.isfinite(pairs).any() else math.nan
        largest = float(c.norms.max(initial=0.0))
        sign = float(c.norms.min() / largest) if largest > 0 else 0.0
        blocks = sorted((len(x) for x in d.clusters if len(x) > 1), reverse=True)
        blocks += [len(c.dead)] if len(c.dead) > 1 else []
        stabiliser = " × ".join(f"S_{b}" for b in sorted(blocks, reverse=True)) or "1"
        symmetric = bool(blocks) or bool(c.dead) or c.numerical_rank < min(c.max_rank, c.distinct)
        found.append(
            OrderParameters(
                d.name, c.kind, swap, sign, d.distinct, len(c.dead), c.numerical_rank, c.max_rank, stabiliser,
                not symmetric, threshold,
            )
        )  # fmt: skip
    return tuple(found)


def mirror_distances(
    params: Mapping[str, Tensor], symmetry: Symmetry, *, limit: int = 10_000
) -> tuple[tuple[Mirror, ...], Float[np.ndarray, " m"]]:
    """Relative distance ‖Oᵀθ‖/‖θ‖ of the weights to every mirror plane of a symmetry, nearest first.

    Args:
        params: parameters by name.
        symmetry: any symmetry; one without reflections has no mirror.
        limit: stop after this many mirrors; S_n has n(n − 1)/2.

    Returns:
        Mirrors and distances. Cost: a pass over the class per mirror.
    """
    mirrors = [m for _, m in zip(range(limit), symmetry.mirrors(), strict=False)]
    distances = np.array([m.distance(params) for m in mirrors])
    order = np.argsort(distances, kind="stable")
    return tuple(mirrors[i] for i in order), distances[order]


def _distinct(
    params: Mapping[str, Tensor], units: Units, symmetries: Symmetries | Sequence[Units], tolerance: float
) -> DistinctUnits:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    rows, live = _gauged(params, units, symmetries), live_units(params, units)
    activation = known_activation(units.activation)
    signed = activation is not None and activation.odd
    all_distances = np.full((units.fibers, units.size, units.size), np.nan)
    clusters: list[tuple[int, ...]] = []
    for f in range(units.fibers):
        members = np.flatnonzero(live[f * units.size : (f + 1) * units.size])
        own = rows[f * units.size + members]
        distances = _pairwise(own, signed)
        all_distances[f][np.ix_(members, members)] = distances
        labels: np.ndarray = np.arange(1, len(members) + 1)
        if len(members) > 1:
            labels = fcluster(linkage(squareform(distances, checks=False), "single"), tolerance, "distance")
        clusters += [tuple(int(i) for i in f * units.size + members[labels == k]) for k in Counter(labels.tolist())]
    clusters.sort(key=lambda c: (-len(c), c))
    return DistinctUnits(units.name, len(clusters), int(live.sum()), tuple(clusters), all_distances, tolerance)


def _gauged(params: Mapping[str, Tensor], units: Units, symmetries: Symmetries | Sequence[Units]) -> np.ndarray:
    """All weights of every unit, its two sides of equal norm where rescaling is a symmetry."""
    if rescaling_fails(units, symmetries) or units.kind == "head":
        return unit_rows(params, units, None)
    incoming, outgoing = (unit_rows(params, units, role) for role in ("write", "read"))
    a, b = (np.linalg.norm(m, axis=1, keepdims=True) for m in (incoming, outgoing))
    both = (a > 0) & (b > 0)
    ratio = np.sqrt(np.where(both, b, 1.0) / np.where(both, a, 1.0))
    return np.hstack([incoming * ratio, outgoing / ratio])


def _pairwise(rows: np.ndarray, signed: bool) -> np.ndarray:
    """‖a ∓ b‖/(‖a‖ + ‖b‖), exactly zero on the diagonal."""
    norms = np.linalg.norm(rows, axis=1)
    gram = rows @ rows.T
    gram = np.abs(gram) if signed else gram
    squares = np.clip(norms[:, None] ** 2 + norms**2 - 2 * gram, 0, None)
    total = norms[:, None] + norms
    out = np.sqrt(squares) / np.where(total > 0, total, 1.0)
    np.fill_diagonal(out, 0.0)
    return np.asarray((out + out.T) / 2)
