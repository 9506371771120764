"""Do two networks have the same representations up to rotation, and if not, what may have kept them apart?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure.records import Record
from gaugefix.measure.similarity import linear_cka
from gaugefix.measure.spectra import effective_rank


@dataclass(frozen=True, eq=False)
class PlatonicReport(Record):
    """Every layer of one network against every layer of another, on the same samples.

    Attributes:
        cka: ``(layers of A, layers of B)`` kernel alignment without centring, 1 for representations that agree up to
            rotation and scale: the sense of arXiv 2507.01098. nan where a layer is zero.
        cka_centered: ``(layers of A, layers of B)`` linear CKA, 1 up to rotation, scale and shift.
        residual: ``(layers of A, layers of B)`` what is left of one after the best rotation and scale of the other,
            min ‖Y − cXQ‖²/‖Y‖², in [0, 1].
        rank_a: effective rank of every layer of A, from its singular values.
        rank_b: of B.
        reference_a: alignment of every layer of A with the reference kernel; empty without one.
        reference_b: of B.
        smallest: smallest entry of the matrix asked about, ``cka`` or ``cka_centered``.
        mean: its mean.
        centered: which.
        n_samples: number of samples.
    """

    cka: np.ndarray
    cka_centered: np.ndarray = field(repr=False)
    residual: np.ndarray = field(repr=False)
    rank_a: np.ndarray
    rank_b: np.ndarray
    reference_a: np.ndarray
    reference_b: np.ndarray
    smallest: float
    mean: float
    centered: bool
    n_samples: int


def kernel_alignment(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    """Alignment of two linear kernels without centring, ‖XᵀY‖²/(‖XᵀX‖‖YᵀY‖).

    It is 1 exactly if the inner products of all pairs of samples are proportional, so if the representations agree up
    to rotation and scale. For centred features it is the biased linear CKA.

    Args:
        x: features of n samples; further dimensions are flattened.
        y: of the same samples in the same order.

    Returns:
        In [0, 1]; nan if a representation is zero.

    Raises:
        MeasurementError: if the numbers of samples differ or there are fewer than two.

    Cost: n·p·q, in float64.

    Source: arXiv 2507.01098.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> round(kernel_alignment(x, 3 * x.flip(1)), 9), round(kernel_alignment(x, x + 1), 3)
        (1.0, 0.9)
    """
    if len(x) != len(y) or len(x) < 2:
        raise MeasurementError(
            f"Both representations must be of the same two or more samples, got {len(x)} and {len(y)}."
        )
    a, b = (t.detach().reshape(len(t), -1).double() for t in (x, y))
    scale = float((a.T @ a).norm() * (b.T @ b).norm())
    return min(1.0, float((a.T @ b).square().sum()) / scale) if scale > 0 else math.nan


def platonic_report(
    reps_a: Sequence[Float[Tensor, "n _"]],
    reps_b: Sequence[Float[Tensor, "n _"]],
    *,
    center: bool = False,
    reference: Float[Tensor, "n _"] | None = None,
) -> PlatonicReport:
    """Compare every layer of network A with every layer of network B.

    Args:
        reps_a: activations of the layers of A on n samples; further dimensions are flattened.
        reps_b: of B, of the same samples in the same order.
        center: whether ``smallest`` and ``mean`` are of the centred alignment. The theorem is about the one without.
        reference: features whose kernel both should have, such as those of a closed form
            (`gaugefix.theory.edln_solution`).

    Returns:
        The comparison. Cost: n·d² per pair of layers and the SVD of a (d, d) matrix.

    Raises:
        MeasurementError: if a list is empty, the numbers of samples differ, or there are fewer than two.

    Warns:
        ValidityWarning: if a layer is zero.

    Source: arXiv 2507.01098.

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
        >>> report = platonic_report([x, x.relu()], [2 * x @ q])
        >>> report.cka.round(2).tolist(), report.residual.round(2).tolist()
        ([[1.0], [0.46]], [[0.0], [0.5]])
    """
    if not reps_a or not reps_b:
        raise MeasurementError("platonic_report: both lists need at least one layer.")
    a, b = ([t.detach().reshape(len(t), -1).double() for t in reps] for reps in (reps_a, reps_b))
    plain = np.array([[kernel_alignment(x, y) for y in b] for x in a])
    centered = np.array([[linear_cka(x, y, unbiased=False) for y in b] for x in a])
    if np.isnan(plain).any():
        warnings.warn(
            "platonic_report: a representation is zero on every sample; its alignment is nan.",
            ValidityWarning,
            stacklevel=2,
        )
    references = [
        np.array([] if reference is None else [kernel_alignment(x, reference) for x in layers]) for layers in (a, b)
    ]
    asked = centered if center else plain
    return PlatonicReport(
        cka=plain,
        cka_centered=centered,
        residual=np.array([[_procrustes(x, y) for y in b] for x in a]),
        rank_a=np.array([effective_rank(torch.linalg.svdvals(x)) for x in a]),
        rank_b=np.array([effective_rank(torch.linalg.svdvals(x)) for x in b]),
        reference_a=references[0],
        reference_b=references[1],
        smallest=float(asked.min()),
        mean=float(asked.mean()),
        centered=center,
        n_samples=len(a[0]),
    )


def _procrustes(x: Tensor, y: Tensor) -> float:
    """1 − ‖XᵀY‖_*²/(‖X‖²‖Y‖²), with zero columns where one has fewer."""
    scale = float(x.square().sum() * y.square().sum())
    return max(0.0, 1 - float(torch.linalg.svdvals(x.T @ y).sum()) ** 2 / scale) if scale > 0 else math.nan
