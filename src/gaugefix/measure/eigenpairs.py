"""Extreme eigenpairs of a symmetric operator that is known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

Which = Literal["LA", "SA", "LM"]
#: operators up to this size are formed
_DENSE = 64


def extreme_eigenpairs(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    count: int,
    which: Which,
    *,
    tol: float = 1e-9,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "k c"], Float[np.ndarray, " c"]]:
    """Eigenpairs at an end of the spectrum, by ARPACK's restarted Lanczos; small operators are formed.

    Lanczos starts from one random vector: an eigenvalue of multiplicity m may be given once.

    Args:
        product: v to Hv, float64.
        size: of v.
        count: how many pairs.
        which: "LA" (largest first), "SA" (smallest first) or "LM" (largest modulus first).
        tol: relative accuracy that is asked for.
        seed: of the start vector.

    Returns:
        Values, vectors as columns, and residuals ‖Hv − hv‖ relative to the largest |h|. Fewer than asked for if they
        did not converge; one nan with an infinite residual if none did.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if size <= max(_DENSE, 2 * count + 1):
        dense = np.stack([product(e) for e in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        images = dense @ vectors
    else:
        operator = LinearOperator((size, size), matvec=product, dtype=np.dtype(float))
        start = np.random.default_rng(seed).standard_normal(size)
        try:
            values, vectors = eigsh(operator, k=count, which=which, v0=start, tol=tol)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
            if not len(values):
                return np.full(1, np.nan), np.full((size, 1), np.nan), np.full(1, np.inf)
        images = np.stack([product(v) for v in vectors.T], axis=1)
    order = np.argsort({"LA": -values, "SA": values, "LM": -np.abs(values)}[which], kind="stable")[:count]
    scale = float(np.abs(values).max()) or 1.0
    residuals = np.linalg.norm(images - vectors * values, axis=0) / scale
    return values[order], vectors[:, order], residuals[order]
