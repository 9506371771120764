"""Is SGD held at a maximum or a saddle? The exponent of one direction with everything that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gaugefix.theory.lyapunov import LyapunovAccumulator, Verdict, verdict
from gaugefix.theory.multiplicative_noise import critical_batch
from gaugefix.theory.stability_window import stability_window

_REPLICAS = 16


@dataclass(frozen=True)
class EscapeExponent:
    """Growth per step of the distance along one direction.

    Attributes:
        value: Λ = E log|1 − lr·(h + λ)|; negative: SGD converges to the point, minimum or not.
        stderr: its standard error over the curvatures that were given.
        verdict: "collapses", "escapes", or "undecided" below two standard errors.
        lr_window: learning rates with Λ < 0, the first interval; nan with momentum.
        critical_batch: batch size, in units of the one the curvatures are of, above which noise no longer holds SGD, to
            second order; inf at a minimum, nan with momentum.
        mean_curvature: E(h + λ); negative at a maximum.
    """

    value: float
    stderr: float
    verdict: Verdict
    lr_window: tuple[float, float]
    critical_batch: float
    mean_curvature: float


def escape_exponent(
    curvatures: Float[np.ndarray, " n"],
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    *,
    steps: int = 4000,
    seed: int = 0,
) -> EscapeExponent:
    """Whether SGD leaves a point at which the gradient of every sample vanishes, along one direction.

    log|w| is a random walk with drift Λ: w → 0 with probability one if Λ < 0, although at a maximum every moment of w
    grows. So a run whose weights have come to rest may sit at a maximum. With momentum the exponent is that of the
    random product of the pair (w, buffer).

    Args:
        curvatures: h of every minibatch along the direction.
        lr: learning rate; for AMSGrad the effective one, `gaugefix.measure.amsgrad_effective_lr`.
        weight_decay: λ.
        momentum: μ.
        steps: length of the product, with momentum.
        seed: of its draws.

    Returns:
        The exponent. −inf if one factor is exactly zero.

    Raises:
        ValueError: if there is no curvature, one is not finite, or lr or momentum is out of range.

    Source: arXiv 2107.11774 (C1, C4), 2303.13093 (L1).

    Example:
        >>> found = escape_exponent(np.array([0.9, -1.0]), lr=0.5)  # a maximum on average
        >>> found.mean_curvature < 0, found.value < 0, round(found.lr_window[0], 4)
        (True, True, 0.1111)
    """
    h = np.asarray(curvatures, dtype=float).ravel()
    if not h.size or not np.isfinite(h).all():
        raise ValueError("escape_exponent needs at least one curvature, all of them finite.")
    if not (lr > 0 and math.isfinite(lr)) or not 0 <= momentum < 1:
        raise ValueError(f"lr must be positive and momentum in [0, 1), got {lr!r} and {momentum!r}.")
    k = h + weight_decay
    if momentum:
        value, stderr = _with_momentum(k, lr, momentum, steps, seed)
        return EscapeExponent(value, stderr, verdict(value, stderr), (math.nan, math.nan), math.nan, float(k.mean()))
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(1 - lr * k))
    value = float(logs.mean())
    stderr = float(logs.std(ddof=1)) / math.sqrt(len(k)) if len(k) > 1 and np.isfinite(logs).all() else math.nan
    low, high = stability_window(h, weight_decay)
    return EscapeExponent(
        value, stderr, verdict(value, stderr), (low, high),
        critical_batch(h, lr, weight_decay), float(k.mean()),
    )  # fmt: skip


def _with_momentum(k: np.ndarray, lr: float, momentum: float, steps: int, seed: int) -> tuple[float, float]:
    """Mean growth of (w, lr·buffer) over replicas that see different draws."""
    rng = np.random.default_rng(seed)
    w, m = rng.standard_normal((2, _REPLICAS))
    total = LyapunovAccumulator(burn_in=min(200, steps // 4))
    for _ in range(steps):
        m = momentum * m + lr * rng.choice(k, _REPLICAS) * w
        w = w - m
        size = np.hypot(w, m)
        total.add(np.log(size))
        w, m = w / size, m / size
    found = total.result().value
    return float(found.mean()), float(found.std(ddof=1)) / math.sqrt(_REPLICAS)
