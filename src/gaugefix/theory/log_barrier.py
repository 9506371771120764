"""Leaving a minimum against noise that is proportional to the loss: the barrier is one of log L, the rate a power law.

For squared error near a minimum with L > 0 the minibatch noise is (2L/B)H. In the time τ = ∫L dt the noise is additive
and the potential log L: the rate of escape depends on the ratio of the losses and not on their difference.

Source: arXiv 2105.09557.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_RARE = 3.0
_POINTS = 4001


@dataclass(frozen=True)
class EscapeEstimate:
    """How long SGD stays in a basin.

    Attributes:
        rate_per_step: probability of leaving in one step; 0 at a minimum without loss, inf beyond n_c.
        expected_steps: its inverse.
        exponent: B/(lr·h*) + 1 − n/2, the power of L_saddle/L_min in the expected time.
        n: number of outlier eigenvalues, the dimensions in which the noise acts.
        n_c: 2(B/(lr·h*) + 1); a basin with n ≥ n_c holds nothing.
        sensitivity: d log rate/d log lr at fixed prefactor, (B/(lr·h*))·log(L_saddle/L_min).
        valid: whether the formula applies.
        warnings: why not, or what to mind.
    """

    rate_per_step: float
    expected_steps: float
    exponent: float
    n: int
    n_c: float
    sensitivity: float
    valid: bool
    warnings: tuple[str, ...]


def log_barrier_escape(
    loss_min: float,
    loss_saddle: float,
    hess_min: Float[np.ndarray, " n"],
    hess_saddle: Float[np.ndarray, " n"],
    lr: float,
    batch_size: int,
    *,
    escape_curvature: float | None = None,
) -> EscapeEstimate:
    """Rate at which SGD leaves a minimum over a saddle.

    Per step

        lr·(|h_s|/2π) √(det H/|det H_s|)·(L_s/L)^−(B/(lr·h*) + 1 − n/2),

    with the determinants over the n outlier eigenvalues and h_s the negative one at the saddle. Counted on real SGD the
    exponent is right to about 20 %, because rare escapes are large deviations of a discrete chain.

    Args:
        loss_min: L of the data at the minimum, without weight decay; squared error with the factor ½.
        loss_saddle: L at the saddle, or the highest on a path to another minimum.
        hess_min: the n outlier eigenvalues of the Hessian at the minimum.
        hess_saddle: those at the saddle, exactly one negative.
        lr: learning rate.
        batch_size: B.
        escape_curvature: h*, curvature at the minimum along the way out; default the geometric mean of ``hess_min``.

    Returns:
        The estimate, with ``valid=False`` and the reasons where it does not apply.

    Raises:
        ValueError: if the saddle is not higher than the minimum, has no negative eigenvalue, or an argument is out of
            range.

    Source: arXiv 2105.09557 (P4, P5).

    Example:
        >>> found = log_barrier_escape(0.1, 0.35, np.array([2.0]), np.array([-1.0]), lr=0.02, batch_size=4)
        >>> round(found.exponent, 1), found.valid
        (100.5, True)
        >>> log_barrier_escape(0.0, 0.35, np.array([2.0]), np.array([-1.0]), lr=0.02, batch_size=4).rate_per_step
        0.0
    """  # noqa: DOC502
    h, saddle = np.atleast_1d(np.asarray(hess_min, dtype=float)), np.atleast_1d(np.asarray(hess_saddle, dtype=float))
    _check(loss_min, loss_saddle, h, saddle, lr, batch_size, escape_curvature)
    typical = escape_curvature or float(np.exp(np.log(h).mean()))
    ratio = batch_size / (lr * typical)
    n, n_c = len(h), 2 * (ratio + 1)
    exponent = ratio + 1 - n / 2
    if loss_min <= 0:
        note = "L = 0 at the minimum: there is no gradient noise, SGD stays for ever"
        return EscapeEstimate(0.0, math.inf, exponent, n, n_c, math.inf, True, (note,))
    log_ratio = math.log(loss_saddle / loss_min)
    if n >= n_c:
        note = f"{n} outliers are not fewer than n_c = {n_c:.3g}: noise drives SGD out at once"
        return EscapeEstimate(math.inf, 0.0, exponent, n, n_c, ratio * log_ratio, False, (note,))
    notes = []
    if ratio * log_ratio < _RARE:
        notes.append(
            f"no barrier: (B/lr·h*)·log(L_s/L) = {ratio * log_ratio:.2g} is below {_RARE:g}, escape is not rare"
        )
    if (saddle < 0).sum() > 1:
        notes.append(f"{int((saddle < 0).sum())} negative eigenvalues at the saddle: there is a lower way out")
    log_rate = math.log(lr) + _log_prefactor(h, saddle) - exponent * log_ratio
    rate, steps = math.exp(min(log_rate, 700.0)), math.exp(min(-log_rate, 700.0))
    return EscapeEstimate(rate, steps, exponent, n, n_c, ratio * log_ratio, not notes, tuple(notes))


def min_batch_to_stay(
    steps: float,
    loss_min: float,
    loss_saddle: float,
    hess_min: Float[np.ndarray, " n"],
    hess_saddle: Float[np.ndarray, " n"],
    lr: float,
) -> float:
    """Batch size above which SGD is expected to stay in a basin for a number of steps, `log_barrier_escape` inverted.

    Args:
        steps: expected time in the basin.
        loss_min: as for `log_barrier_escape`, above zero.
        loss_saddle: likewise.
        hess_min: likewise.
        hess_saddle: likewise.
        lr: learning rate.

    Returns:
        B, not rounded; 0 if every batch size stays.

    Raises:
        ValueError: if ``steps`` or ``loss_min`` is not positive.

    Source: arXiv 2105.09557 (P4).

    Example:
        >>> round(min_batch_to_stay(1e6, 0.1, 0.35, np.array([2.0]), np.array([-1.0]), lr=0.1), 2)
        1.5
    """
    h, saddle = np.atleast_1d(np.asarray(hess_min, dtype=float)), np.atleast_1d(np.asarray(hess_saddle, dtype=float))
    _check(loss_min, loss_saddle, h, saddle, lr, 1, None)
    if not steps > 0 or not loss_min > 0:
        raise ValueError(f"steps and loss_min must be positive, got {steps!r} and {loss_min!r}.")
    exponent = (math.log(steps * lr) + _log_prefactor(h, saddle)) / math.log(loss_saddle / loss_min)
    return max(0.0, (exponent - 1 + len(h) / 2) * lr * float(np.exp(np.log(h).mean())))


def lr_to_escape(
    steps: float,
    loss_min: float,
    loss_saddle: float,
    hess_min: Float[np.ndarray, " n"],
    hess_saddle: Float[np.ndarray, " n"],
    batch_size: int,
) -> float:
    """Learning rate at which SGD is expected to leave a basin within a number of steps.

    Args:
        steps: expected time in the basin.
        loss_min: as for `log_barrier_escape`, above zero.
        loss_saddle: likewise.
        hess_min: likewise.
        hess_saddle: likewise.
        batch_size: B.

    Returns:
        The learning rate; ask `log_barrier_escape` whether the formula is valid there.

    Raises:
        ValueError: if ``steps`` or ``loss_min`` is not positive.

    Source: arXiv 2105.09557 (P4).

    Example:
        >>> lr = lr_to_escape(1e4, 0.1, 0.35, np.array([2.0]), np.array([-1.0]), 4)
        >>> found = log_barrier_escape(0.1, 0.35, np.array([2.0]), np.array([-1.0]), lr, 4)
        >>> round(found.expected_steps)
        10000
    """
    from scipy.optimize import brentq

    h, saddle = np.atleast_1d(np.asarray(hess_min, dtype=float)), np.atleast_1d(np.asarray(hess_saddle, dtype=float))
    _check(loss_min, loss_saddle, h, saddle, 1.0, batch_size, None)
    if not steps > 0 or not loss_min > 0:
        raise ValueError(f"steps and loss_min must be positive, got {steps!r} and {loss_min!r}.")
    log_ratio, typical = math.log(loss_saddle / loss_min), float(np.exp(np.log(h).mean()))

    def gap(log_lr: float) -> float:
        power = batch_size / (math.exp(log_lr) * typical) + 1 - len(h) / 2
        return power * log_ratio - log_lr - _log_prefactor(h, saddle) - math.log(steps)

    return math.exp(float(brentq(gap, -300.0, 300.0, xtol=1e-13)))


def passage_steps(
    s: Float[np.ndarray, " m"],
    slope: Float[np.ndarray, " m"],
    noise: Float[np.ndarray, " m"],
    lr: float,
    start: float,
    end: float,
) -> float:
    """Mean number of steps from one place on a path to another, for any loss and any noise along it.

    The diffusion along the path drifts by −L' and has D = lr·c/2 per unit of lr·steps. With I = −∫L'/D

        ∫_start^end e^−I(y) ∫_{s_0}^y e^I(z)/D(z) dz dy / lr,

    reflecting at the first point. Nothing is assumed about the noise; with c = 2L·h/B it gives `log_barrier_escape`.

    Args:
        s: places in ascending order, from below the start to the end at least.
        slope: L'(s) of what SGD descends, weight decay included.
        noise: c(s), variance of the minibatch gradient along the path, positive.
        lr: learning rate.
        start: from where.
        end: to where, above ``start``.

    Returns:
        The mean time in steps.

    Raises:
        ValueError: if the path does not reach, is not ascending, or has no noise somewhere: there no run passes, see
            `gaugefix.theory.lyapunov_exponent`.

    Source: arXiv 2105.09557; the passage time of a diffusion on a line.

    Example:
        >>> s = np.linspace(-1, 1, 201)
        >>> round(passage_steps(s, np.zeros(201), np.full(201, 2.0), 0.5, -1.0, 1.0), 2)  # L²/2D = 4, in steps of ½
        8.0
    """
    from scipy.interpolate import PchipInterpolator

    s, slope, noise = (np.asarray(v, dtype=float) for v in (s, slope, noise))
    if not (s.ndim == 1 and len(s) > 2 and s.shape == slope.shape == noise.shape and (np.diff(s) > 0).all()):
        raise ValueError("passage_steps needs an ascending s of at least three points, with slope and noise at each.")
    if not s[0] <= start < end <= s[-1] or not lr > 0:
        raise ValueError(f"passage_steps needs {s[0]:g} <= start < end <= {s[-1]:g} and lr > 0.")
    if not (noise > 0).all():
        raise ValueError("The noise vanishes on the path: no run passes by diffusion (a type-II saddle?).")
    x = np.unique(np.concatenate([np.linspace(s[0], end, _POINTS), [start]]))
    d = lr / 2 * np.exp(PchipInterpolator(s, np.log(noise))(x))
    force = -PchipInterpolator(s, slope)(x) / d
    step = np.diff(x)
    potential = np.concatenate([[0.0], np.cumsum(step * (force[1:] + force[:-1]) / 2)])
    cells = np.log(step / 2) + np.logaddexp((potential - np.log(d))[1:], (potential - np.log(d))[:-1])
    inner = np.concatenate([[-np.inf], np.logaddexp.accumulate(cells)]) - potential  # log of e^−I ∫ e^I/D
    outer = np.log(step / 2) + np.logaddexp(inner[1:], inner[:-1])
    total = float(np.logaddexp.reduce(outer[x[:-1] >= start]))
    return math.exp(min(total - math.log(lr), 700.0))


def _log_prefactor(h: np.ndarray, saddle: np.ndarray) -> float:
    """Logarithm of (|h_s|/2π)·√(det H/|det H_s|)."""
    determinants = float(np.log(h).sum() - np.log(np.abs(saddle)).sum())
    return math.log(-float(saddle.min()) / (2 * math.pi)) + determinants / 2


def _check(
    loss_min: float, loss_saddle: float, h: np.ndarray, saddle: np.ndarray, lr: float, batch_size: float,
    escape_curvature: float | None,
) -> None:  # fmt: skip
    if not loss_saddle > max(loss_min, 0.0):
        raise ValueError(f"The saddle must lie above the minimum, got L = {loss_saddle!r} and {loss_min!r}.")
    if h.shape != saddle.shape or h.ndim != 1 or not h.size or not (h > 0).all() or (saddle == 0).any():
        raise ValueError("hess_min must be positive outlier eigenvalues, hess_saddle as many, none of them zero.")
    if not (saddle < 0).any():
        raise ValueError("The saddle has no negative eigenvalue: it is no way out.")
    if not (lr > 0 and batch_size > 0 and (escape_curvature is None or escape_curvature > 0)):
        raise ValueError(f"lr, batch_size and escape_curvature must be positive, got {lr!r}, {batch_size!r}.")
