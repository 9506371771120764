"""SGD near a minimum as a linear process: its covariance, its circulation and the entropy it produces.

θ' = (1 − ηH)θ + ηξ with Cov ξ = C/B. The stationary covariance solves P = APAᵀ + η²C/B with A = 1 − ηH. Unless H and C
commute the state circulates: run backwards it looks different, and every step produces entropy (arXiv 2207.14497).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from gaugefix.theory.covariances import SINGULAR, checked_covariance

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LinearSGD:
    """SGD on a quadratic loss with gradient noise that does not depend on the weights.

    Attributes:
        hessian: H, positive definite.
        noise: C of the per-sample gradients, positive definite (a direction without noise cannot be run backwards).
        lr: η.
        batch_size: B.

    Raises:
        ValueError: if a matrix is not positive definite, or ``lr`` or ``batch_size`` is not positive.

    Where η is not below 2/λ_max(H) nothing is stationary: `stable` is False and the other properties raise.

    Example:
        >>> turn = np.array([[0.525, 0.475], [0.475, 0.525]])
        >>> found = LinearSGD(np.diag([1.0, 0.3]), turn, lr=0.2)
        >>> round(found.entropy_production, 4), found.circulation.round(6)[0].tolist()
        (0.3566, [0.0, 0.010726])
        >>> abs(LinearSGD(np.diag([1.0, 0.3]), np.diag([2.0, 1.0]), lr=0.2).entropy_production) < 1e-12  # they commute
        True
    """

    hessian: Float[Array, "d d"]
    noise: Float[Array, "d d"]
    lr: float
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no stationary law at any learning rate."""
        for name in ("hessian", "noise"):
            matrix = checked_covariance(name, getattr(self, name), len(self.hessian))
            values = np.linalg.eigvalsh(matrix)
            if not values[0] > SINGULAR * values[-1]:
                raise ValueError(f"{name} must be positive definite, its eigenvalues go from {values[0]:.3g} up.")
            object.__setattr__(self, name, matrix)
        if not self.lr > 0 or not self.batch_size >= 1:
            raise ValueError(f"lr must be > 0 and batch_size >= 1, got {self.lr!r} and {self.batch_size!r}.")

    @property
    def lr_max(self) -> float:
        """2/λ_max(H), above which SGD diverges."""
        return float(2 / np.linalg.eigvalsh(self.hessian)[-1])

    @property
    def stable(self) -> bool:
        """Whether there is a stationary law."""
        return self.lr < self.lr_max

    @property
    def transition(self) -> Float[Array, "d d"]:
        """A = 1 − ηH."""
        return np.eye(len(self.hessian)) - self.lr * self.hessian

    @cached_property
    def covariance(self) -> Float[Array, "d d"]:
        """P of the stationary state; for small η the solution of HP + PH = (η/B)C.

        Raises:
            ValueError: if it is not `stable`.
        """
        if not self.stable:
            raise ValueError(f"lr = {self.lr:g} is not below {self.lr_max:g} = 2/λ_max: there is no stationary state.")
        values, vectors = np.linalg.eigh(self.hessian)
        a = 1 - self.lr * values
        turned = vectors.T @ self.noise @ vectors * self.lr**2 / self.batch_size
        return np.asarray(vectors @ (turned / (1 - np.multiply.outer(a, a))) @ vectors.T)

    @property
    def circulation(self) -> Float[Array, "d d"]:
        """Mean of θθ'ᵀ − θ'θᵀ, antisymmetric: twice the area that is swept per step; zero in detailed balance."""
        forward = self.covariance @ self.transition.T
        return np.asarray(forward - forward.T)

    @property
    def entropy_production(self) -> float:
        """σ per step, ½[Tr(R⁻¹J) − 2d] with J and R the covariances of (θ, θ') and (θ', θ); zero iff HC = CH."""
        p, forward = self.covariance, self.covariance @ self.transition.T
        d = len(p)
        joint, swapped = np.block([[p, forward], [forward.T, p]]), np.block([[p, forward.T], [forward, p]])
        return max(0.0, float(np.trace(np.linalg.solve(swapped, joint)) / 2 - d))

    def sample(self, n: int, seed: int = 0) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """Independent pairs (θ, θ') of the stationary process with Gaussian noise.

        Args:
            n: how many.
            seed: of the draws.

        Returns:
            States before and after one step.
        """
        rng = np.random.default_rng(seed)
        before = rng.multivariate_normal(np.zeros(len(self.hessian)), self.covariance, n, method="cholesky")
        kicks = rng.multivariate_normal(np.zeros(len(self.hessian)), self.noise / self.batch_size, n, method="cholesky")
        return before, before @ self.transition.T + self.lr * kicks
