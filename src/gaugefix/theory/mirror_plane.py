"""Stability of a mirror plane: when weight decay makes Oᵀθ = 0 attract.

On the plane the Hessian splits, and the normal coordinates z = Oᵀθ obey z' = (I − η(H_O + λ)) z under gradient descent
with PyTorch's weight decay λ (arXiv 2309.16932, weight-decay theorem; its γ is λ/2).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def critical_decay(curvature: Float[Array, " k"]) -> float:
    """Weight decay above which the plane is locally stable: max(0, −λ_min(H_O)).

    Args:
        curvature: eigenvalues of the O-block H_O = OᵀHO of the data loss, without weight decay.

    Returns:
        λ_c in PyTorch's convention; γ_c of the paper is half of it.

    Raises:
        ValueError: if there is no eigenvalue.

    Example:
        >>> critical_decay(np.array([-0.02, 0.3]))
        0.02
    """
    if not np.size(curvature):
        raise ValueError("critical_decay needs at least one eigenvalue.")
    return max(0.0, -float(np.min(curvature)))


def growth_rates(curvature: Float[Array, " k"], *, lr: float, weight_decay: float = 0.0) -> Float[Array, " k"]:
    """Growth of log|z_i| per step of gradient descent, log|1 − η(h_i + λ)|; negative is collapse.

    Args:
        curvature: eigenvalues h_i of the O-block of the data loss.
        lr: η.
        weight_decay: λ.

    Returns:
        ``(k,)``; −inf where a single step lands on the plane.

    Example:
        >>> growth_rates(np.array([-0.3, 0.5]), lr=0.1, weight_decay=0.1).round(4)
        array([ 0.0198, -0.0619])
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(1.0 - lr * (np.asarray(curvature) + weight_decay))))
