"""Carathéodory's theorem as an algorithm: weights on fewer points, with the same moments."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int

#: singular values below this part of the largest count as zero, times the larger side of the matrix
_RANK = 1e-13


def chebyshev(x: Float[np.ndarray, "*boxes n m"], k: int) -> Float[np.ndarray, "*boxes n N"]:
    """Products of Chebyshev polynomials of total degree ≤ k: they span what monomials span, well conditioned.

    Args:
        x: points, of one box or of several; the least and the largest coordinate of a box go to −1 and 1.
        k: degree.

    Returns:
        One column per polynomial, the first is 1.
    """
    return chebyshev_on(x, k, x.min(-2, keepdims=True), x.max(-2, keepdims=True))


def chebyshev_on(x: np.ndarray, k: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The same for a box that is given.

    Args:
        x: points ``(*boxes, n, m)``.
        k: degree.
        low: of the box, in the shape of x but for the points.
        high: of the box.

    Returns:
        ``(*boxes, n, N)``.
    """
    scaled = (x - (low + high) / 2) / np.where(high > low, (high - low) / 2, 1.0)
    rows = [np.ones_like(scaled), scaled]
    for _ in range(2, k + 1):
        rows.append(2 * scaled * rows[-1] - rows[-2])
    powers = np.stack(rows[: k + 1])
    exponents = degrees(x.shape[-1], k)
    out = np.ones((*x.shape[:-1], len(exponents)))
    for j, column in enumerate(exponents.T):
        used = np.flatnonzero(column)
        out[..., used] *= np.moveaxis(powers[column[used], ..., j], 0, -1)
    return out


@cache
def degrees(m: int, k: int) -> Int[np.ndarray, "N m"]:
    """Exponents of the monomials of total degree ≤ k in m variables, by degree.

    Args:
        m: number of variables.
        k: degree.

    Returns:
        One row per monomial, the first is zero.
    """
    rows = [[0] * m]
    last = [([0] * m, 0)]  # the exponents, and the first variable that may still be raised: no monomial twice
    for _ in range(k):
        last = [([*row[:j], row[j] + 1, *row[j + 1 :]], j) for row, first in last for j in range(first, m)]
        rows += [row for row, _ in last]
    return np.array(rows, dtype=np.int64)


def recombine(
    features: Float[np.ndarray, "*boxes n N"], weights: Float[np.ndarray, "*boxes n"], drop: int | None = None
) -> Float[np.ndarray, "*boxes n"]:
    """Set weights to zero one by one, and move the others so that weights @ features stays.

    Args:
        features: one row per point, of one box or of several at once.
        weights: positive.
        drop: how many become zero in each box, at most n − rank; None for that many, in one box.

    Returns:
        New weights ≥ 0. Cost: one SVD and O(n² drop) for each box.
    """
    if drop is None:
        sizes = np.linalg.svd(features, compute_uv=False)
        drop = len(weights) - int((sizes > sizes[0] * _RANK * max(features.shape)).sum())
    if drop == 0:
        return weights.copy()
    n = weights.shape[-1]
    null = np.linalg.svd(np.swapaxes(features, -1, -2))[2][..., n - drop :, :].reshape(-1, drop, n)
    left, boxes = weights.reshape(-1, n).copy(), np.arange(len(null))
    for q in range(drop):  # every row of null moves weights without moving a moment
        v = null[:, q] * np.where(null[:, q].max(-1) > 0, 1.0, -1.0)[:, None]
        steps = np.divide(left, v, out=np.full_like(left, np.inf), where=v > 0)  # a weight that is gone has v = 0
        first = steps.argmin(-1)
        left = np.maximum(left - steps[boxes, first, None] * v, 0.0)
        left[boxes, first] = 0.0
        rest = null[:, q + 1 :]
        rest -= (rest[boxes, :, first] / v[boxes, first, None])[..., None] * v[:, None]
        rest[boxes, :, first] = 0.0
        rest /= np.sqrt(np.einsum("bij,bij->bi", rest, rest))[..., None]
    return left.reshape(weights.shape)
