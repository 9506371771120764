"""The Hessian of a deep linear network, summed layer by layer, at any weights.

f = W_D…W₁x is linear in each layer, so the trace of the expected Hessian of ½‖y − f‖² is that of its diagonal blocks,
T = Σ_k Tr[A_kᵀA_k] Tr[B_kΣ_xB_kᵀ] with A_k = W_D…W_{k+1} and B_k = W_{k−1}…W₁, at every point (arXiv 2602.05065).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def layer_sum(
    weights: Sequence[Float[Array, "*batch out in"]], input_cov: Float[Array, "x x"], output: Float[Array, "y y"]
) -> Float[Array, "*batch"]:
    """Σ_k Tr[A_kᵀ M A_k] Tr[B_kΣ_xB_kᵀ] of a linear network: sharpness for M = 1, fluctuation for M = Σ_ε.

    Args:
        weights: W₁, …, W_D, with leading dimensions if there are many networks.
        input_cov: Σ_x.
        output: M.

    Returns:
        One number per network.

    Example:
        >>> float(layer_sum([np.array([[2.0]]), np.array([[3.0]])], np.eye(1), np.eye(1)))  # 2² + 3²
        13.0
    """
    below = [np.eye(input_cov.shape[0])]
    for w in weights[:-1]:
        below.append(np.asarray(w) @ below[-1])
    above = [np.eye(output.shape[0])]
    for w in reversed(weights[1:]):
        above.append(above[-1] @ np.asarray(w))
    total = sum(
        np.einsum("...ji,jk,...ki->...", a, output, a) * np.einsum("...ij,jk,...ik->...", b, input_cov, b)
        for a, b in zip(reversed(above), below, strict=True)
    )
    return np.asarray(total)


def initial_sharpness(widths: Sequence[int], variances: Sequence[float], input_cov: Float[Array, "x x"]) -> float:
    """E T of a deep linear network with independent weights N(0, σ_k²).

    E T = d_y Tr Σ_x Π_{k=2}^D d_k Σ_k Π_{j≠k} σ_j² with d_k inputs of layer k. Below the T of `DeepLinearSharpness`
    training sharpens, above it flattens.

    Args:
        widths: d_x, hidden widths, d_y.
        variances: σ₁², …, σ_D².
        input_cov: Σ_x.

    Returns:
        The mean over initialisations.

    Raises:
        ValueError: if there is not one variance per layer, or one is negative.

    Source: arXiv 2602.05065.

    Example:
        >>> initial_sharpness((3, 3, 3), (1 / 3, 1 / 3), np.eye(3))  # D·d_y·Tr Σ_x·(dσ²)^(D−1)
        18.0
    """
    if len(variances) != len(widths) - 1 or len(widths) < 3 or min(variances) < 0:
        raise ValueError(f"One variance >= 0 per layer is needed, got {len(variances)} for {len(widths) - 1} layers.")
    pairs = sum(math.prod(variances[:k]) * math.prod(variances[k + 1 :]) for k in range(len(variances)))
    return float(widths[-1] * np.trace(input_cov) * math.prod(widths[1:-1]) * pairs)
