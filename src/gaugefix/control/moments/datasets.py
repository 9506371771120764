"""Few rows of a data set, with weights for the loss."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped

from gaugefix.control.moments.points import CompressedPoints, Points, as_matrix, compress_points
from gaugefix.errors import ControlError


def compress_dataset(
    X: Points,
    y: Shaped[np.ndarray, " d *out"] | Shaped[torch.Tensor, " d *out"],
    k: int = 2,
    target: float | None = None,
    *,
    stratify: bool | None = None,
) -> CompressedPoints:
    """Keep few rows of a data set with weights for the loss, such that the moments of degree ≤ k stay.

    For regression the moments are those of (x, y). With k = 2 the squared loss of a linear model,
    Σ_j c_j (θᵀx_j − y_j)², is then that of all rows for *every* θ, and so is every least-squares and ridge solution;
    for a smooth network it is close. For classification each class is compressed on its own, with the moments of x.
    Columns are standardised first, which changes where clusters are and no moment.

    Use the weights as a factor of the per-row loss, or as probabilities of a sampler.

    Args:
        X: rows ``(d, m)``.
        y: class labels (integers, booleans) or targets ``(d,)`` or ``(d, outputs)``.
        k: degree of the moments.
        target: how many rows to keep, a fraction if it is a float below 1; None for as few as the moments need. With
            classes, each gets its share.
        stratify: whether y are classes; by default integers and booleans are.

    Returns:
        The kept rows; the weights of a class sum to its number of rows.

    Raises:
        ControlError: if X and y do not fit, are not finite, or a number is out of range.

    Warns:
        ValidityWarning: as `compress_points`, once for each class.

    Source: arXiv 2510.00504, dataset compression.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((500, 3))
        >>> y = x @ np.array([1.0, -2.0, 0.5]) + rng.standard_normal(500)
        >>> rows, c = compress_dataset(x, y, k=2)
        >>> all_rows = np.linalg.lstsq(x, y)[0]
        >>> few = np.linalg.lstsq(np.sqrt(c)[:, None] * x[rows], np.sqrt(c) * y[rows])[0]
        >>> len(rows), bool(np.allclose(all_rows, few))
        (15, True)
    """
    x = as_matrix(X)
    labels = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if labels.ndim < 1 or len(labels) != len(x):
        raise ControlError(f"y must have one entry for each of the {len(x)} rows of X, got shape {labels.shape}.")
    classes = labels.dtype.kind in "iub" if stratify is None else stratify
    if not classes:
        return compress_points(_standard(np.column_stack([x, labels.reshape(len(x), -1)])), k, target)
    if labels.ndim > 1:
        raise ControlError(f"Class labels must have one number for each row, got shape {labels.shape}.")
    x = _standard(x)
    parts = [(rows, _of_class(x[rows], k, target, len(x))) for rows in _members(labels)]
    indices = np.concatenate([rows[part.indices] for rows, part in parts])
    order = np.argsort(indices)
    weights = np.concatenate([part.weights for _, part in parts])[order]
    return CompressedPoints(indices[order], weights, k, max(part.error for _, part in parts))


def _members(labels: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(labels == value) for value in np.unique(labels)]


def _of_class(x: np.ndarray, k: int, target: float | None, total: int) -> CompressedPoints:
    share = target if target is None or target < 1 else max(round(target * len(x) / total), 1)
    return compress_points(x, k, share)


def _standard(x: Float[np.ndarray, "d m"]) -> Float[np.ndarray, "d m"]:
    """Columns of mean zero and variance one; a constant column stays a constant."""
    if not np.isfinite(x).all():
        raise ControlError("y has entries that are not finite.")
    spread = x.std(0)
    return np.asarray((x - x.mean(0)) / np.where(spread > 0, spread, 1.0))
