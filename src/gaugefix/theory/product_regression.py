"""Regression through a product of two weights, y ≈ u·w·x: the smallest model with a collapse.

Its loss, in PyTorch's convention for the weight decay λ, is

    L(u, w) = E(uwx − y)² + (λ/2)(u² + w²),    a = E x²,  b = E xy.

The sign flip (u, w) → −(u, w) makes L even, so weight decay acts on s = |uw| as a linear penalty and the origin
wins at a sharp threshold.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "*shape"] | float


def product_minimum(a: Numbers, b: Numbers, weight_decay: Numbers) -> Float[np.ndarray, "*shape"]:
    """The product uw at the global minimum, sign(b)·max(|b| − λ/2, 0)/a.

    Args:
        a: E x², positive.
        b: E xy.
        weight_decay: λ.

    Returns:
        uw, in the broadcast shape; a soft threshold, exactly as of an L1 penalty λ on the product.

    Raises:
        ValueError: if ``a`` is not positive or ``weight_decay`` is negative.

    Source: arXiv 2309.16932, equivalence with L1; arXiv 2210.01212.

    Example:
        >>> product_minimum(1.0, 0.7, np.array([0.0, 0.4, 2.0]))
        array([0.7, 0.5, 0. ])
    """
    if np.any(np.asarray(a) <= 0):
        raise ValueError(f"a = E x² must be positive, got {a!r}.")
    if np.any(np.asarray(weight_decay) < 0):
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay!r}.")
    return np.sign(b) * np.maximum(np.abs(b) - np.asarray(weight_decay) / 2, 0.0) / a


def product_growth(b: Numbers, lr: float, weight_decay: Numbers) -> Float[np.ndarray, "*shape"]:
    """Factor by which one step of gradient descent multiplies a small mode, 1 + lr·(2|b| − λ).

    The mode is u = ±w with the sign of b. Below 1 the origin attracts: λ_c = 2|b|.

    Args:
        b: E xy.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        The factor, in the broadcast shape.

    Source: arXiv 2309.16932, collapse by weight decay.

    Example:
        >>> float(product_growth(0.5, 0.1, 1.0))
        1.0
    """
    return np.asarray(1 + lr * (2 * np.abs(b) - np.asarray(weight_decay)))


def relearning_slope(decay: Numbers, growth: Numbers) -> Float[np.ndarray, "*shape"]:
    """Extra steps of relearning per step spent collapsing, |log decay| / log growth.

    A mode that shrank by the factor ``decay`` per step for T₁ steps and then grows by ``growth`` per step needs
    T₂ = T₁·slope + const steps to come back: plasticity is lost in proportion to the time spent collapsed.

    Args:
        decay: factor per step during the collapse, in (0, 1).
        growth: factor per step afterwards, above 1.

    Returns:
        dT₂/dT₁.

    Raises:
        ValueError: if the mode does not shrink first and grow then.

    Source: arXiv 2309.16932, loss of plasticity.

    Example:
        >>> float(relearning_slope(0.97, 1.04))
        0.776...
    """
    if np.any((np.asarray(decay) <= 0) | (np.asarray(decay) >= 1)) or np.any(np.asarray(growth) <= 1):
        raise ValueError(f"decay must be in (0, 1) and growth above 1, got {decay!r} and {growth!r}.")
    return -np.log(decay) / np.log(growth)
