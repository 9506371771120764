"""Similarity of two representations of the same samples: linear CKA, exact also in batches, and shared neighbours."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], unbiased: bool = True) -> float:
    """Centred kernel alignment of linear kernels, HSIC(x, y)/√(HSIC(x, x)·HSIC(y, y)).

    It is 1 for representations that agree up to rotation, scale and shift. The biased form
    ‖XᵀY‖²/(‖XᵀX‖‖YᵀY‖) of centred features is large for any pair with more features than samples; the unbiased
    estimate of HSIC (Song et al. 2012) has mean zero for independent ones and may be negative.

    Args:
        x: features of n samples; further dimensions are flattened.
        y: of the same samples in the same order.
        unbiased: which estimate of HSIC; the unbiased one needs four samples, the biased one two.

    Returns:
        At most 1. A representation that is the same for every sample shares nothing with any other: 0, not nan.

    Raises:
        MeasurementError: if the numbers of samples differ or are too small, or an entry is not finite.

    Cost: n·(p + q)² or n²·(p + q), whichever is less; accumulates in float64.

    Source: arXiv 2507.01098 uses the kernel; unbiased HSIC as in arXiv 2010.15327.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
        >>> round(linear_cka(x, 5 - 2 * x.flip(1)), 9)
        1.0
    """  # noqa: DOC502
    x, y = _checked(x, y, 4 if unbiased else 2)
    if unbiased and len(x) <= max(x.shape[1], y.shape[1]):
        return _ratio(*_kernel_hsic(x, y))
    moments = CKA()
    moments.update(x, y)
    return moments.compute(unbiased=unbiased)


class CKA:
    """Linear CKA of a stream of batches, equal to that of all samples at once whatever the batches.

    The unbiased estimate of HSIC is a polynomial of sums over samples, so that the sums are all that is kept: a ragged
    last batch, or one of a single sample, counts for what it is. Averages of the CKA of batches, as other tools take
    them, depend on the batch size and give the ragged batch the weight of a full one.

    Example:
        >>> x = torch.arange(12.0).reshape(6, 2) ** 2
        >>> stream = CKA()
        >>> for part in (x[:4], x[4:5], x[5:]):
        ...     stream.update(part, part.sin())
        >>> abs(stream.compute() - linear_cka(x, x.sin())) < 1e-12
        True
    """

    def __init__(self) -> None:
        self.n_samples = 0
        self._offsets: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = {}

    def update(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> None:
        """Add samples.

        Args:
            x: features; further dimensions are flattened.
            y: of the same samples.

        Raises:
            MeasurementError: if the numbers of samples differ, an entry is not finite, or the numbers of features are
                not those of the batches before.
        """
        x, y = _checked(x, y, 1)
        if self._offsets is None:  # the result does not depend on it; without it large means would cost digits
            self._offsets = x.mean(0), y.mean(0)
        widths = tuple(len(o) for o in self._offsets)
        if (x.shape[1], y.shape[1]) != widths:
            raise MeasurementError(f"CKA: the batches before had {widths} features, got {(x.shape[1], y.shape[1])}.")
        x, y = x - self._offsets[0].to(x), y - self._offsets[1].to(y)
        k, m = x.square().sum(1), y.square().sum(1)
        new = {"xy": x.T @ y, "xx": x.T @ x, "yy": y.T @ y, "x": x.sum(0), "y": y.sum(0)}
        new |= {"k": k.sum(), "l": m.sum(), "kl": k @ m, "kk": k @ k, "ll": m @ m}
        new |= {"xl": m @ x, "yk": k @ y, "xk": k @ x, "yl": m @ y}
        self._sums = {key: self._sums[key] + v if self._sums else v for key, v in new.items()}
        self.n_samples += len(x)

    def compute(self, *, unbiased: bool = True) -> float:
        """CKA of all samples so far.

        Args:
            unbiased: as for `linear_cka`.

        Returns:
            As `linear_cka`.

        Raises:
            MeasurementError: if there are too few samples.
        """  # noqa: DOC502
        _enough(self.n_samples, 4 if unbiased else 2)
        s, n = self._sums, self.n_samples
        if not unbiased:
            xy, xx, yy = (s[a + b] - torch.outer(s[a], s[b]) / n for a, b in ("xy", "xx", "yy"))
            floor = 1e-14 * float(s["xx"].norm()), 1e-14 * float(s["yy"].norm())
            return _ratio(_square(xy), _square(xx), _square(yy), (floor[0] ** 2, floor[1] ** 2))
        cross = _hsic(n, s["xy"], s["x"], s["y"], s["k"], s["l"], s["kl"], s["xl"], s["yk"])
        left = _hsic(n, s["xx"], s["x"], s["x"], s["k"], s["k"], s["kk"], s["xk"], s["xk"])
        right = _hsic(n, s["yy"], s["y"], s["y"], s["l"], s["l"], s["ll"], s["yl"], s["yl"])
        floor = 1e-13 * float(s["xx"].square().sum()), 1e-13 * float(s["yy"].square().sum())
        return _ratio(cross, left, right, floor=floor)


def mutual_knn(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int = 10) -> float:
    """Mean fraction of the k nearest neighbours that two representations share, by cosine similarity.

    Args:
        x: features of n samples; further dimensions are flattened.
        y: of the same samples in the same order.
        k: number of neighbours, below n.

    Returns:
        In [0, 1]; about k/(n − 1) for unrelated representations.

    Raises:
        MeasurementError: if ``k`` is not in [1, n − 1], or as `linear_cka`.

    Source: arXiv 2405.07987 defines it.

    Example:
        >>> x = torch.eye(6) + torch.ones(6, 6).triu()
        >>> mutual_knn(x, 3 * x, k=2)
        1.0
    """
    x, y = _checked(x, y, 2)
    n = len(x)
    if not 1 <= k < n:
        raise MeasurementError(f"mutual_knn: k must be in [1, {n - 1}] for {n} samples, got {k!r}.")
    shared = torch.zeros(n, n, dtype=torch.int64, device=x.device)
    for features in (x, y):
        unit = torch.nn.functional.normalize(features, dim=1)
        similarity = (unit @ unit.T).fill_diagonal_(-math.inf)
        shared.scatter_add_(1, similarity.topk(k, dim=1).indices, torch.ones_like(shared))
    return float((shared == 2).sum()) / (n * k)


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over all entries of two matrices.

    Args:
        a: ``(n, n)``.
        b: ``(n, n)``.

    Returns:
        In [−1, 1]; nan for single entries, 0 if one matrix has equal entries.
    """
    if a.numel() < 2:
        return math.nan
    x, y = (t.double() - t.double().mean() for t in (a, b))
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 0 else 0.0


