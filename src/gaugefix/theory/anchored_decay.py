"""Weight decay towards a point a ≠ 0 in solvable models: what is left of a collapse.

PyTorch's convention, (λ/2)‖θ − a‖²; the paper (arXiv 2408.15495) writes γ = λ/2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Numbers = Float[np.ndarray, "*shape"] | float


def relearning_ceiling(
    target: Numbers, floor: Numbers, b: Numbers, lr: float, weight_decay: float
) -> Float[np.ndarray, "*shape"]:
    """Steps to relearn a product uw after a collapse of any length, with both factors decaying to the point ``floor``.

    The collapsed factors rest at the floor c instead of shrinking for ever. Then u ≈ w grows by 1 + lr·(2b − λ) per
    step, driven by the decay too, from c·(1 + λ/(2b − λ)) to √target:

        T = log(√target / (c(1 + λ/(2b − λ)))) / log(1 + lr·(2b − λ)).

    Args:
        target: uw that counts as learned.
        floor: c > 0, the point of the decay for both factors.
        b: E xy of the new task, above λ/2.
        lr: learning rate.
        weight_decay: λ.

    Returns:
        The number of steps; a few per cent low, because growth slows down near the target.

    Raises:
        ValueError: if the floor is not positive or the new task does not grow.

    Source: arXiv 2408.15495; derived here.

    Example:
        >>> float(relearning_ceiling(0.5, 1e-2, 0.7, 0.05, 0.6).round())
        94.0
    """
    growth = 2 * np.asarray(b) - weight_decay
    if np.any(np.asarray(floor) <= 0) or np.any(growth <= 0):
        raise ValueError(
            f"floor must be positive and 2b above the weight decay, got {floor!r} and 2b − λ = {growth!r}."
        )
    return np.asarray(np.log(np.sqrt(target) / (floor * (1 + weight_decay / growth))) / np.log1p(lr * growth))


def collapsed_columns(
    target: Float[np.ndarray, " n"], anchor: Float[np.ndarray, "d n"], survivors: Float[np.ndarray, "d n"], decay: float
) -> Float[np.ndarray, " collapsed"]:
    """Norms of the columns of W that would be zero, in ¼‖WᵀW − diag(m)‖² + (λ/2)‖W − A‖², to first order in A.

    For m_i < λ the column solves (SSᵀ + (λ − m_i)) w = λA_i, where S are the columns that survive: off their span it is
    λA_i/(λ − m_i), along survivor j it is λA_i/(m_j − m_i). Without the anchor it would be zero.

    Args:
        target: m, positive, any order.
        anchor: A.
        survivors: W, of which the columns with m_i > λ are used.
        decay: λ.

    Returns:
        One norm for each m_i < λ, in order.

    Source: arXiv 2408.15495; derived here.

    Example:
        >>> collapsed_columns(np.array([2.0, 0.5]), np.array([[0.0, 0.0], [0.0, 0.01]]), np.eye(2), 1.0)
        array([0.02])
    """
    alive = np.asarray(target) > decay
    gram = survivors[:, alive] @ survivors[:, alive].T
    off = [
        np.linalg.solve(gram + (decay - m) * np.eye(len(gram)), decay * a)
        for m, a in zip(np.asarray(target)[~alive], anchor.T[~alive], strict=True)
    ]
    return np.asarray(np.linalg.norm(np.array(off), axis=1))
