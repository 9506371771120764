"""Where SGD settles in the regression y ≈ v·x through a product v = Σ_i Π_k u_i⁽ᵏ⁾ of D + 1 factors in d units.

The loss of one sample is (vx − y)² without a factor ½. Depth D = 0 is linear regression, D = 1 a two-layer linear
network. The noise of SGD is G(v) = α₁v² − 2α₂v + α₃ = Var[x(vx − y)] and its strength the temperature T = lr / batch.
Weight decay is PyTorch's λ, (λ/2)‖θ‖²; the source writes γ‖θ‖², γ = λ/2.

Source: arXiv 2308.06671 (results 6–10).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Float

from gaugefix.errors import ValidityWarning

#: points of the grid in log v, how far it goes above the scale of v, and how far below (further near the collapse)
_POINTS, _ABOVE, _BELOW = 400_000, 20.0, 30.0


@dataclass(frozen=True)
class StationaryDistribution:
    """The stationary law of the product v.

    Depth 0 lives on the whole line, p(v) ∝ G(v)^(−1−β₁/(2Tα₁)) exp[−(α₂β₁ − α₁β₂)/(Tα₁√Δ)·arctan((α₁v − α₂)/√Δ)]
    with Δ = α₁α₃ − α₂² and β₁ + λ/2 in place of β₁. Depth D ≥ 1 lives on v > 0 (for β₂ > 0; v = 0 absorbs what comes
    near it):

        p(v) ∝ v^(−3D/(D+1)) G(v)⁻¹ exp(−(1/T) ∫ d^(1−2/(D+1)) (β₁s − β₂)/((D+1) s^(2D/(D+1)) G(s)) ds),

    with β₂ − λ/2 in place of β₂ at depth 1. At depth 1 and T ≥ `collapse_temperature` all mass is at zero: `collapsed`.

    Attributes:
        alpha: (α₁, α₂, α₃) = (Var x², E x³y − E x² E xy, Var xy).
        beta: (β₁, β₂) = (E x², E xy), β₂ > 0 for depth ≥ 1.
        temperature: T = lr / batch size.
        depth: D.
        width: d.
        weight_decay: λ; for depth 0 and 1.

    Raises:
        ValueError: if T ≤ 0, α₁ ≤ 0, Δ ≤ 0, β₁ ≤ 0, depth or width are out of range, β₂ ≤ 0 at depth ≥ 1 (flip the
            sign of y), or λ ≠ 0 at depth ≥ 2, for which no law is known.

    The law is that of the continuous-time limit: it needs lr·|x(vx − y)| ≪ 1 for typical samples.

    Example:
        >>> law = StationaryDistribution((0.8, 0.8, 100.8), (1.0, 1.0), temperature=0.00248)
        >>> round(law.mean, 3), round(law.std, 3), law.collapsed
        (0.751, 0.612, False)
    """

    alpha: tuple[float, float, float]
    beta: tuple[float, float]
    temperature: float
    depth: int = 1
    width: int = 1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no law; warn where all mass is at zero."""
        a1, a2, a3 = self.alpha
        for name, value in (("temperature", self.temperature), ("alpha[0]", a1), ("beta[0]", self.beta[0])):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"StationaryDistribution needs {name} > 0, got {value!r}.")
        if a1 * a3 <= a2**2:
            raise ValueError(f"alpha = {self.alpha} is not a noise: α₁α₃ must be above α₂² (is y = kx without noise?).")
        if self.depth < 0 or self.width < 1 or self.weight_decay < 0:
            raise ValueError("StationaryDistribution needs depth >= 0, width >= 1 and weight_decay >= 0.")
        if self.depth >= 1 and self.beta[1] <= 0:
            raise ValueError(
                f"beta[1] = E[xy] must be positive for depth >= 1, got {self.beta[1]!r}: flip the sign of y."
            )
        if self.depth >= 2 and self.weight_decay:
            raise ValueError("No law is known for depth >= 2 with weight decay; use depth 0 or 1, or weight_decay=0.")
        if self.collapsed:
            warnings.warn(
                f"T = {self.temperature:.3g} is not below the collapse temperature {self.collapse_temperature:.3g}: "
                "v goes to 0 and stays there.",
                ValidityWarning,
                stacklevel=3,
            )

    @classmethod
    def from_data(
        cls,
        x: Float[np.ndarray, " n"],
        y: Float[np.ndarray, " n"],
        *,
        lr: float,
        batch_size: int,
        depth: int = 1,
        width: int = 1,
        weight_decay: float = 0.0,
    ) -> Self:
        """The law for a data set with one feature; y is flipped if E[xy] < 0 and depth ≥ 1, then v is that of −y.

        Args:
            x: inputs.
            y: targets.
            lr: learning rate of a loss (vx − y)²; for ½(vx − y)² give half of it.
            batch_size: samples per step.
            depth: D.
            width: d.
            weight_decay: λ.

        Returns:
            The distribution.

        Example:
            >>> x = np.linspace(-1, 1, 101)
            >>> StationaryDistribution.from_data(x, x + (-1) ** np.arange(101), lr=0.1, batch_size=10).collapsed
            False
        """
        alpha, beta = landscape_moments(x, y)
        if depth >= 1 and beta[1] < 0:
            alpha, beta = (alpha[0], -alpha[1], alpha[2]), (beta[0], -beta[1])
        return cls(alpha, beta, lr / batch_size, depth, width, weight_decay)

    @property
    def collapse_temperature(self) -> float:
        """T_c = (β₂ − λ/2)/α₃ at depth 1; inf for other depths, which have no transition."""
        return max(0.0, (self.beta[1] - self.weight_decay / 2) / self.alpha[2]) if self.depth == 1 else math.inf

    @property
    def collapsed(self) -> bool:
        """Whether all mass is at v = 0."""
        return self.temperature >= self.collapse_temperature

    @property
    def tail_exponent(self) -> float:
        """Power of the density for large v: −5 + 3/(D+1) for depth ≥ 1; −2 − (β₁ + λ/2)/(Tα₁) for depth 0."""
        if self.depth == 0:
            return -2 - (self.beta[0] + self.weight_decay / 2) / (self.temperature * self.alpha[0])
        return -5 + 3 / (self.depth + 1)

    @property
    def mode(self) -> float:
        """Where the density is largest; 0 where it diverges there."""
        if self.collapsed or (self.depth == 1 and self._power_at_zero < 1):
            return 0.0
        return float(self._grid[np.argmax(self._log_density)])

    @property
    def mean(self) -> float:
        """E v."""
        return 0.0 if self.collapsed else self._moment(1)

    @property
    def std(self) -> float:
        """√Var v; inf where the tail is too heavy."""
        if self.collapsed:
            return 0.0
        if self.tail_exponent >= -3:
            return math.inf
        return math.sqrt(max(self._moment(2) - self._moment(1) ** 2, 0.0))

    def pdf(self, v: Float[np.ndarray, " n"] | float) -> np.ndarray:
        """Density at v; zero everywhere if `collapsed` (the mass is a point)."""
        if self.collapsed:
            return np.zeros(np.shape(v))
        return np.asarray(np.interp(v, self._grid, self._density, left=0.0, right=0.0))

    def cdf(self, v: Float[np.ndarray, " n"] | float) -> np.ndarray:
        """P(V ≤ v)."""
        if self.collapsed:
            return np.where(np.asarray(v) >= 0, 1.0, 0.0)
        return np.asarray(np.interp(v, self._grid, self._mass, left=0.0, right=1.0))

    def ppf(self, q: Float[np.ndarray, " n"] | float) -> np.ndarray:
        """Quantiles, the inverse of `cdf`."""
        if self.collapsed:
            return np.zeros(np.shape(q))
        keep = np.concatenate([[True], np.diff(self._mass) > 0])
        return np.asarray(np.interp(q, self._mass[keep], self._grid[keep]))

    @cached_property
    def _grid(self) -> np.ndarray:
        """Even in the logarithm of the distance from the centre: the density has structure at all scales near zero."""
        if self.depth == 0:
            half = np.exp(self._logs)
            return np.asarray(self._centre + np.concatenate([-half[::-1], half]))
        return np.asarray(np.exp(self._logs))

    @cached_property
    def _logs(self) -> np.ndarray:
        below = _BELOW if self.depth != 1 else min(max(_BELOW, 40 / self._power_at_zero), 600.0)
        scale = math.log(abs(self._centre)) if self._centre else 0.0
        return np.linspace(scale - below, scale + _ABOVE, _POINTS)

    @property
    def _centre(self) -> float:
        """Where the line is folded for depth 0, the minimum of the loss; also the scale of v."""
        return self.beta[1] / (self.beta[0] + (self.weight_decay / 2 if self.depth == 0 else 0.0))

    @property
    def _power_at_zero(self) -> float:
        """P(V ≤ v) ~ v^power at depth 1, zero at the collapse."""
        return (self.beta[1] - self.weight_decay / 2) / (2 * self.alpha[2] * self.temperature) - 0.5

    @cached_property
    def _density(self) -> np.ndarray:
        return np.asarray(np.exp(self._log_density - self._log_total))

    @cached_property
    def _log_density(self) -> np.ndarray:
        return self._log_linear() if self.depth == 0 else self._log_product()

    @cached_property
    def _log_element(self) -> np.ndarray:
        """Log of dv per step of the grid in log v."""
        return self._logs if self.depth else np.concatenate([self._logs[::-1], self._logs])

    @cached_property
    def _log_total(self) -> float:
        log = self._log_density + self._log_element
        top = float(log.max())
        return top + math.log(float(_integral(np.exp(log - top), self._logs)) + self._below_the_grid(log, top))

    def _below_the_grid(self, log: np.ndarray, top: float) -> float:
        """Mass nearer to zero than the grid goes, ∫₀ v^(power − 1) dv."""
        return math.exp(log[0] - top) / self._power_at_zero if self.depth == 1 else 0.0

    @cached_property
    def _mass(self) -> np.ndarray:
        log = self._log_density + self._log_element - self._log_total
        per_step = np.exp(log) * (self._logs[1] - self._logs[0])
        steps = (per_step[1:] + per_step[:-1]) / 2
        return np.minimum(self._below_the_grid(log, 0.0) + np.concatenate([[0.0], np.cumsum(steps)]), 1.0)

    def _moment(self, order: int) -> float:
        weights = np.exp(self._log_density + self._log_element - self._log_total)
        return float(_integral(self._grid**order * weights, self._logs))

    def _log_linear(self) -> np.ndarray:
        (a1, a2, a3), (b1, b2) = self.alpha, self.beta
        b1 += self.weight_decay / 2
        root = math.sqrt(a1 * a3 - a2**2)
        v, t = self._grid, self.temperature
        angle = np.arctan((a1 * v - a2) / root)
        return np.asarray(
            -(1 + b1 / (2 * t * a1)) * np.log(_noise(self.alpha, v)) - (a2 * b1 - a1 * b2) / (t * a1 * root) * angle
        )

    def _log_product(self) -> np.ndarray:
        b1, b2 = self.beta[0], self.beta[1] - self.weight_decay / 2
        power, v = self.depth + 1, self._grid
        force = self.width ** (1 - 2 / power) * (b1 * v - b2) / (power * v ** (2 * self.depth / power))
        slope = v * force / _noise(self.alpha, v)  # with respect to log v
        log_v = self._logs
        potential = np.concatenate([[0.0], np.cumsum(np.diff(log_v) * (slope[1:] + slope[:-1]) / 2)])
        return np.asarray(
            -3 * self.depth / power * log_v - np.log(_noise(self.alpha, v)) - potential / self.temperature
        )