def _hsic(n: int, xy: Tensor, x: Tensor, y: Tensor, k: Tensor, m: Tensor, km: Tensor, xm: Tensor, yk: Tensor) -> float:
    """Unbiased HSIC from sums: x, y, xyᵀ, k = ‖x‖², m = ‖y‖², km, xm, yk."""
    both = xy.square().sum() - km
    totals = (x @ x - k) * (y @ y - m)
    rows = x @ xy @ y - x @ xm - y @ yk + km
    return float(both + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def _kernel_hsic(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Unbiased HSIC of (x, y), (x, x), (y, y) by U-centred kernels, for fewer samples than features."""
    n = len(x)
    kernels = []
    for features in (x, y):
        centred = features - features.mean(0)
        kernel = (centred @ centred.T).fill_diagonal_(0)
        row = kernel.sum(0) / (n - 2)
        kernel = kernel - row - row[:, None] + row.sum() / (n - 1)
        size = float(features.square().sum(1).max())
        kernels.append(kernel.fill_diagonal_(0) * (float(kernel.norm()) > 1e-13 * n * size))
    a, b = kernels
    return tuple(float((p * q).sum()) / (n * (n - 3)) for p, q in ((a, b), (a, a), (b, b)))  # type: ignore[return-value]


def _ratio(cross: float, left: float, right: float, floor: tuple[float, float] = (0.0, 0.0)) -> float:
    """CKA; 0 where one side has no variation beyond rounding."""
    if left <= floor[0] or right <= floor[1]:
        return 0.0
    return min(1.0, cross / math.sqrt(left) / math.sqrt(right))


def _checked(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Float64 matrices of the same samples."""
    if len(x) != len(y):
        raise MeasurementError(f"Both representations must be of the same samples, got {len(x)} and {len(y)}.")
    _enough(len(x), least)
    found = tuple(t.detach().reshape(len(t), -1).double() for t in (x, y))
    for t in found:
        if not torch.isfinite(t).all():
            raise MeasurementError(
                "A representation has entries that are not finite; look for the layer they come from."
            )
    return found[0], found[1]


def _enough(n: int, least: int) -> None:
    if n < least:
        raise MeasurementError(f"At least {least} samples are needed, got {n}. Collect more batches first.")


def _square(matrix: Tensor) -> float:
    return float(matrix.square().sum())
