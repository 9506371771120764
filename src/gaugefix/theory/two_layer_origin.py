"""A two-layer scalar network f = u·σ(wx), σ'(0) = 1, at its origin under minibatch noise: five phases of SGD.

With the squared error ½(f − y)² and the batch mean χ of xy, the modes u + w and u − w decouple beside the origin and
are multiplied by 1 + lr·χ − lr·λ and 1 − lr·χ − lr·λ. For E χ > 0 the first is the correct direction.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from jaxtyping import Float

from gaugefix.theory.multiplicative_noise import lyapunov_exponent, mean_square_growth

Phase = Literal["Ib", "Ia", "II", "III", "IV"]


def origin_exponents(signals: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> tuple[float, float]:
    """Growth per step of the modes u + w and u − w, Λ± = E log|1 ± lr·χ − lr·λ|.

    Args:
        signals: χ, the mean of xy in every minibatch.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        Λ₊ and Λ₋.

    Source: arXiv 2303.13093 (L7).

    Example:
        >>> plus, minus = origin_exponents(np.array([2.0, -1.0]), lr=0.1)
        >>> round(plus, 4), round(minus, 4)
        (0.0385, -0.0639)
    """
    chi = np.asarray(signals, dtype=float)
    return lyapunov_exponent(-chi, lr, weight_decay), lyapunov_exponent(chi, lr, weight_decay)


def origin_phase(signals: Float[np.ndarray, " n"], lr: float, weight_decay: float = 0.0) -> Phase:
    """Where SGD goes from the origin.

    Args:
        signals: χ, the mean of xy in every minibatch, with a positive mean.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        "Ib" correct learning, stable in mean square; "Ia" correct, stable only in probability; "II" the incorrect
        direction is learned; "III" collapse to the origin; "IV" both directions grow.

    Raises:
        ValueError: if the mean of the signals is not positive.

    Source: arXiv 2303.13093 (L8).

    Example:
        >>> [origin_phase(np.array([2.0, -1.0]), lr) for lr in (0.3, 0.45, 0.6, 0.9, 1.5)]
        ['Ib', 'Ia', 'III', 'II', 'IV']
    """
    if not np.mean(signals) > 0:
        raise ValueError(f"origin_phase needs signals with a positive mean, got {np.mean(signals):g}; flip their sign.")
    plus, minus = origin_exponents(signals, lr, weight_decay)
    if plus > 0:
        if minus > 0:
            return "IV"
        return "Ib" if mean_square_growth(signals, lr, weight_decay) < 1 else "Ia"
    return "II" if minus > 0 else "III"


def two_layer_phase(chi: Float[np.ndarray, " n"], lr: float, batch_size: int = 1, weight_decay: float = 0.0) -> Phase:
    """The phase of SGD with batches drawn from given samples.

    Args:
        chi: xy of the samples, equally likely, with a positive mean.
        lr: learning rate.
        batch_size: B; all n^B batches are listed, up to a million.
        weight_decay: λ.

    Returns:
        As `origin_phase`.

    Source: arXiv 2303.13093 (L8).

    Example:
        >>> [two_layer_phase(np.array([2.0, -1.0]), 0.9, b) for b in (1, 2, 3)]  # noise does it, and goes with 1/B
        ['II', 'III', 'Ib']
    """
    return origin_phase(batch_means(chi, batch_size), lr, weight_decay)


def batch_means(values: Float[np.ndarray, " n"], batch_size: int) -> Float[np.ndarray, " m"]:
    """Means over all n^B equally likely batches drawn with replacement; for small n^B.

    Args:
        values: of the samples, equally likely.
        batch_size: B.

    Returns:
        ``(n**B,)``.

    Raises:
        ValueError: if there are more than a million batches.

    Example:
        >>> batch_means(np.array([2.0, -1.0]), 2)
        array([ 2. ,  0.5,  0.5, -1. ])
    """
    values = np.asarray(values, dtype=float)
    if len(values) ** batch_size > 1_000_000:
        raise ValueError(f"{len(values)}^{batch_size} batches are too many to list; draw some at random.")
    return np.array([np.mean(batch) for batch in itertools.product(values, repeat=batch_size)])