def landscape_moments(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Moments of one feature and its target that fix the law of the product.

    Args:
        x: inputs.
        y: targets.

    Returns:
        (α₁, α₂, α₃) = (Var x², E x³y − E x² E xy, Var xy) and (β₁, β₂) = (E x², E xy).

    Raises:
        ValueError: if the shapes are not equal and one-dimensional.

    Source: arXiv 2308.06671.

    Example:
        >>> landscape_moments(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
        ((2.25, -0.75, 0.25), (2.5, 0.5))
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must be vectors of one length, got shapes {x.shape} and {y.shape}.")
    xx, xy = x * x, x * y
    alpha = float(xx.var()), float((xx * xy).mean() - xx.mean() * xy.mean()), float(xy.var())
    return alpha, (float(xx.mean()), float(xy.mean()))


def _integral(values: np.ndarray, logs: np.ndarray) -> float:
    """Trapezoids in log v; for depth 0 the two sides of the centre lie one after the other."""
    step = logs[1] - logs[0]
    sides = values.reshape(-1, len(logs))
    return float((sides.sum() - (sides[:, 0] + sides[:, -1]).sum() / 2) * step)


def _noise(alpha: tuple[float, float, float], v: np.ndarray) -> np.ndarray:
    a1, a2, a3 = alpha
    return np.asarray(a1 * v**2 - 2 * a2 * v + a3)
