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


def critical_batch_size(mean: float, variance: float, lr: float) -> float:
    """Batch size below which a saddle attracts, to second order: Var h / (2|E h|/lr − (E h)²).

    Args:
        mean: E h, negative at a saddle.
        variance: of h between single samples.
        lr: learning rate.

    Returns:
        The estimate; inf if every batch size is attracted (E h ≥ 0, or lr ≥ 2/|E h|).

    Source: arXiv 2303.13093.

    Example:
        >>> critical_batch_size(-0.25, 4.0, lr=0.125)
        1.015...
    """
    escape = -2 * mean / lr - mean**2
    return variance / escape if mean < 0 and escape > 0 else math.inf


def critical_lr(exponent: Callable[[float], float], low: float, high: float) -> float:
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
        >>> round(critical_lr(lambda lr: lr * (lr - 0.5), 0.1, 2.0), 9)
        0.5
    """
    from scipy.optimize import brentq  # late: slow to import

    if exponent(low) * exponent(high) > 0:
        raise ValueError(f"The exponent has the same sign at lr = {low:g} and {high:g}; give a bracket of its root.")
    return float(brentq(exponent, low, high, xtol=1e-12))


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
