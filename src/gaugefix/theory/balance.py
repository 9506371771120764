"""The balance of a rescaling pair (u, w): how one optimiser step moves the Noether charge Q = ‖u‖² − ‖w‖².

For every sample the loss obeys ℓ(cu, w/c) = ℓ(u, w), so ⟨u, ĝ_u⟩ = ⟨w, ĝ_w⟩ for every minibatch gradient ĝ, and the
first-order change of Q vanishes. What is left is exact, pathwise, for any batch and step size (arXiv 2308.06671,
the discrete form of its law of balance). Weight decay is PyTorch's λ; the paper's γ is λ/2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def predict_charge_step(
    charge: Float[Array, " n"], gradient_charge: Float[Array, " n"], *, lr: float, weight_decay: float = 0.0
) -> Float[Array, " n"]:
    """One step of SGD: Q' = (1 − ηλ)² Q + η² (‖ĝ_u‖² − ‖ĝ_w‖²).

    Args:
        charge: Q = ‖u‖² − ‖w‖² before the step.
        gradient_charge: ‖ĝ_u‖² − ‖ĝ_w‖² of the minibatch gradient without weight decay.
        lr: η.
        weight_decay: λ.

    Returns:
        Q after the step.

    Example:
        >>> predict_charge_step(np.array([1.0]), np.array([3.0]), lr=0.1)
        array([1.03])
    """
    return np.asarray((1 - lr * weight_decay) ** 2 * charge + lr**2 * gradient_charge)


def predict_momentum_charge_step(
    shifted_charge: Float[Array, " n"],
    charge: Float[Array, " n"],
    gradient_charge: Float[Array, " n"],
    cross_charge: Float[Array, " n"],
    *,
    lr: float,
    momentum: float,
    weight_decay: float = 0.0,
) -> Float[Array, " n"]:
    """One step of heavy-ball SGD, for the charge Q̃ of the shifted parameters θ̃ = θ − (ημ/(1−μ))m.

    With m' = μm + ĝ, θ' = θ − ηm' and a = η/(1−μ), exactly

        Q̃' = Q̃ − 2aλQ + a²(‖ĝ_u‖² − ‖ĝ_w‖²) + 2a²μ(⟨m_u, ĝ_u⟩ − ⟨m_w, ĝ_w⟩).

    Args:
        shifted_charge: Q̃ before the step.
        charge: Q of the unshifted parameters before the step.
        gradient_charge: ‖ĝ_u‖² − ‖ĝ_w‖² of the gradient **with** weight decay, ĝ = ∇ℓ̂ + λθ.
        cross_charge: ⟨m_u, ĝ_u⟩ − ⟨m_w, ĝ_w⟩ with the momentum buffer before the step.
        lr: η.
        momentum: μ in [0, 1).
        weight_decay: λ.

    Returns:
        Q̃ after the step.

    Raises:
        ValueError: if the momentum is not in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
    a = lr / (1 - momentum)
    return np.asarray(
        shifted_charge - 2 * a * weight_decay * charge + a**2 * gradient_charge + 2 * a**2 * momentum * cross_charge
    )


def predict_layerwise_charge_step(
    charge: Float[Array, " n"],
    outgoing_sq: Float[Array, " n"],
    incoming_sq: Float[Array, " n"],
    *,
    lr_outgoing: float,
    lr_incoming: float,
) -> Float[Array, " n"]:
    """One step of SGD with a learning rate per layer and no decay: Q = ‖u‖²/η_u − ‖w‖²/η_w.

    Q' = Q + η_u‖ĝ_u‖² − η_w‖ĝ_w‖².

    Args:
        charge: Q in that definition.
        outgoing_sq: ‖ĝ_u‖².
        incoming_sq: ‖ĝ_w‖².
        lr_outgoing: η_u.
        lr_incoming: η_w.

    Returns:
        Q after the step.

    Example:
        >>> one = np.array([1.0])
        >>> predict_layerwise_charge_step(0 * one, one, one, lr_outgoing=0.2, lr_incoming=0.1)
        array([0.1])
    """
    return np.asarray(charge + lr_outgoing * outgoing_sq - lr_incoming * incoming_sq)
