"""Second moments of a product of random matrices: the map Σ → E[(1 − lr·H_B) Σ (1 − lr·H_B)] of a minibatch B.

The map is self-adjoint on symmetric matrices and keeps them positive, so its largest eigenvalue ρ decides whether the
second moment of SGD beside a point grows, and the learning rate at which ρ = 1 is an eigenvalue problem too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

_DENSE = 5
_SEEN = 1e-13


class MeanSquare:
    """The map of second moments, E[(1 − lr·H_B) Σ (1 − lr·H_B)] with H_B = λ + mean over B samples drawn from n.

    Args:
        hessians: H_i of the samples, ``(n, k, k)``, or inputs ``(n, k)`` of a linear regression, H_i = x_i x_iᵀ.
        batch_size: B.
        weight_decay: λ.
        replacement: whether a batch may hold a sample twice; without, the noise is (n − B)/(n − 1) of it.

    Directions that no H_i sees are left out where there is no weight decay: nothing moves along them.

    Attributes:
        basis: orthonormal columns that span what is left, ``(k, r)``.
        mean: E H_B with the weight decay in that basis, ``(r, r)``.
        share: by which the variance of single samples is divided in a batch.

    Raises:
        ValueError: if the shapes or the batch size do not fit.
    """

    def __init__(
        self,
        hessians: Float[np.ndarray, "n k k"] | Float[np.ndarray, "n k"],
        batch_size: int,
        weight_decay: float = 0.0,
        *,
        replacement: bool = True,
    ) -> None:
        h = np.asarray(hessians, dtype=float)
        if h.ndim not in {2, 3} or (h.ndim == 3 and h.shape[1] != h.shape[2]) or not np.isfinite(h).all():
            raise ValueError(f"hessians must be finite, (n, k, k) or inputs (n, k), got shape {h.shape}.")
        n = len(h)
        if batch_size < 1 or (not replacement and batch_size > n):
            raise ValueError(f"batch_size must be at least 1{'' if replacement else f' and at most {n}'}.")
        squares = h.T @ h if h.ndim == 2 else np.einsum("nij,nkj->ik", h, h)
        sizes, basis = np.linalg.eigh(squares)
        seen = sizes > _SEEN * max(float(sizes[-1]), 1e-300)
        if weight_decay or not seen.any():
            seen[:] = True
        self.basis: np.ndarray = basis[:, seen]
        self._h = h @ self.basis if h.ndim == 2 else self.basis.T @ h @ self.basis
        self._data = self._h.T @ self._h / n if h.ndim == 2 else self._h.mean(0)
        self.mean: np.ndarray = self._data + weight_decay * np.eye(self._data.shape[0])
        self.share = 1 / batch_size * (1.0 if replacement else (n - batch_size) / max(n - 1, 1))

    def second_moment(self, sigma: np.ndarray) -> np.ndarray:
        """E[H_B Σ H_B]."""
        if self._h.ndim == 2:
            along = np.einsum("ni,ni->n", self._h @ sigma, self._h)
            each = (self._h * along[:, None]).T @ self._h / len(self._h)
        else:
            each = np.einsum("nij,jk,nkl->il", self._h, sigma, self._h, optimize=True) / len(self._h)
        spread = each - self._data @ sigma @ self._data
        return np.asarray(self.mean @ sigma @ self.mean + self.share * spread)

    def apply(self, sigma: np.ndarray, lr: float) -> np.ndarray:
        """One step of the second moment."""
        return np.asarray(sigma - lr * (self.mean @ sigma + sigma @ self.mean) + lr**2 * self.second_moment(sigma))

    def radius(self, lr: float) -> float:
        """ρ, by which the second moment grows per step in the long run."""
        return self._largest(lambda s: self.apply(s, lr))

    def lr_limit(self) -> float:
        """Learning rate at which ρ = 1; 0 if the mean curvature is not positive everywhere."""
        values, basis = np.linalg.eigh(self.mean)
        if values[0] <= 1e-12 * max(abs(values[-1]), 1e-300):
            return 0.0
        scale = 1 / np.sqrt(values[:, None] + values[None, :])

        def relative(sigma: np.ndarray) -> np.ndarray:
            moved = self.second_moment(basis @ (scale * sigma) @ basis.T)
            return np.asarray(scale * (basis.T @ moved @ basis))

        return 1 / self._largest(relative)

    def solve(self, source: np.ndarray, lr: float) -> tuple[np.ndarray, float]:
        """The fixed point Σ = E[(1 − lr·H_B) Σ (1 − lr·H_B)] + source, with its relative residual."""
        from scipy.sparse.linalg import LinearOperator, cg

        k = len(self.mean)
        operator = LinearOperator(
            (k * k, k * k), matvec=lambda v: v - self.apply(v.reshape(k, k), lr).ravel(), dtype=np.dtype(float)
        )
        found, _ = cg(operator, source.ravel(), rtol=1e-12, atol=0.0, maxiter=20 * k * k)
        sigma = found.reshape(k, k)
        left = np.linalg.norm(sigma - self.apply(sigma, lr) - source) / (np.linalg.norm(source) or 1.0)
        return (sigma + sigma.T) / 2, float(left)

    def _largest(self, linear: Callable[[np.ndarray], np.ndarray]) -> float:
        """Largest eigenvalue of a self-adjoint map of symmetric matrices that keeps them positive."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        k = len(self.mean)

        def product(v: np.ndarray) -> np.ndarray:
            sigma = v.reshape(k, k)
            return linear((sigma + sigma.T) / 2).ravel()

        if k <= _DENSE:
            return float(np.linalg.eigvalsh(np.stack([product(e) for e in np.eye(k * k)])).max())
        operator = LinearOperator((k * k, k * k), matvec=product, dtype=np.dtype(float))
        start = np.eye(k).ravel()  # a positive start reaches the leading eigenvector, which is positive
        return float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)[0])


