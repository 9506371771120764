"""The learning rates at which a mode with random curvature is held, exactly for a finite set of curvatures.

Between two poles 1/k_i the exponent mean log|1 − lr·k_i| is concave and it falls to −∞ at every pole. So all of its
sign changes can be found one interval at a time; nothing is missed between the points of a grid.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from gaugefix.theory.multiplicative_noise import critical_lr_estimate

_BISECTIONS = 60
_CHUNK = 32


def stability_window(
    curvatures: Float[np.ndarray, " n"], weight_decay: float = 0.0, *, resolution: float = 1e-6
) -> tuple[float, float]:
    """First interval of learning rates with E log|1 − lr·(h + λ)| < 0.

    Below it a saddle repels, inside it attracts, above it the mode diverges. With a finite sample every pole
    lr = 1/(h_i + λ) has a window of its own, exponentially narrow where the other samples push outwards; those below
    ``resolution`` are passed over.

    Args:
        curvatures: h of every minibatch along the mode.
        weight_decay: λ.
        resolution: windows narrower than this fraction of the learning rate do not count.

    Returns:
        Both ends; the lower is 0 if the mean of h + λ is not negative (a minimum). (inf, inf) if no learning rate
        holds the mode, as when no curvature is positive.

    Raises:
        ValueError: if there is no curvature or one is not finite.

    Source: arXiv 2107.11774 (C1), 2303.13093 (L1, L5).

    Example:
        >>> low, high = stability_window(np.array([0.9, -1.0]))  # a maximum on average: mean −0.05
        >>> round(low, 4), round(high, 4)
        (0.1111, 1.5473)
    """
    k = np.asarray(curvatures, dtype=float).ravel() + weight_decay
    if not k.size or not np.isfinite(k).all():
        raise ValueError("stability_window needs at least one curvature, all of them finite.")
    poles = np.unique(1 / k[k > np.finfo(float).tiny])  # the inverse of a smaller one is infinite
    if not poles.size:
        return math.inf, math.inf
    merged = poles[np.append(True, np.diff(poles) > resolution * poles[:-1])]
    if k.mean() >= 0:
        return 0.0, _upper_end(k, merged, 0)
    for start in range(0, len(merged), _CHUNK):
        some = merged[start : start + _CHUNK]
        left, right = _exponent(k, some * (1 - resolution)), _exponent(k, some * (1 + resolution))
        wide = np.flatnonzero((left < 0) | (right < 0))
        if wide.size:
            i = start + int(wide[0])
            low = merged[i] if left[wide[0]] >= 0 else _left_root(k, merged, i, resolution)
            return float(low), _upper_end(k, merged, i + 1)
    return math.inf, math.inf


def critical_lr(curvatures: Float[np.ndarray, " n"], weight_decay: float = 0.0, exact: bool = True) -> float:
    """Learning rate above which gradient noise holds SGD at a saddle.

    Args:
        curvatures: h of every minibatch along the mode, without weight decay.
        weight_decay: λ.
        exact: the root of E log|1 − lr·(h + λ)|; otherwise the second order −2 E(h + λ)/E(h + λ)², which is an
            average and hence stable for a few curvatures.

    Returns:
        The threshold; 0 if E(h + λ) ≥ 0, inf if no learning rate attracts.

    Source: arXiv 2107.11774 (C1), 2309.16932.

    Example:
        >>> h = np.array([0.9, -1.0])
        >>> round(critical_lr(h), 6), round(critical_lr(h, exact=False), 6)
        (0.111111, 0.110497)
    """
    if exact:
        return stability_window(curvatures, weight_decay)[0]
    k = np.asarray(curvatures, dtype=float) + weight_decay
    square = float((k**2).mean())
    return critical_lr_estimate(float(k.mean()), square) if square > 0 else 0.0


def _exponent(k: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Mean over k of log|1 − lr·k| for every learning rate."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(1.0 - np.multiply.outer(lr, k))).mean(axis=-1))


def _slope(k: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Its derivative."""
    with np.errstate(divide="ignore"):
        return np.asarray((-k / (1.0 - np.multiply.outer(lr, k))).mean(axis=-1))


def _bisect(k: np.ndarray, a: float, b: float) -> float:
    """The sign change of the exponent between a and b."""
    sign = _exponent(k, np.array(b)) > 0
    for _ in range(_BISECTIONS):
        middle = (a + b) / 2
        if (_exponent(k, np.array(middle)) > 0) == sign:
            b = middle
        else:
            a = middle
    return (a + b) / 2


def _left_root(k: np.ndarray, poles: np.ndarray, i: int, resolution: float) -> float:
    """Where the exponent turns negative before pole i."""
    before = poles[i - 1] * (1 + resolution) if i else 0.0
    top = float(_peaks(k, np.array([before]), np.array([poles[i] * (1 - resolution)]))[0])
    return _bisect(k, top, float(poles[i] * (1 - resolution)))


def _peaks(k: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where the exponent is largest in intervals without a pole inside."""
    for _ in range(_BISECTIONS):
        middle = (a + b) / 2
        rising = _slope(k, middle) > 0
        a, b = np.where(rising, middle, a), np.where(rising, b, middle)
    return np.asarray((a + b) / 2)


def _upper_end(k: np.ndarray, poles: np.ndarray, start: int) -> float:
    """The first sign change to positive behind pole ``start`` − 1."""
    edges = np.append(0.0, poles)
    for first in range(start, len(poles), _CHUNK):
        stop = min(first + _CHUNK, len(poles))
        a, b = edges[first:stop], edges[first + 1 : stop + 1]
        if first == 0:  # at a minimum the exponent falls from zero on: nothing before the first pole
            a, b = a[1:], b[1:]
        peaks = _peaks(k, a, b)
        above = np.flatnonzero(_exponent(k, peaks) > 0)
        if above.size:
            return _bisect(k, float(np.nextafter(a[above[0]], np.inf)), float(peaks[above[0]]))
    high = 2 * edges[-1]
    while _exponent(k, np.array(high)) <= 0:
        high *= 2
    return _bisect(k, float(np.nextafter(edges[-1], np.inf)), float(high))
