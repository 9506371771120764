"""SGD on E(uwx − y)² beside u = w = 0: from which learning rate on it stays there, and how near it comes below.

Beside zero the mode u + w is multiplied by 1 + 2 lr·(z̄ − λ/2) with the batch mean z̄ of z = xy. Weight decay is
PyTorch's λ; the source writes γ = λ/2.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from gaugefix.theory.multiplicative_noise import exponent_root


def collapse_lr(
    signals: Float[np.ndarray, " n"], batch_size: int = 1, weight_decay: float = 0.0, *, exact: bool = True
) -> float:
    """Learning rate above which SGD collapses the product u·w of E(uwx − y)² to zero.

    Beside zero the mode u + w is multiplied by 1 + 2 lr·(z̄ − λ/2) with the batch mean z̄ of z = xy. Exact, the
    exponent E log|1 + 2 lr·(z̄ − λ/2)| vanishes; to second order lr = (E z − λ/2)/E(z̄ − λ/2)²; in the continuous-time
    limit T_c = (E z − λ/2)/Var z, `StationaryDistribution.collapse_temperature`.

    Args:
        signals: z̄ of many minibatches, or z of single samples if ``batch_size`` is above 1; then batches are taken as
            Gaussian beyond what their first two moments say only in the estimate (``exact=False``).
        batch_size: samples in a batch of ``signals``.
        weight_decay: λ.
        exact: solve the exponent; needs the batch means themselves, ``batch_size=1``.

    Returns:
        The learning rate; 0 if E z ≤ λ/2 (every learning rate collapses); inf if the exponent never turns negative.

    Raises:
        ValueError: if ``exact`` and ``batch_size`` is not 1.

    Source: arXiv 2308.06671 (result 8).

    Example:
        >>> z = np.array([2.0, -1.0])
        >>> round(collapse_lr(z), 4), round(collapse_lr(z, exact=False), 4)
        (0.25, 0.2)
    """
    if exact and batch_size != 1:
        raise ValueError(
            "The exact threshold needs the batch means: give them as signals (theory.batch_means lists them for a few "
            "samples) with batch_size=1, or ask for exact=False."
        )
    z = np.asarray(signals, dtype=float) - weight_decay / 2
    mean = float(z.mean())
    if mean <= 0:
        return 0.0
    estimate = mean / (float(z.var()) / batch_size + mean**2)
    if not exact:
        return estimate

    def exponent(lr: float) -> float:
        return float(np.log(np.maximum(np.abs(1 + 2 * lr * z), 1e-300)).mean())

    low = high = estimate
    while exponent(low) <= 0:
        low /= 2
    while exponent(high) >= 0 and high < 1e6 * estimate:
        high *= 1.05  # small steps: beyond the window of collapse the exponent is positive again
    return exponent_root(exponent, low, high) if high < 1e6 * estimate else math.inf


def zero_exponent(signals: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> float:
    """Exponent κ of P(v ≤ ε) ~ ε^κ beside zero at a finite learning rate, 0 at `collapse_lr`.

    With factors a = |1 + 2 lr·(z − λ/2)| of the mode u + w, E a^(−2κ) = 1. In the continuous-time limit
    κ = (T_c/T − 1)/2 (without weight decay, up to (E z)²).

    Args:
        signals: z = xy of every minibatch.
        lr: learning rate, below `collapse_lr`.
        weight_decay: λ.

    Returns:
        κ; nan above the collapse, and where κ would be 1/2 or more (there it has no such power law).

    Source: derived as in arXiv 2308.06671, result 8, for multiplicative processes with a reflecting scale.

    Example:
        >>> z = np.array([2.0, -1.0])
        >>> round(zero_exponent(z, 0.9 * collapse_lr(z)), 3)
        0.057
    """
    from scipy.optimize import brentq  # late: slow to import

    logs = np.log(np.maximum(np.abs(1 + 2 * lr * (np.asarray(signals, dtype=float) - weight_decay / 2)), 1e-300))

    def excess(k: float) -> float:
        return float(np.log(np.mean(np.exp(-k * logs))))

    if logs.mean() <= 0 or excess(0.999) <= 0:
        return math.nan
    return float(brentq(excess, 1e-9, 0.999)) / 2
