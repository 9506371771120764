"""A linear network of two layers learns the singular values of its target one after the other, each by a jump.

Gradient flow on ½‖W₂W₁ − T‖² from balanced weights ε along the singular vectors of T = Σ s_i u_i v_iᵀ keeps W₂W₁
diagonal there, and every mode m obeys ṁ = 2m(s − m) from ε². As long as a mode is small the hidden layer can be rotated
in it: with h hidden units the i-th jump breaks O(h − i + 1) to O(h − i) (arXiv 2502.05300).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def mode_strength(
    times: float | Float[np.ndarray, "*t"], singular_value: float | Float[np.ndarray, "*t"], start: float
) -> Float[np.ndarray, "*t"]:
    """Strength of a mode, s·e^(2st)/(e^(2st) − 1 + s/ε²).

    Args:
        times: t = learning rate times steps.
        singular_value: s > 0 of the target.
        start: ε, size of the weights at the start.

    Returns:
        Broadcast shape; from ε² at t = 0 to s.

    Source: arXiv 2502.05300, derived for this model.

    Example:
        >>> mode_strength(np.array([0.0, 100.0]), 2.0, 0.1).round(6).tolist()
        [0.01, 2.0]
    """
    s = np.asarray(singular_value, dtype=float)
    fade = np.exp(-2 * s * np.asarray(times, dtype=float))
    return np.asarray(s / (1 + (s / start**2 - 1) * fade))


def half_rise_time(singular_value: float | Float[np.ndarray, "*n"], start: float) -> Float[np.ndarray, "*n"]:
    """Time at which a mode reaches half of its singular value, ln(s/ε² − 1)/(2s).

    Args:
        singular_value: s > 0 of the target.
        start: ε, size of the weights at the start.

    Returns:
        In the shape of ``singular_value``; 0 for a mode that starts beyond the half.

    Raises:
        ValueError: if a singular value or ε is not positive.

    Source: arXiv 2502.05300, derived for this model.

    Example:
        >>> half_rise_time(np.array([4.0, 1.0]), 1e-3).round(3).tolist()
        [1.9, 6.908]
    """
    s = np.asarray(singular_value, dtype=float)
    if not (np.all(s > 0) and start > 0):
        raise ValueError(f"half_rise_time: singular values and start must be positive, got {s.tolist()} and {start!r}.")
    return np.asarray(np.log(np.maximum(s / start**2 - 1, 1.0)) / (2 * s))
