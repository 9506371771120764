"""Which of its global minima SGD selects in a deep linear network, and how sharp that one is.

The model is f = W_D…W₁x with D ≥ 2, the loss of one sample ½‖y − f‖², the data y = Vx + ε with independent x and ε of
mean zero and covariances Σ_x and Σ_ε, hidden layers as wide as the rank of V or wider. Every minimum has W_D…W₁ = V.
With A_k = W_D…W_{k+1} and B_k = W_{k−1}…W₁,

    T = Tr E∇²ℓ = Σ_k Tr[A_kᵀA_k] Tr[B_kΣ_xB_kᵀ],      𝒮 = E‖∇ℓ‖² = Σ_k Tr[A_kᵀΣ_εA_k] Tr[B_kΣ_xB_kᵀ],

T the sharpness and 𝒮 the fluctuation at a minimum. SGD with a small step goes to the minimum of least 𝒮, for its
entropic loss is L + (η/4)(‖∇L‖² + 𝒮/B). Everything here is leading order in the learning rate.

Source: arXiv 2602.05065; two layers in 2402.07193. Where the printed formulas differ from the ones here (the least
sharpness of the isotropic example, λ_max, which bound of Theorem 2 is which) the ones here were checked numerically.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
from jaxtyping import Float

from gaugefix.errors import ValidityWarning
from gaugefix.theory.covariances import SINGULAR, checked_covariance, psd_power
from gaugefix.theory.deep_linear_hessian import layer_sum

Array = np.ndarray
_DENSE = 1500  # largest d_y·d_x of which the Hessian is formed


@dataclass(frozen=True, eq=False)
class DeepLinearSharpness:
    """The minimum of least fluctuation, its sharpness, and the flattest minimum to compare with.

    With the singular value decomposition √Σ_ε V √Σ_x = L S R and Ŝ the singular values of V√Σ_x,

        T = (D−1)(Tr S)^((D−2)/D) (Tr Σ_ε Tr Σ_x)^(1/D) Tr[Σ_ε⁻¹ L S Lᵀ] + d_y (Tr S)^(2(D−1)/D) (Tr Σ_x)^(1/D) (Tr Σ_ε)^(1/D − 1),
        T_min = D (Tr Ŝ)^(2(D−1)/D) (d_y Tr Σ_x)^(1/D),      𝒮 = D (Tr S)^(2(D−1)/D) (Tr Σ_ε Tr Σ_x)^(1/D).

    T = T_min where Σ_ε is a multiple of the identity: it is unequal noise of the outputs that makes SGD choose a sharp
    minimum. Only the shape of Σ_ε counts for T, not its size.

    Attributes:
        signal: V, ``(d_y, d_x)``.
        input_cov: Σ_x.
        noise_cov: Σ_ε, of the part of y that x does not explain.
        depth: D.

    Raises:
        ValueError: if the depth is below 2, shapes do not fit, a covariance is not positive semidefinite, V sees no input
            that varies, or there is no noise (then nothing selects among the minima).

    If Σ_ε is singular and V has outputs without noise, no minimum has the least fluctuation: `valid` is False and the
    sharpness grows without bound.

    Example:
        >>> model = DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1.0, 0.09]), depth=3)
        >>> round(model.trace, 2), round(model.trace_min, 2)
        (15.64, 12.0)
        >>> DeepLinearSharpness(np.eye(2), np.eye(2), 0.36 * np.eye(2), depth=3).ratio  # equal noise: the flattest
        1.0
    """  # noqa: E501

    signal: Float[Array, "y x"]
    input_cov: Float[Array, "x x"]
    noise_cov: Float[Array, "y y"]
    depth: int

    def __post_init__(self) -> None:
        """Refuse what has no solution."""
        v = np.asarray(self.signal, dtype=float)
        object.__setattr__(self, "signal", v)
        if self.depth < 2:
            raise ValueError(f"DeepLinearSharpness needs depth >= 2 (one layer has one minimum), got {self.depth!r}.")
        if v.ndim != 2 or not np.isfinite(v).all():
            raise ValueError(f"signal must be a finite matrix (d_y, d_x), got shape {v.shape}.")
        for name, size in (("input_cov", v.shape[1]), ("noise_cov", v.shape[0])):
            matrix = np.asarray(getattr(self, name), dtype=float)
            object.__setattr__(self, name, checked_covariance(name, matrix, size))
        if not np.trace(self.noise_cov) > 0:
            raise ValueError("noise_cov is zero: without label noise every minimum fluctuates as little as any other.")
        if not self._flat_values[0] > 0:
            raise ValueError("The signal sees no input that varies: V√Σ_x is zero.")

    @classmethod
    def from_data(cls, x: Float[Array, "n x"], y: Float[Array, "n y"], depth: int) -> Self:
        """Moments of a data set: V by least squares, Σ_x of the inputs, Σ_ε of what is left.

        Args:
            x: inputs, one sample per row.
            y: targets; for classification the residual covariance diag(p) − ppᵀ plays the part of Σ_ε.
            depth: D.

        Returns:
            The model of the centred data.

        Raises:
            ValueError: if the shapes do not fit, or there are fewer samples than inputs + 1.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> x = rng.standard_normal((4000, 2))
            >>> y = x + rng.standard_normal((4000, 2)) * [1.0, 0.3]
            >>> round(DeepLinearSharpness.from_data(x, y, depth=3).trace, 1)
            15.6
        """
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise ValueError(f"x and y must be (n, d_x) and (n, d_y), got {x.shape} and {y.shape}.")
        if len(x) <= x.shape[1] + 1:
            raise ValueError(f"{len(x)} samples leave no residual of {x.shape[1]} inputs: more are needed.")
        x, y = x - x.mean(0), y - y.mean(0)
        coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
        rest = y - x @ coefficients
        return cls(coefficients.T, x.T @ x / len(x), rest.T @ rest / (len(x) - x.shape[1] - 1), depth)

    @property
    def valid(self) -> bool:
        """Whether a minimum of least fluctuation exists: every output that V drives has noise."""
        return len(self._values) == len(self._flat_values)

    @property
    def trace(self) -> float:
        """T, the trace of the Hessian at the minimum that SGD selects; inf if there is none."""
        if not self.valid:
            return math.inf
        return float(np.trace(self._outer) * self._sums[0] + self._sums[1])

    @property
    def trace_min(self) -> float:
        """T_min, the least trace of the Hessian over all minima."""
        d, total = self.depth, float(self._flat_values.sum())
        return float(d * total ** (2 * (d - 1) / d) * (len(self.signal) * np.trace(self.input_cov)) ** (1 / d))

    @property
    def ratio(self) -> float:
        """T/T_min, 1 up to rounding where SGD selects the flattest."""
        return round(self.trace / self.trace_min, 12)

    @property
    def fluctuation(self) -> float:
        """𝒮 = E‖∇ℓ‖² of one sample at the minimum that SGD selects, the least of all."""
        d, total = self.depth, float(self._values.sum())
        scale = float(np.trace(self.noise_cov) * np.trace(self.input_cov))
        return float(d * total ** (2 * (d - 1) / d) * scale ** (1 / d))

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue of the Hessian there; inf if there is no such minimum.

        The Hessian and Σ_k A_kA_kᵀ ⊗ √Σ_x B_kᵀB_k √Σ_x have the same eigenvalues other than zero. Where Σ_ε commutes
        with VVᵀ and Σ_x with VᵀV this is max_ij {(D−2)c₂(S_i/Λ_ε,i)S_j + c_D S_j + c₁(S_i/Λ_ε,i)Λ_x,j}; the source
        prints another last term.
        """
        return float(self.spectrum(1)[-1]) if self.valid else math.inf

    def spectrum(self, largest: int | None = None) -> Float[Array, " k"]:
        """Eigenvalues of the Hessian at the minimum that SGD selects; the others are zero.

        Args:
            largest: how many; all d_y·d_x if None.

        Returns:
            Ascending. Cost: a dense matrix of size d_y·d_x, or Lanczos steps if that is above 1500 and only the
            ``largest`` are wanted.

        Raises:
            ValueError: if the model is not `valid`.
        """  # noqa: DOC502
        self._need_valid()
        outer, inner = self._outer, self._inner
        eye, (middle, first, last) = np.eye(len(outer)), self._hessian_weights
        size = len(outer) * len(inner)
        if largest is None or size <= _DENSE or largest >= size - 1:
            whole = middle * np.kron(outer, inner) + last * np.kron(eye, inner) + first * np.kron(outer, self.input_cov)
            return np.asarray(np.linalg.eigvalsh(whole)[-(largest or size) :])
        from scipy.sparse.linalg import LinearOperator, eigsh

        def product(z: Array) -> Array:
            m = z.reshape(len(outer), len(inner))
            return np.asarray(
                (middle * outer @ m @ inner + last * m @ inner + first * outer @ m @ self.input_cov).ravel()
            )

        operator = LinearOperator((size, size), matvec=product, dtype=float)
        start = np.random.default_rng(0).standard_normal(size)
        return np.asarray(np.sort(eigsh(operator, largest, which="LA", v0=start, return_eigenvectors=False)))

    def weights(self, width: int, seed: int = 0) -> tuple[Float[Array, "out in"], ...]:
        """Weights of the minimum that SGD selects, up to a rotation of every hidden layer, which is drawn at random.

        √Σ_ε W_D = L Σ_D U_{D−1}ᵀ, W_i = U_i Σ_i U_{i−1}ᵀ, W₁√Σ_x = U₁ Σ₁ R; below the rank of V a width keeps the
        largest singular values (then the residual depends on x, and a `ValidityWarning` says so).

        Args:
            width: of every hidden layer.
            seed: of the rotations.

        Returns:
            W₁, …, W_D.

        Raises:
            ValueError: if the width is below one, or the model is not `valid`.
        """
        self._need_valid()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width!r}.")
        if width < (rank := len(self._values)):
            warnings.warn(
                f"width {width} is below the rank {rank} of the signal: the largest singular values are kept, and the "
                "closed forms, which need V to be reached, do not hold.",
                ValidityWarning,
                stacklevel=2,
            )
            return self._truncated(width).weights(width, seed)
        generator = np.random.default_rng(seed)
        frames = [np.linalg.qr(generator.standard_normal((width, rank)))[0] for _ in range(self.depth - 1)]
        first, middle, last = self._scales
        found = [first * frames[0] @ (np.sqrt(self._values)[:, None] * self._right) @ psd_power(self.input_cov, -0.5)]
        found += [middle * b @ a.T for a, b in pairwise(frames)]
        found.append(last * self._factor @ frames[-1].T)
        return tuple(map(np.asarray, found))

    def flattest(self) -> DeepLinearSharpness:
        """The same data with equal noise of all outputs: its minimum is the flattest one of this model."""
        return replace(self, noise_cov=np.eye(len(self.signal)))

    def whitened(self) -> DeepLinearSharpness:
        """The model trained with the loss ½rᵀΣ_ε⁻¹r, whose outputs have equal noise: SGD selects its flattest minimum.

        Returns:
            V → Σ_ε^(−1/2)V, Σ_ε → 1.

        Raises:
            ValueError: if Σ_ε is singular.
        """
        if np.linalg.matrix_rank(self.noise_cov, tol=SINGULAR * float(np.trace(self.noise_cov))) < len(self.signal):
            raise ValueError("whitened: noise_cov is singular; an output without noise cannot be whitened.")
        return replace(self, signal=psd_power(self.noise_cov, -0.5) @ self.signal, noise_cov=np.eye(len(self.signal)))

    def trace_at(self, weights: Sequence[Float[Array, "*batch out in"]]) -> Float[Array, "*batch"]:
        """T = Σ_k Tr[A_kᵀA_k] Tr[B_kΣ_xB_kᵀ] at any weights; exact everywhere, not only at minima.

        Args:
            weights: W₁, …, W_D, with leading dimensions if there are many networks.

        Returns:
            One number per network.
        """
        return layer_sum(weights, self.input_cov, np.eye(len(self.signal)))

    def fluctuation_at(self, weights: Sequence[Float[Array, "*batch out in"]]) -> Float[Array, "*batch"]:
        """𝒮 = Σ_k Tr[A_kᵀΣ_εA_k] Tr[B_kΣ_xB_kᵀ] of weights at a minimum.

        Args:
            weights: W₁, …, W_D, with leading dimensions if there are many networks.

        Returns:
            One number per network.
        """
        return layer_sum(weights, self.input_cov, self.noise_cov)

    def _need_valid(self) -> None:
        if not self.valid:
            raise ValueError(
                "No minimum has the least fluctuation: noise_cov is singular and the signal drives an output without "
                "noise, so the sharpness grows without bound."
            )

    def _truncated(self, width: int) -> DeepLinearSharpness:
        left, values, right = np.linalg.svd(self.signal @ psd_power(self.input_cov, 0.5), full_matrices=False)
        signal = (left[:, :width] * values[:width]) @ right[:width] @ psd_power(self.input_cov, -0.5)
        return replace(self, signal=signal)

    @cached_property
    def _svd(self) -> tuple[Array, Array]:
        """S without zeros, and R."""
        matrix = psd_power(self.noise_cov, 0.5) @ self.signal @ psd_power(self.input_cov, 0.5)
        _, values, right = np.linalg.svd(matrix, full_matrices=False)
        keep = values > SINGULAR * max(float(values[0]), 1e-300)
        return values[keep], right[keep]

    @property
    def _values(self) -> Array:
        return self._svd[0]

    @property
    def _right(self) -> Array:
        return self._svd[1]

    @cached_property
    def _flat_values(self) -> Array:
        """Ŝ without zeros, at least one entry."""
        values = np.linalg.svd(self.signal @ psd_power(self.input_cov, 0.5), compute_uv=False)
        return np.asarray(values[values > SINGULAR * values[0]] if values[0] > 0 else values[:1])

    @cached_property
    def _factor(self) -> Array:
        """Q with Q√S R = V√Σ_x, that is Σ_ε^(−1/2) L √S where Σ_ε is regular."""
        return np.asarray(self.signal @ psd_power(self.input_cov, 0.5) @ self._right.T / np.sqrt(self._values))

    @property
    def _outer(self) -> Array:
        """QQᵀ, proportional to W_DW_Dᵀ."""
        return np.asarray(self._factor @ self._factor.T)

    @property
    def _inner(self) -> Array:
        """RᵀSR, proportional to √Σ_x W₁ᵀW₁ √Σ_x."""
        return np.asarray((self._right.T * self._values) @ self._right)

    @property
    def _scales(self) -> tuple[float, float, float]:
        """Factors of W₁, of the layers between, and of W_D."""
        d, s = self.depth, float(self._values.sum())
        noise, inputs = float(np.trace(self.noise_cov)), float(np.trace(self.input_cov))
        first = s ** (-(d - 2) / (2 * d)) * inputs ** ((d - 1) / (2 * d)) * noise ** (-1 / (2 * d))
        last = s ** (-(d - 2) / (2 * d)) * noise ** ((d - 1) / (2 * d)) * inputs ** (-1 / (2 * d))
        return first, s ** (1 / d) * (noise * inputs) ** (-1 / (2 * d)), last

    @property
    def _hessian_weights(self) -> tuple[float, float, float]:
        """Of QQᵀ⊗RᵀSR, of QQᵀ⊗Σ_x, of 1⊗RᵀSR. In the first the whitened order of the inputs does not matter."""
        first, middle, last = self._scales
        d = self.depth
        return (
            (d - 2) * middle ** (2 * (d - 3)) * (first * last) ** 2,
            middle ** (2 * (d - 2)) * last**2,
            middle ** (2 * (d - 2)) * first**2,
        )

    @property
    def _sums(self) -> tuple[float, float]:
        """T = first · Tr QQᵀ + second."""
        middle, outer, inner = self._hessian_weights
        total = float(self._values.sum())
        return middle * total + outer * float(np.trace(self.input_cov)), len(self.signal) * inner * total
