"""SGD beside a mirror plane: a product of random factors, z ← (1 − lr·(h + λ))·z.

On the plane the gradient of every sample vanishes in the normal direction, so beside it the noise is multiplicative:
h is the curvature that the minibatch sees. Whether z grows is decided by E log|1 − lr·(h + λ)|, the Lyapunov
exponent, and not by the mean of h: a saddle of the averaged loss attracts once the learning rate is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from gaugefix.theory.mirror_plane import growth_rates

_LOG_MOMENT_AT_ZERO = -(np.euler_gamma + math.log(2)) / 2  # E log|ξ| of a standard normal


def lyapunov_exponent(curvatures: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> float:
    """Growth per step of log|z| for curvatures drawn from a sample, mean log|1 − lr·(h + λ)|.

    Args:
        curvatures: h of every minibatch along the mode.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        Λ; the plane attracts if it is negative. −inf if one factor is exactly zero.

    Source: arXiv 2309.16932, collapse by gradient noise; arXiv 2303.13093.

    Example:
        >>> lyapunov_exponent(np.array([-1.0, 1.0]), lr=0.5)  # zero on average, and yet it shrinks
        -0.1438...
    """
    return float(growth_rates(np.asarray(curvatures), lr=lr, weight_decay=weight_decay).mean())


def critical_lr_estimate(mean: float, second_moment: float) -> float:
    """Learning rate above which a saddle attracts, to second order: −2 E h / E h².

    Args:
        mean: E h, negative at a saddle.
        second_moment: E h².

    Returns:
        The estimate; 0 if the mean is not negative (then every small learning rate is attracted).

    Source: arXiv 2309.16932, collapse by gradient noise.

    Example:
        >>> critical_lr_estimate(-0.25, 4.0)
        0.125
    """
    return max(-2 * mean / second_moment, 0.0)


def exponent_root(exponent: Callable[[float], float], low: float, high: float) -> float:
    """Learning rate at which an exponent changes sign.

    Args:
        exponent: Λ as a function of the learning rate.
        low: where it has one sign.
        high: where it has the other.

    Returns:
        The root, to 1e-12.

    Raises:
        ValueError: if the signs are equal.

    Source: arXiv 2309.16932, collapse by gradient noise.

    Example:
        >>> round(exponent_root(lambda lr: lr * (lr - 0.5), 0.1, 2.0), 9)
        0.5
    """
    from scipy.optimize import brentq  # late: slow to import

    if exponent(low) * exponent(high) > 0:
        raise ValueError(f"The exponent has the same sign at lr = {low:g} and {high:g}; give a bracket of its root.")
    return float(brentq(exponent, low, high, xtol=1e-12))


def mean_square_growth(curvatures: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> float:
    """Growth per step of E z², the mean of (1 − lr·(h + λ))².

    At a saddle it is above 1 at every learning rate, also where z → 0 with probability one; at a minimum its
    threshold lies below that of the exponent. So moments do not decide where SGD ends.

    Args:
        curvatures: h of every minibatch along the mode.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        The factor.

    Source: arXiv 2303.13093 (L3, L4).

    Example:
        >>> h = np.array([-1.2, 1.0])
        >>> mean_square_growth(h, 0.5) > 1, lyapunov_exponent(h, 0.5) < 0
        (True, True)
    """
    return float(np.mean((1.0 - lr * (np.asarray(curvatures, dtype=float) + weight_decay)) ** 2))


def critical_batch(curvatures: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> float:
    """Batch size above which noise no longer holds SGD at a saddle, to second order.

    A batch of B has the second moment (E k)² + Var k / B of k = h + λ, so

        B_c = Var k / (2|E k|/lr − (E k)²).

    Args:
        curvatures: h of single samples along the mode.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        B_c, not rounded; inf if E k ≥ 0 (no batch size escapes) and nan if lr·|E k| ≥ 2, where second order says
        nothing. An estimate for small lr·|k|.

    Source: arXiv 2303.13093 (L1), 2107.11774 (C1).

    Example:
        >>> critical_batch(np.array([-2.0, 1.0]), lr=0.6)  # batches of one are held, batches of two escape
        1.58...
    """
    k = np.asarray(curvatures, dtype=float) + weight_decay
    mean = float(k.mean())
    if mean >= 0:
        return math.inf
    slack = -2 * mean / lr - mean**2
    return float(k.var() / slack) if slack > 0 else math.nan


def decay_shift(lr: float, weight_decay: float) -> tuple[float, float]:
    """Weight decay as a change of the learning rate and a shift, exact for any product of random matrices.

    1 − lr·(H + λ) = (1 − lr·λ)(1 − lr'·H) with lr' = lr/(1 − lr·λ), hence Λ(lr, λ) = log(1 − lr·λ) + Λ(lr', 0). For
    decoupled decay, which multiplies by 1 − lr·λ after a step of lr, it is the shift alone.

    Args:
        lr: learning rate.
        weight_decay: λ, below 1/lr.

    Returns:
        lr' and log(1 − lr·λ).

    Raises:
        ValueError: if lr·λ ≥ 1.

    Source: arXiv 2303.13093 (L1).

    Example:
        >>> rate, shift = decay_shift(0.5, 0.4)
        >>> rate, round(shift, 4)
        (0.625, -0.2231)
    """
    left = 1 - lr * weight_decay
    if left <= 0:
        raise ValueError(f"decay_shift needs lr·weight_decay < 1, got {lr!r}·{weight_decay!r}.")
    return lr / left, math.log(left)


def decoupled_decay_threshold(exponent: float, lr: float) -> float:
    """Decoupled weight decay that stops a mode which grows by Λ without any, (1 − e^{−Λ})/lr.

    Args:
        exponent: Λ without decay.
        lr: learning rate.

    Returns:
        λ_c of a decay θ ← (1 − lr·λ)θ applied after the gradient step (SGDW, AdamW); 0 if Λ ≤ 0.

    Source: arXiv 2303.13093 (L1).

    Example:
        >>> round(decoupled_decay_threshold(0.01, 0.1), 4)
        0.0995
    """
    return max(0.0, -math.expm1(-exponent) / lr)


def expected_escape_steps(exponent: float, start: float, end: float) -> float:
    """Mean number of steps from |z| = ``start`` to |z| = ``end`` of a log|z| that drifts by Λ.

    Args:
        exponent: Λ per step.
        start: where it begins.
        end: where it is counted as gone, above ``start``.

    Returns:
        log(end/start)/Λ; inf if Λ ≤ 0. Standard deviation √(log(end/start)·Var log|1 − lr·h| / Λ³).

    Raises:
        ValueError: if not 0 < start < end.

    Source: arXiv 2107.11774 (C2).

    Example:
        >>> expected_escape_steps(0.01, 1e-6, 1e-2)
        921.03...
    """
    if not 0 < start < end:
        raise ValueError(f"expected_escape_steps needs 0 < start < end, got start={start!r}, end={end!r}.")
    return math.log(end / start) / exponent if exponent > 0 else math.inf


def gaussian_regression_exponent(slope: float, lr: float, noise: float = 1.0) -> float:
    """Λ of E(uwx − y)² at u = w = 0 for batches of one, y = slope·x + noise·ξ with standard normal x and ξ.

    The mode u = w has the curvature h = −2xy, so Λ = E log|1 + 2 lr·x(slope·x + noise·ξ)|. The mean over ξ is
    exact (an integral of Dawson's function), the one over x is a quadrature.

    Args:
        slope: of the data.
        lr: learning rate, positive.
        noise: standard deviation of the label noise, positive.

    Returns:
        Λ to about 1e-8.

    Source: arXiv 2309.16932, collapse by gradient noise.

    Example:
        >>> gaussian_regression_exponent(0.12, 0.05) > 0 > gaussian_regression_exponent(0.12, 0.2)
        True
    """
    from scipy.integrate import quad  # late: slow to import

    def mean_over_noise(x: float) -> float:
        mean, scale = 1 + 2 * lr * slope * x * x, 2 * lr * noise * x
        density = math.exp(-x * x / 2) * math.sqrt(2 / math.pi)  # of |x|
        return density * (math.log(scale) + _gaussian_log_moment(mean / scale))

    return float(quad(mean_over_noise, 0, 12, epsabs=1e-10, epsrel=1e-10, limit=400)[0])


def _gaussian_log_moment(m: float) -> float:
    """E log|ξ + m| of a standard normal ξ, for m ≥ 0; asymptotic where Dawson's integral would be long."""
    from scipy.integrate import quad
    from scipy.special import dawsn

    if m > 50:
        return math.log(m) - 1 / (2 * m**2) - 3 / (4 * m**4)
    return float(_LOG_MOMENT_AT_ZERO + 2 * quad(dawsn, 0, m / math.sqrt(2), epsabs=1e-12)[0])
