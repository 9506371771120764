"""The norm of weights that only their direction matters for: noise inflates it, weight decay holds it.

For ℓ(cθ) = ℓ(θ) (weights in front of a normalisation layer, a cosine head) every gradient is orthogonal to θ and falls
as 1/‖θ‖. A step of SGD with weight decay changes ‖θ‖² by the exact law

    ‖θ'‖² = (1 − ηλ)²‖θ‖² + η²‖ĝ‖²,

with G = E‖ĝ‖² at unit norm, so E‖ĝ‖² = G/‖θ‖². Weight decay is PyTorch's λ; the source writes γ = λ/2.

Source: arXiv 2402.07193 (scale symmetry), 2505.12387 (balance).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def scale_norm(norm: float, gradient_sq: float, steps: Float[Array, " n"] | int, *, lr: float) -> Float[Array, " n"]:
    """Growth without weight decay: ‖θ_t‖⁴ = ‖θ₀‖⁴ + 2η²G t, for steps that are small next to ‖θ‖.

    Args:
        norm: ‖θ₀‖.
        gradient_sq: G = E‖ĝ‖² of a minibatch at unit norm.
        steps: t.
        lr: η.

    Returns:
        ‖θ_t‖.

    Raises:
        ValueError: if ``norm`` or ``lr`` is not positive or ``gradient_sq`` is negative.

    Example:
        >>> float(scale_norm(1.0, 2.0, 100, lr=0.1))  # (1 + 2·0.01·2·100)^¼
        1.4953487812212205
    """
    _check(lr=lr, norm=norm)
    if not gradient_sq >= 0:
        raise ValueError(f"gradient_sq must be >= 0, got {gradient_sq!r}.")
    return np.asarray((norm**4 + 2 * lr**2 * gradient_sq * np.asarray(steps, dtype=float)) ** 0.25)


def scale_equilibrium_norm(gradient_sq: float, *, lr: float, weight_decay: float) -> float:
    """Where the norm comes to rest: ‖θ‖⁴ = ηG/(2λ(1 − ηλ/2)).

    Args:
        gradient_sq: G = E‖ĝ‖² of a minibatch at unit norm.
        lr: η.
        weight_decay: λ; without it there is no rest and the answer is inf.

    Returns:
        ‖θ‖.

    Raises:
        ValueError: if ``lr`` is not positive, ``gradient_sq`` or λ is negative, or ηλ ≥ 2 (decay overshoots).

    Example:
        >>> round(scale_equilibrium_norm(5.0, lr=0.1, weight_decay=0.02) ** 4, 3)
        12.513
    """
    _check(lr=lr)
    if not (gradient_sq >= 0 and weight_decay >= 0):
        raise ValueError(f"gradient_sq and weight_decay must be >= 0, got {gradient_sq!r} and {weight_decay!r}.")
    if lr * weight_decay >= 2:
        raise ValueError(f"lr·weight_decay must be below 2, got {lr * weight_decay!r}: lower one of them.")
    if weight_decay == 0:
        return math.inf if gradient_sq > 0 else math.nan
    return float((lr * gradient_sq / (2 * weight_decay * (1 - lr * weight_decay / 2))) ** 0.25)


def angular_step(*, lr: float, weight_decay: float) -> float:
    """Root mean square of the angle by which the direction turns per step at rest, √(2ηλ(1 − ηλ/2)): no gradient in it.

    Args:
        lr: η.
        weight_decay: λ.

    Returns:
        The angle in radians, to leading order in it.

    Raises:
        ValueError: if ``lr`` is not positive, λ is negative, or ηλ ≥ 2.

    Example:
        >>> round(angular_step(lr=0.1, weight_decay=5e-4), 6)
        0.01
    """
    _check(lr=lr)
    if not 0 <= lr * weight_decay < 2:
        raise ValueError(f"lr·weight_decay must be in [0, 2), got {lr * weight_decay!r}.")
    return math.sqrt(2 * lr * weight_decay * (1 - lr * weight_decay / 2))


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")
