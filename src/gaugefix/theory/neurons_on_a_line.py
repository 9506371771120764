"""Many scalar neurons under gradient descent, L = ½(mean_i φ(θ_i) − y)²: when do two of them change places?

With a step of lr·n for n neurons every neuron follows the same map, θ ↦ θ − lr·r·φ'(θ) with r = mean φ − y. It keeps
the order of all neurons exactly if its slope 1 − lr·r·φ''(θ) is positive at all of them (arXiv 2510.02670).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def order_keeping_lr(error: float, second_derivatives: Float[np.ndarray, " n"]) -> float:
    """Learning rate below which no two neurons change places: 1/max_i r·φ''(θ_i).

    Args:
        error: r = mean φ − y.
        second_derivatives: φ''(θ_i) of every neuron, or on a fine grid of where they lie.

    Returns:
        The learning rate; inf if r·φ'' is positive nowhere, so that neurons never approach each other.

    Source: arXiv 2510.02670, derived for this model.

    Example:
        >>> theta = np.linspace(-3, 3, 601)
        >>> round(order_keeping_lr(-2.0, -np.sin(theta)), 4)
        0.5
    """
    largest = float((error * np.asarray(second_derivatives, dtype=float)).max(initial=-math.inf))
    return 1 / largest if largest > 0 else math.inf


def reversed_share(
    lr: float | Float[np.ndarray, " k"], error: float, second_derivatives: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " k"]:
    """Share of the neurons whose neighbourhood one step turns over: where the slope 1 − lr·r·φ'' is negative.

    Args:
        lr: learning rates.
        error: r.
        second_derivatives: φ''(θ_i) of every neuron.

    Returns:
        One share for each learning rate, 0 up to `order_keeping_lr`.

    Source: arXiv 2510.02670, derived for this model.

    Example:
        >>> reversed_share(np.array([0.4, 1.0]), -2.0, -np.sin(np.linspace(-3, 3, 6001))).round(2).tolist()
        [0.0, 0.35]
    """
    slopes = 1 - np.atleast_1d(lr)[:, None] * error * np.asarray(second_derivatives, dtype=float)
    return np.asarray((slopes < 0).mean(axis=1))
