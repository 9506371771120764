"""Sharpness and fluctuation of a network: the trace of the Hessian, and the mean square of per-sample gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.noise import gradient_noise
from gaugefix.measure.records import Record
from gaugefix.task import Task


@dataclass(frozen=True)
class HessianTrace(Record):
    """T = Tr ∇²L of the mean data loss.

    Attributes:
        value: T, or its estimate.
        stderr: standard error over the probes; 0 if exact, nan with one probe.
        n_probes: Hessian-vector products used.
        exact: whether every coordinate was probed.
        n_samples: number of samples in the loss.
    """

    value: float
    stderr: float
    n_probes: int
    exact: bool
    n_samples: int


@dataclass(frozen=True)
class GradientFluctuation(Record):
    """𝒮 = E‖∇ℓ‖², the mean square of the gradients of single samples, what SGD with a small step minimises at rest.

    Attributes:
        value: 𝒮 = Tr C + ‖∇L‖².
        noise: Tr C, the part that is left at a minimum.
        mean_sq: ‖∇L‖².
        stderr: standard error of the noise over the samples.
        n_samples: number of samples used.
    """

    value: float
    noise: float
    mean_sq: float
    stderr: float
    n_samples: int


def hessian_trace(
    task: Task, *, n_probes: int = 32, operator: HessianOperator | None = None, max_samples: int = 2048, seed: int = 0
) -> HessianTrace:
    """Sharpness T = Tr ∇²L of the mean data loss without weight decay, by Hutchinson's estimator.

    T ≈ mean over probes of vᵀHv with random signs v. A model with no more parameters than ``n_probes`` is measured
    exactly, coordinate by coordinate.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        n_probes: how many.
        operator: reuse one for several measurements at the same point.
        max_samples: stop after the batch that reaches this number.
        seed: of the probes and the data order.

    Returns:
        The trace. Cost: one Hessian-vector product per probe.

    Raises:
        MeasurementError: if ``n_probes`` < 1.

    Source: the T of arXiv 2602.05065; its closed form for deep linear networks is
    `gaugefix.theory.DeepLinearSharpness`.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b[0])[:, 0] ** 2, lambda: [(x,)],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> found = hessian_trace(task)  # 2·mean(x²)
        >>> found.value, found.exact
        (10.0, True)
    """
    if n_probes < 1:
        raise MeasurementError(f"hessian_trace: n_probes must be at least 1, got {n_probes!r}.")
    h = operator or HessianOperator(task, max_samples=max_samples, seed=seed)
    params = {k: h.params[k] for k in h.gradient()}
    size = sum(p.numel() for p in params.values())
    exact = size <= n_probes
    generator = torch.Generator().manual_seed(seed)
    probes = (
        torch.eye(size)
        if exact
        else torch.randint(2, (n_probes, size), generator=generator, dtype=torch.float32) * 2 - 1
    )
    found = np.array([_quadratic_form(h, params, v) for v in probes])
    value = float(found.sum() if exact else found.mean())
    spread = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return HessianTrace(value, 0.0 if exact else spread, len(found), exact, h.n_samples)


def gradient_fluctuation(task: Task, *, max_samples: int = 2048, seed: int = 0) -> GradientFluctuation:
    """Fluctuation 𝒮 = E‖∇ℓ‖² of the gradients of single samples, without weight decay.

    With squared error ½‖y − f‖² and residuals of covariance Σ_ε that do not depend on the input,
    λ_min(Σ_ε)·T ≤ 𝒮 ≤ λ_max(Σ_ε)·T with the sharpness T at a minimum (Theorem 2 of arXiv 2602.05065, which prints 𝒮 and
    T the other way round).

    Args:
        task: gives model, loss and data; nothing of it is changed.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The fluctuation. Cost: that of `gradient_noise`.

    Raises:
        MeasurementError: if no parameter is trainable or ``max_samples`` < 1.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0], lambda: [x],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> gradient_fluctuation(task).value  # mean(1, 9)
        5.0
    """  # noqa: DOC502
    noise = gradient_noise(task, max_samples=max_samples, seed=seed)
    trace, mean_sq = noise.total.trace, noise.total.mean_sq
    return GradientFluctuation(trace + mean_sq, trace, mean_sq, noise.stderr, noise.n_samples)


def _quadratic_form(h: HessianOperator, params: dict[str, Tensor], probe: Tensor) -> float:
    parts = probe.split([p.numel() for p in params.values()])
    vector = {k: v.reshape(p.shape).to(p) for (k, p), v in zip(params.items(), parts, strict=True)}
    product = h @ vector
    return sum(float((product[k].double() * v.double()).sum()) for k, v in vector.items())
