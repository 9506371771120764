"""What gradient noise does to the best ghost of a class: the learning rate and batch size at which it stays dead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gaugefix.measure import Record
from gaugefix.task import Task
from gaugefix.theory import critical_batch, critical_lr_estimate

_UNKNOWN = "no curvature of single samples along the best ghost"
_LIMITS = (
    "to second order in the learning rate, along the best ghost alone: noise across it makes escape easier, so the "
    "true critical learning rate is higher and the true critical batch size lower"
)


@dataclass(frozen=True)
class NoiseLimits(Record):
    """When gradient noise alone keeps the best ghost of a class from growing (arXiv 2303.13093, 2309.16932).

    Attributes:
        critical_lr: learning rate above which the ghost dies although κ > λ; 0 if κ ≤ λ, nan if it is not known.
        critical_batch_size: batch size below which it dies at the task's learning rate; inf if κ ≤ λ, nan if it is
            not known or lr·(κ − λ) ≥ 2.
        spread: standard deviation of the curvature of single samples along the ghost; its mean is −κ.
        reason: what the numbers assume, or why there are none.
    """

    critical_lr: float
    critical_batch_size: float
    spread: float
    reason: str


def noise_limits(task: Task, curvatures: Float[np.ndarray, " n"], weight_decay: float) -> NoiseLimits:
    """Critical learning rate and batch size of a ghost from its curvature in every sample.

    With h_B the mean over a batch drawn without replacement from n samples, Λ(η) = E log|1 − η(h_B + λ)| changes sign
    at η_c ≈ 2(κ − λ)/((κ − λ)² + Var h·(n − B)/((n − 1)B)).

    Args:
        task: gives lr, batch size and momentum (the lr is that of one step, η/(1 − μ)).
        curvatures: second derivative of the loss of every sample along the ghost, −κ on average.
        weight_decay: λ.

    Returns:
        The limits.
    """
    n = len(curvatures)
    if n < 2 or not np.isfinite(curvatures).all():
        return NoiseLimits(np.nan, np.nan, np.nan, _UNKNOWN)
    if task.optimizer != "sgd":
        return NoiseLimits(np.nan, np.nan, float(curvatures.std(ddof=1)), f"not for {task.optimizer}")
    mean, variance = float(curvatures.mean()) + weight_decay, float(curvatures.var(ddof=1))
    batch = min(task.batch_size, n)
    noise = variance * (n - batch) / ((n - 1) * batch)
    lr = task.lr / (1 - task.momentum)
    if mean >= 0:
        return NoiseLimits(0.0, np.inf, variance**0.5, "weight decay alone keeps the ghost dead")
    return NoiseLimits(
        critical_lr_estimate(mean, mean**2 + noise) * (1 - task.momentum),
        critical_batch(curvatures, lr, weight_decay),
        variance**0.5,
        _LIMITS,
    )
