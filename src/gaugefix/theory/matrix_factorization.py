"""Fitting a positive matrix by a Gram matrix, L(W) = ¼‖WᵀW − M‖² + (λ/2)‖W‖²: weight decay as a rank dial.

L(W) = L(QW) for every rotation Q, so each unit vector n gives the mirror nᵀW = 0; falling on one lowers the rank by
one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def gram_spectrum(
    target: Float[np.ndarray, "*batch n"], weight_decay: Float[np.ndarray, "*batch 1"] | float
) -> Float[np.ndarray, "*batch n"]:
    """Eigenvalues of WᵀW at the global minimum, max(m − λ, 0): a soft threshold, as of the nuclear norm.

    Args:
        target: eigenvalues m of M.
        weight_decay: λ.

    Returns:
        One eigenvalue for each of M, in the same eigenvectors.

    Source: arXiv 2309.16932, rotation symmetry and low rank.

    Example:
        >>> gram_spectrum(np.array([3.0, 1.0, 0.3]), weight_decay=0.5)
        array([2.5, 0.5, 0. ])
    """
    return np.maximum(np.asarray(target) - weight_decay, 0.0)


def gram_rank(
    target: Float[np.ndarray, "*batch n"], weight_decay: Float[np.ndarray, "*batch 1"] | float
) -> Int[np.ndarray, "*batch"]:
    """Rank of W at the global minimum, the number of eigenvalues of M above λ.

    Args:
        target: eigenvalues m of M.
        weight_decay: λ.

    Returns:
        The rank; it falls in steps as λ grows.

    Source: arXiv 2309.16932, rotation symmetry and low rank.

    Example:
        >>> int(gram_rank(np.array([3.0, 1.0, 0.3]), weight_decay=0.5))
        2
    """
    return np.asarray((np.asarray(target) > weight_decay).sum(axis=-1))
