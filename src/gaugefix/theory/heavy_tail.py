"""The tail of SGD in one dimension: w ← (1 − lr·h)w + noise with a random curvature h has a power law (Kesten)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

_LARGEST = 1e4


@dataclass(frozen=True)
class TailIndex:
    """Exponent β of P(|w| > x) ~ x^−β for Gaussian inputs.

    Attributes:
        index: β, exact.
        moment_match: 2S/(a·lr) − S, which is right where β = 2 and up to 40 % off elsewhere.
        continuous: 2S/(a·lr) + 1 of the continuous-time limit, for small lr·a/S only.
    """

    index: float
    moment_match: float
    continuous: float


def kesten_tail_index(curvatures: Float[np.ndarray, " n"], lr: float) -> float:
    """Tail index β of SGD in one dimension, the positive root of E|1 − lr·h|^β = 1.

    Moments of |w| up to order β are finite. β < 2: no variance; β < 4: the sample variance obeys no central limit
    theorem.

    Args:
        curvatures: h of every minibatch.
        lr: learning rate.

    Returns:
        β; inf if no batch moves w outwards (then w is bounded).

    Raises:
        ValueError: if there is no curvature or one is not finite, or E log|1 − lr·h| ≥ 0: then there is no stationary
            law.

    Source: arXiv 2102.05375 (E9).

    Example:
        >>> round(kesten_tail_index(np.array([0.75, 3.0]), 1.0), 3)
        0.694
        >>> kesten_tail_index(np.array([0.5, 3.0]), 1.0)
        Traceback (most recent call last):
        ...
        ValueError: SGD has no stationary law at lr = 1: E log|1 − lr·h| = 0 is not negative.
    """
    h = np.asarray(curvatures, dtype=float).ravel()
    if not h.size or not np.isfinite(h).all() or not lr > 0:
        raise ValueError("kesten_tail_index needs at least one curvature, all finite, and lr > 0.")
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(1 - lr * h))
    _held(float(logs.mean()), lr)
    if logs.max() <= 0:
        return math.inf
    top = float(logs.max())

    def moment(beta: float) -> float:  # log E|1 − lr·h|^β
        return beta * top + math.log(float(np.exp(beta * (logs - top)).mean()))

    return _root(moment)


def gaussian_tail_index(variance: float, lr: float, batch_size: int) -> TailIndex:
    """The same for inputs x ~ N(0, a), where h = a·χ²_S/S, by quadrature.

    Args:
        variance: a.
        lr: learning rate.
        batch_size: S.

    Returns:
        β with the two approximations.

    Raises:
        ValueError: if an argument is not positive, or there is no stationary law.

    Source: arXiv 2102.05375 (E9).

    Example:
        >>> [round(gaussian_tail_index(1.0, 1.0, s).index, 2) for s in (1, 2, 4, 8, 16)]
        [1.09, 2.0, 3.5, 6.2, 11.42]
    """
    from scipy.integrate import quad
    from scipy.special import gammaln, xlogy

    if not (variance > 0 and lr > 0 and batch_size >= 1):
        raise ValueError(f"variance, lr and batch_size must be positive, got {variance!r}, {lr!r}, {batch_size!r}.")
    scale, half = lr * variance / batch_size, batch_size / 2

    def mean(function: Callable[[float], float]) -> float:
        """Over r = √χ², whose density has no pole."""

        def weighted(r: float) -> float:
            log = float(xlogy(batch_size - 1, r)) - r * r / 2 - (half - 1) * math.log(2) - float(gammaln(half))
            return math.exp(log) * function(abs(1 - scale * r * r))

        zero, end = 1 / math.sqrt(scale), math.sqrt(batch_size) + 14 + math.sqrt(8 * batch_size)
        edges = [0.0, zero, end] if zero < end else [0.0, end]
        parts = [quad(weighted, a, b, limit=400, epsabs=1e-12, epsrel=1e-11)[0] for a, b in pairwise(edges)]
        return float(sum(parts))

    _held(mean(lambda f: math.log(f) if f > 0 else 0.0), lr)
    index = _root(lambda beta: math.log(mean(lambda f: f**beta)))
    return TailIndex(index, 2 / scale - batch_size, 2 / scale + 1)


def _root(log_moment: Callable[[float], float]) -> float:
    """Positive root of a convex function that is 0 at 0 and falls there."""
    from scipy.optimize import brentq

    high = 1.0
    while log_moment(high) < 0:
        high *= 2
        if high > _LARGEST:
            return math.inf
    low = high / 2
    while log_moment(low) >= 0:
        low /= 2
        if low < 1e-9:
            return 0.0
    return float(brentq(log_moment, low, high, xtol=1e-10))


def _held(exponent: float, lr: float) -> None:
    if exponent >= -1e-12:
        raise ValueError(f"SGD has no stationary law at lr = {lr:g}: E log|1 − lr·h| = {exponent:.3g} is not negative.")
