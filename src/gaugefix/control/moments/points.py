"""Few of many points, with positive weights that keep every moment up to a degree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from gaugefix.control.moments.recombine import chebyshev, chebyshev_on, recombine
from gaugefix.errors import ControlError, ValidityWarning
from gaugefix.measure import Record
from gaugefix.theory.moment_matching import n_atoms

Points = Float[np.ndarray, "d m"] | Float[torch.Tensor, "d m"]
_BLOCK = 4096  # rows whose features are held at once
_ENTRIES = 2_000_000  # of the matrices of boxes that are worked on together


@dataclass(frozen=True, eq=False)
class CompressedPoints(Record):
    """Which points are kept, and how much each counts; unpacks as ``indices, weights``.

    Attributes:
        indices: of the kept points, rising.
        weights: ≥ 0; their sum is that of all points.
        degree: of the moments that are kept.
        error: `moment_error` of the choice: the largest change of a moment, relative to the total weight.
    """

    indices: Int[np.ndarray, " kept"]
    weights: Float[np.ndarray, " kept"]
    degree: int
    error: float

    def __iter__(self) -> Iterator[np.ndarray]:
        """The two arrays."""
        return iter((self.indices, self.weights))

    def __len__(self) -> int:
        """Number of kept points."""
        return len(self.indices)


def compress_points(
    X: Points, k: int = 3, target: float | None = None, weights: Float[np.ndarray, " d"] | None = None
) -> CompressedPoints:
    """Keep few of many points with positive weights such that every moment of degree ≤ k stays.

    For every polynomial p of degree ≤ k, Σ_j c_j p(x_j) over the kept points equals Σ_i w_i p(x_i) over all of them, to
    rounding. A function of the points that sees them through such moments alone does not change; a smooth symmetric
    function changes by as much as it differs from a polynomial within clusters of neighbours: the points are cut into
    boxes of at most 2 C(m + k, k), the smallest first, and each loses what its moments do not need.

    Boxes follow the scale of the columns: standardise columns in different units. The result does not depend on the
    order of the points, and stays under a shift and a common scaling.

    Args:
        X: points ``(d, m)``.
        k: degree of the moments, ≥ 0.
        target: how many points to keep, a fraction of d if it is a float below 1. None keeps as few as the moments
            need, at most C(m + k, k).
        weights: of the points, ≥ 0, by default 1.

    Returns:
        The kept points; never more than the target, and fewer only if equal points or a degenerate cloud allow it.

    Raises:
        ControlError: if X is not a finite matrix, or a number or a weight is out of range.

    Warns:
        ValidityWarning: if the target is below C(m + k, k) and is raised to it, or that is no smaller than d, so that
            only equal points are merged.

    Cost: O(d C(m + k, k)²), in float64.

    Source: arXiv 2510.00504, universal compression.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(2000, 3))
        >>> indices, weights = compress_points(x, k=2)
        >>> len(indices), float(weights.sum().round(6)), bool(np.allclose(weights @ x[indices], x.sum(0)))
        (10, 2000.0, True)
    """
    x = as_matrix(X)
    if not isinstance(k, int) or k < 0:
        raise ControlError(f"k must be an integer >= 0, got {k!r}.")
    start = _weights(weights, len(x))
    goal = _target(target, len(x))
    need = n_atoms(x.shape[1], k)
    if need >= len(x):
        warnings.warn(
            f"The moments of degree <= {k} in {x.shape[1]} dimensions are {need}, no fewer than the {len(x)} points; "
            "nothing but equal points can go. Lower k, or reduce the dimension first.",
            ValidityWarning,
            stacklevel=2,
        )
    elif goal is not None and goal < need:
        warnings.warn(
            f"target = {goal} is below the {need} moments of degree <= {k} in {x.shape[1]} dimensions; it is raised "
            f"to {need}.",
            ValidityWarning,
            stacklevel=2,
        )
    used = np.flatnonzero(start > 0)
    points, first, which = np.unique(x[used], axis=0, return_index=True, return_inverse=True)
    merged = np.bincount(which.ravel(), weights=start[used], minlength=len(points))
    kept = _thin_out(points, merged, k, need, goal)
    alive = np.flatnonzero(kept > 0)
    order = np.argsort(used[first[alive]])
    indices, left = used[first[alive]][order], kept[alive][order]
    return CompressedPoints(indices, left, k, moment_error(x, indices, left, k, weights=start))


def moment_error(
    X: Points,
    indices: Int[np.ndarray, " kept"],
    weights_kept: Float[np.ndarray, " kept"],
    k: int,
    *,
    weights: Float[np.ndarray, " d"] | None = None,
) -> float:
    """Largest change of a moment of degree ≤ k, relative to the total weight.

    Moments are means of products of Chebyshev polynomials on the bounding box of the points, all of size ≤ 1 and with
    the span of the monomials.

    Args:
        X: all points ``(d, m)``.
        indices: of the kept points.
        weights_kept: of the kept points.
        k: degree.
        weights: of all points, by default 1.

    Returns:
        A number ≥ 0; about 1e-15 where the moments are kept.

    Raises:
        ControlError: if X is not a finite matrix, or weights or indices do not fit.

    Example:
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> moment_error(x, np.array([0, 2]), np.array([1.5, 1.5]), k=1)  # the mean stays
        0.0
        >>> round(moment_error(x, np.array([0, 2]), np.array([1.5, 1.5]), k=2), 3)  # the second moment does not
        0.667
    """
    x, total = as_matrix(X), _weights(weights, len(X))
    at, left = np.asarray(indices), np.asarray(weights_kept, dtype=float)
    if at.shape != left.shape or at.ndim != 1 or (len(at) and not 0 <= at.min() <= at.max() < len(x)):
        raise ControlError(f"indices must be positions below {len(x)}, one for each of the {len(left)} weights.")
    box = x.min(0), x.max(0)
    change = _moments(x[at], left, k, *box) - _moments(x, total, k, *box)
    return float(np.abs(change).max() / total.sum())


def _moments(x: np.ndarray, weights: np.ndarray, k: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    blocks = range(0, max(len(x), 1), _BLOCK)
    return np.asarray(sum(weights[i : i + _BLOCK] @ chebyshev_on(x[i : i + _BLOCK], k, low, high) for i in blocks))


def _thin_out(x: np.ndarray, weights: np.ndarray, k: int, need: int, target: int | None) -> np.ndarray:
    """Weights, at most ``target`` of them positive (None: as few as it takes); rounds of boxes, small ones first."""
    weights = weights.copy()
    goal = max(target or 0, need)
    while (room := int((weights > 0).sum()) - goal) > 0:
        leaves = [rows for rows in _leaves(x, np.flatnonzero(weights > 0), 2 * need) if len(rows) > need]
        leaves.sort(key=lambda rows: _diagonal(x[rows]))
        gone = np.cumsum([len(rows) - need for rows in leaves])
        whole = int((gone <= room).sum())
        for rows in _stacks(leaves[:whole]):
            weights[rows] = recombine(chebyshev(x[rows], k), weights[rows], rows.shape[1] - need)
        over = room - int(gone[whole - 1]) if whole else room
        if whole < len(leaves) and over:  # of the last one, what is close together
            centre = (x[leaves[whole]].min(0) + x[leaves[whole]].max(0)) / 2
            near = np.argsort(((x[leaves[whole]] - centre) ** 2).sum(1), kind="stable")
            rows = leaves[whole][near[: need + over]]
            weights[rows] = recombine(chebyshev(x[rows], k), weights[rows], over)
    if target is None and need < len(x):
        rows = np.flatnonzero(weights > 0)
        weights[rows] = recombine(chebyshev(x[rows], k), weights[rows])
    return weights


def _stacks(leaves: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Boxes with equally many points together, as far as memory goes."""
    by_size: dict[int, list[np.ndarray]] = {}
    for rows in leaves:
        by_size.setdefault(len(rows), []).append(rows)
    for size, group in by_size.items():
        most = max(_ENTRIES // size**2, 1)
        yield from (np.stack(group[i : i + most]) for i in range(0, len(group), most))


def _leaves(x: np.ndarray, rows: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut at the median of the widest coordinate until no box has more than ``most`` points."""
    if len(rows) <= most:
        yield rows
        return
    widest = int(np.ptp(x[rows], axis=0).argmax())
    order = rows[np.argsort(x[rows, widest], kind="stable")]
    for half in (order[: len(order) // 2], order[len(order) // 2 :]):
        yield from _leaves(x, half, most)


def _diagonal(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.ptp(x, axis=0)))


def as_matrix(X: Points) -> Float[np.ndarray, "d m"]:
    """A finite matrix in float64.

    Args:
        X: array or tensor.

    Returns:
        The array.

    Raises:
        ControlError: if it is no matrix, empty, or not finite.
    """
    x = X.detach().cpu().double().numpy() if isinstance(X, torch.Tensor) else np.asarray(X, dtype=float)
    if x.ndim != 2 or not x.size:
        raise ControlError(f"X must be a matrix (points, coordinates) with at least one entry, got shape {x.shape}.")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ControlError(f"X[{row}, {column}] is {x[row, column]}; every coordinate must be finite.")
    return x


def _weights(weights: np.ndarray | None, d: int) -> np.ndarray:
    if weights is None:
        return np.ones(d)
    out = np.asarray(weights, dtype=float)
    if out.shape != (d,):
        raise ControlError(f"weights must be one number for each of the {d} points, got shape {out.shape}.")
    if not np.isfinite(out).all() or out.min() < 0 or out.sum() == 0:
        bad = out[~np.isfinite(out) | (out < 0)]
        raise ControlError(f"weights must be numbers >= 0, not all zero, got {bad[0] if len(bad) else 0.0}.")
    return out


def _target(target: float | None, d: int) -> int | None:
    if target is None:
        return None
    if isinstance(target, float) and 0 < target < 1:
        return max(round(target * d), 1)
    if isinstance(target, bool) or not np.isfinite(target) or target < 1 or target != int(target):
        raise ControlError(f"target must be a whole number >= 1, or a fraction in (0, 1), got {target!r}.")
    return int(target)
