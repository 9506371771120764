"""Where gradient noise drifts along a valley of minima that no symmetry makes.

Across the valley the noise keeps the weights at a distance, with covariance V from HV + VH = TΣ, and the loss that they
see on average is L + ½Tr[HV]. Its derivative with V held fixed is the drift along the valley,

    dθ/dt = −½ Σ_ij V_ij ∂_i∂_j∇L,      t = lr · steps.

For batches drawn anew in every step this, and not the entropic loss, is right where Σ is not proportional to H; along a
symmetry both agree. Source: the validity note of arXiv 2505.12387; per-sample Σ, T = lr / batch size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from gaugefix.theory.covariances import SINGULAR, checked_covariance

Array = np.ndarray


def valley_covariance(
    hessian: Float[Array, "n n"], noise: Float[Array, "n n"], temperature: float
) -> Float[Array, "n n"]:
    """Stationary covariance V across a valley, HV + VH = TΣ.

    Args:
        hessian: H ≥ 0 at a minimum; its null space is the valley.
        noise: Σ of the per-sample gradients, which has no component along the valley.
        temperature: T = lr / batch size, small next to the inverse curvature.

    Returns:
        V, zero along the valley.

    Raises:
        ValueError: if a matrix is not a covariance, T is negative, or the noise acts along the valley, where nothing
            holds it.

    Example:
        >>> valley_covariance(np.diag([2.0, 0.0]), np.diag([1.0, 0.0]), 0.1)
        array([[0.025, 0.   ],
               [0.   , 0.   ]])
    """
    hessian = checked_covariance("hessian", hessian, len(hessian))
    noise = checked_covariance("noise", noise, len(hessian))
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature!r}.")
    values, vectors = np.linalg.eigh(hessian)
    flat = values <= SINGULAR * max(float(values[-1]), 1e-300)
    turned = vectors.T @ noise @ vectors
    if float(np.abs(turned[flat]).max(initial=0.0)) > 1e-8 * max(float(np.abs(noise).max()), 1e-300):
        raise ValueError("The noise acts along the valley, where no curvature holds it: there is no stationary state.")
    sums = values[:, None] + values
    kept = ~(flat[:, None] | flat)
    return np.asarray(vectors @ np.where(kept, temperature * turned / np.where(kept, sums, 1.0), 0.0) @ vectors.T)


def valley_drift(
    hessian: Float[Array, "n n"],
    third: Float[Array, "n n n"],
    noise: Float[Array, "n n"],
    temperature: float,
) -> Float[Array, " n"]:
    """Drift dθ/dt = −½ Σ_ij V_ij ∂_i∂_j∇L; only its component along the valley is a motion.

    Args:
        hessian: H ≥ 0 at a minimum.
        third: third derivatives ∂_i∂_j∂_kL there.
        noise: Σ of the per-sample gradients.
        temperature: T = lr / batch size.

    Returns:
        The drift per unit of time t = lr · steps.

    Raises:
        ValueError: as `valley_covariance`, or if the third derivatives have another shape.

    Example:
        >>> third = np.zeros((2, 2, 2))
        >>> third[0, 0, 1] = third[0, 1, 0] = third[1, 0, 0] = 4.0  # the curvature 2 of x grows as 4 along y
        >>> valley_drift(np.diag([2.0, 0.0]), third, np.diag([1.0, 0.0]), 0.1)
        array([-0.  , -0.05])
    """
    third = np.asarray(third, dtype=float)
    if third.shape != (len(hessian),) * 3:
        raise ValueError(f"third must be {(len(hessian),) * 3}, got {third.shape}.")
    return np.asarray(-np.einsum("ij,ijk->k", valley_covariance(hessian, noise, temperature), third) / 2)
