"""Covariance matrices: checked at the door, and their powers."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

Array = np.ndarray

#: an eigenvalue or singular value below this share of the largest counts as zero
SINGULAR = 1e-10


def checked_covariance(name: str, matrix: Float[Array, "n n"], size: int) -> Float[Array, "n n"]:
    """A covariance matrix, or an error that says what is wrong with it.

    Args:
        name: for the error.
        matrix: the candidate.
        size: n that it must have.

    Returns:
        The matrix in float64, exactly symmetric.

    Raises:
        ValueError: if the shape is another, an entry is not finite, or it is not symmetric positive semidefinite.

    Example:
        >>> checked_covariance("noise", np.diag([1, 2]), 2)
        array([[1., 0.],
               [0., 2.]])
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (size, size):
        raise ValueError(f"{name} must be ({size}, {size}), got {matrix.shape}.")
    scale = float(np.abs(matrix).max()) if np.isfinite(matrix).all() else math.nan
    if not math.isfinite(scale) or np.abs(matrix - matrix.T).max() > 1e-9 * scale:
        raise ValueError(f"{name} must be finite and symmetric.")
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if lowest < -1e-9 * scale:
        raise ValueError(f"{name} must be positive semidefinite, its lowest eigenvalue is {lowest:.3g}.")
    return np.asarray((matrix + matrix.T) / 2)


def psd_power(matrix: Float[Array, "n n"], power: float, *, singular: float = SINGULAR) -> Float[Array, "n n"]:
    """A power of a positive semidefinite matrix on its range, zero elsewhere.

    Args:
        matrix: the matrix; its symmetric part is used.
        power: any; -1 is the pseudoinverse.
        singular: share of the largest eigenvalue below which one counts as zero.

    Returns:
        The power.

    Example:
        >>> psd_power(np.diag([4.0, 0.0]), -0.5)
        array([[0.5, 0. ],
               [0. , 0. ]])
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    alive = values > singular * max(float(values[-1]), 1e-300)
    powers = np.where(alive, np.where(alive, values, 1.0) ** power, 0.0)
    return np.asarray((vectors * powers) @ vectors.T)