def second_moment_radius(
    hessians: Float[np.ndarray, "n k k"] | Float[np.ndarray, "n k"],
    lr: float,
    batch_size: int = 1,
    weight_decay: float = 0.0,
) -> float:
    """Factor ρ by which E zzᵀ grows per step beside a point without gradient noise; mean-square stable if ρ < 1.

    At a minimum the learning rate at which ρ = 1 lies below the one at which SGD ceases to converge in probability,
    and at a saddle ρ > 1 always: moments do not decide where SGD ends.

    Args:
        hessians: of the samples, normal to the point's plane; or inputs ``(n, k)`` of a regression, H_i = x_i x_iᵀ.
        lr: learning rate.
        batch_size: samples per step, drawn with replacement.
        weight_decay: λ.

    Returns:
        ρ. Cost: a few tens of passes over the n matrices.

    Raises:
        ValueError: if ``lr`` is not positive.

    Source: arXiv 2303.13093 (L4).

    Example:
        >>> h = np.array([2.0, 1.0]).reshape(2, 1, 1)  # ½(1 − 2 lr)² + ½(1 − lr)²
        >>> round(second_moment_radius(h, 0.5), 6)
        0.125
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a positive number, got {lr!r}.")
    return MeanSquare(hessians, batch_size, weight_decay).radius(lr)


def mean_square_limit(
    hessians: Float[np.ndarray, "n k k"] | Float[np.ndarray, "n k"], batch_size: int = 1, weight_decay: float = 0.0
) -> float:
    """Learning rate up to which second moments stay bounded, the root of `second_moment_radius` = 1.

    Args:
        hessians: as for `second_moment_radius`.
        batch_size: samples per step, drawn with replacement.
        weight_decay: λ.

    Returns:
        The limit, below 2/h_max; 0 at a saddle, where there is none.

    Source: arXiv 2303.13093 (L4), 2102.05375 (E7).

    Example:
        >>> h = np.array([2.0, 1.0]).reshape(2, 1, 1)
        >>> round(mean_square_limit(h), 6)  # 2·E h/E h²
        1.2
    """
    return MeanSquare(hessians, batch_size, weight_decay).lr_limit()
