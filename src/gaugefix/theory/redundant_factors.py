"""A weight written as a product w = u·v: weight decay on the factors is an L1 penalty on the weight, and how it dies.

With PyTorch's weight decay λ on both factors, (λ/2)(u² + v²) ≥ λ|uv| with equality at |u| = |v|. A weight whose loss
gradient g = ∂L/∂w stays below λ in absolute value goes to zero: near zero the modes p = u + v and m = u − v obey

    p ← p − η(λ + g)p,    m ← m − η(λ − g)m,    w = (p² − m²)/4,

so the slower mode shrinks by 1 − η(λ − |g|) per step and the weight by its square. The same holds for a scalar times a
vector (w is the norm of the group, g the norm of its gradient) and for a singular value of UVᵀ.

Source: arXiv 2210.01212; arXiv 2309.16932, section on differentiable constraints.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "*shape"] | float


def factor_decay(
    strength: Numbers, lr: Numbers, *, momentum: Numbers = 0.0, gradient: Numbers = 0.0
) -> Float[np.ndarray, "*shape"]:
    """Factor by which one step of SGD multiplies the slower mode of a dying weight.

    Without momentum it is |1 − ηh|, h = λ − |g|. Heavy-ball momentum μ makes it the largest root modulus of
    x² − (1 + μ − ηh)x + μ = 0, about 1 − ηh/(1 − μ) for small ηh.

    Args:
        strength: weight decay λ on the factors, the L1 coefficient of the product.
        lr: learning rate η.
        momentum: μ in [0, 1).
        gradient: g = ∂L/∂w of the data loss at w = 0; for a group, the norm of its gradient.

    Returns:
        The factor, in the broadcast shape; 1 or more means that the weight does not die (|g| ≥ λ, or a learning rate
        too large for the mode to be stable).

    Raises:
        ValueError: if ``strength`` or ``lr`` is negative, or ``momentum`` is not in [0, 1).

    Source: arXiv 2210.01212; the roots for momentum are derived here.

    Example:
        >>> float(factor_decay(0.1, 0.5))
        0.95
        >>> float(factor_decay(0.1, 0.5, gradient=0.2)) > 1
        True
    """
    strength, lr, momentum, gradient = np.broadcast_arrays(*map(np.asarray, (strength, lr, momentum, gradient)))
    for name, value in (("strength", strength), ("lr", lr)):
        if np.any(value < 0):
            raise ValueError(f"{name} must be >= 0, got {value!r}.")
    if np.any((momentum < 0) | (momentum >= 1)):
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
    trace = 1 + momentum - lr * (strength - np.abs(gradient))
    discriminant = trace**2 - 4 * momentum
    real = (np.abs(trace) + np.sqrt(np.maximum(discriminant, 0.0))) / 2
    return np.asarray(np.where(discriminant >= 0, real, np.sqrt(momentum)))


def steps_to_zero(
    start: Numbers,
    tolerance: Numbers,
    strength: Numbers,
    lr: Numbers,
    *,
    momentum: Numbers = 0.0,
    gradient: Numbers = 0.0,
) -> Float[np.ndarray, "*shape"]:
    """Steps until a dying weight is below a tolerance, log(start/tolerance) / (−2 log r), r of `factor_decay`.

    At zero gradient this is about (1 − μ)/(2ηλ)·log(start/tolerance): a run must be several times (1 − μ)/(ηλ) steps
    long, or nothing becomes sparse.

    Args:
        start: |w| now.
        tolerance: |w| that counts as zero.
        strength: weight decay λ on the factors.
        lr: learning rate η.
        momentum: μ in [0, 1).
        gradient: g = ∂L/∂w of the data loss at w = 0.

    Returns:
        The number, not rounded, in the broadcast shape; 0 if it is there already, inf if the weight does not die.

    Raises:
        ValueError: if ``tolerance`` is not positive, or as `factor_decay` does.

    Source: arXiv 2210.01212.

    Example:
        >>> float(steps_to_zero(1.0, 1e-6, strength=1e-2, lr=0.1).round())
        6904.0
    """
    if np.any(np.asarray(tolerance) <= 0):
        raise ValueError(f"tolerance must be positive, got {tolerance!r}.")
    rate = factor_decay(strength, lr, momentum=momentum, gradient=gradient)
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.maximum(np.log(np.asarray(start) / tolerance), 0.0)
        return np.where(ahead == 0, 0.0, np.where(rate < 1, ahead / (-2 * np.log(rate)), np.inf))
