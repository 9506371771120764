"""Updates of Adam and its kin under pure gradient noise: exact moments, hard bounds, stability of (β₁, β₂).

The gradients of one coordinate are independent, g_t ~ N(0, σ²). Adam divides by its own second moment, so σ drops out:

    m_t = β₁ m_{t−1} + (1 − β₁) g_t,    v_t = β₂ v_{t−1} + (1 − β₂) g_t²,    u_t = m̂_t / √v̂_t,    Δθ = −lr·u_t,

with bias-corrected m̂, v̂ and ε = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_LIMIT_STEPS = 2000


@dataclass(frozen=True)
class UpdateMoments:
    """Moments of the update u_t = g_t/√v̂_t of one coordinate (β₁ = 0).

    Attributes:
        mean_abs: E|u|.
        mean_square: E u².
        variance_abs: Var|u| = E u² − (E|u|)².
    """

    mean_abs: float
    mean_square: float
    variance_abs: float


@dataclass(frozen=True)
class BetaStability:
    """Whether Adam's (β₁, β₂) bound the size of a step whatever the gradients.

    Attributes:
        ratio: β₁/√β₂; the response to one large gradient decays by this factor per step.
        stable: ratio < 1.
        max_update: bound of |u_t| for t → ∞, inf if not stable. LaProp's is 1/√(1 − β₂) at every β₁.
    """

    ratio: float
    stable: bool
    max_update: float


def gaussian_update_moments(
    t: int, beta2: float = 1.0, weights: Float[np.ndarray, " t"] | None = None
) -> UpdateMoments:
    """Exact moments of RMSProp's (Adam's with β₁ = 0) update at step t under pure noise.

    With the newest weight w and the others w_i of v̂,

        E u² = ∫₀^∞ (1 + 2sw)^{−3/2} Π (1 + 2s w_i)^{−1/2} ds,
        E|u| = (√2/π) ∫₀^∞ s^{−1/2} (1 + 2sw)^{−1} Π (1 + 2s w_i)^{−1/2} ds.

    The variance of |u| grows with t towards a finite limit: it does not diverge at small t.

    Args:
        t: step, from 1.
        beta2: β₂ in [0, 1]; 1 is the plain average of AdaGrad.
        weights: any other weights of g_1² to g_t² in v̂ instead, positive, the newest last; they are normalised.

    Returns:
        The moments, to about 1e-6. Steps beyond 2000 use the value there.

    Raises:
        ValueError: if ``t`` < 1, ``beta2`` is outside [0, 1], or the weights are not t positive numbers.

    Source: arXiv 2105.07222.

    Example:
        >>> round(gaussian_update_moments(2, 1.0).variance_abs, 4)
        0.1894
    """
    _check_step(t)
    if not 0 <= beta2 <= 1:
        raise ValueError(f"beta2 must be in [0, 1], got {beta2!r}.")
    if weights is None:
        t = min(t, _LIMIT_STEPS)
        given = beta2 ** np.arange(t - 1, -1, -1.0)
    else:
        given = np.asarray(weights, dtype=float)
        if given.shape != (t,) or not (np.isfinite(given).all() and (given > 0).all()):
            raise ValueError(f"weights must be {t} positive numbers, got shape {given.shape}.")
    if t == 1 or (weights is None and beta2 == 0):
        return UpdateMoments(1.0, 1.0, 0.0)
    weights = given / given.sum()
    x = np.linspace(-40, 40, 8001)
    s = np.exp(x)
    rest = np.zeros_like(s)
    for w in weights[:-1]:
        rest += np.log1p(2 * s * w)
    new = np.log1p(2 * s * weights[-1])
    square = float(np.trapezoid(np.exp(x - 1.5 * new - 0.5 * rest), x))
    mean = math.sqrt(2) / math.pi * float(np.trapezoid(np.exp(0.5 * x - new - 0.5 * rest), x))
    return UpdateMoments(mean, square, square - mean**2)


def adam_noise_mean_square(t: int, beta1: float) -> float:
    """E u_t² of Adam under pure noise for β₂ → 1, (1 − β₁)(1 + β₁ᵗ)/((1 + β₁)(1 − β₁ᵗ)).

    Args:
        t: step, from 1.
        beta1: β₁ in [0, 1).

    Returns:
        1 at the first step, (1 − β₁)/(1 + β₁) in the long run: the first update of β₁ = 0.9 is 4.4 times the later
        ones, which has nothing to do with a variance that diverges.

    Raises:
        ValueError: if ``t`` < 1 or ``beta1`` is outside [0, 1).

    Source: arXiv 2105.07222.

    Example:
        >>> [round(adam_noise_mean_square(t, 0.9), 4) for t in (1, 2, 10, 1000)]
        [1.0, 0.5014, 0.109, 0.0526]
    """  # noqa: DOC502
    _check_step(t)
    _check_beta("beta1", beta1)
    power = beta1**t
    return (1 - beta1) * (1 + power) / ((1 + beta1) * (1 - power))


def adam_noise_rms(t: int, beta1: float) -> float:
    """Root mean square of Adam's update under pure noise, the square root of `adam_noise_mean_square`.

    Args:
        t: step, from 1.
        beta1: β₁ in [0, 1).

    Returns:
        The size to compare ‖Δθ‖/(lr·√P) with: above it there is a signal.

    Source: arXiv 2105.07222.

    Example:
        >>> round(adam_noise_rms(1000, 0.9), 3)
        0.229
    """
    return math.sqrt(adam_noise_mean_square(t, beta1))


def update_bound(t: int, beta1: float, beta2: float) -> float:
    """Largest |u_t| that any sequence of gradients can give Adam, √(Σ a_i²/w_i) (Cauchy–Schwarz).

    Here a and w are the bias-corrected weights of m̂ and v̂. For β₁ = 0 it is √((1 − β₂ᵗ)/(1 − β₂)).

    Args:
        t: step, from 1.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).

    Returns:
        The bound; it grows without limit in t if β₁² ≥ β₂.

    Raises:
        ValueError: if an argument is outside its range.

    Source: arXiv 2105.07222, 2002.04839.

    Example:
        >>> [round(update_bound(t, 0.9, 0.999), 3) for t in (1, 10, 100, 100_000)]
        [1.0, 1.043, 2.243, 7.27]
    """  # noqa: DOC502
    _check_step(t)
    _check_beta("beta1", beta1)
    _check_beta("beta2", beta2)
    if beta2 == 0:
        return 1.0 if beta1 == 0 or t == 1 else math.inf
    scale = (1 - beta1) ** 2 * (1 - beta2**t) / ((1 - beta2) * (1 - beta1**t) ** 2)
    ratio = beta1**2 / beta2
    if ratio == 1:
        return math.sqrt(scale * t)
    exponent = t * math.log(ratio) if ratio > 0 else -math.inf
    if exponent > 700:
        return math.inf
    return math.sqrt(scale * math.expm1(exponent) / (ratio - 1))


def adam_stability(betas: tuple[float, float]) -> BetaStability:
    """Whether (β₁, β₂) bound Adam's step: they do if and only if β₁ < √β₂.

    Args:
        betas: (β₁, β₂), each in [0, 1).

    Returns:
        The verdict, with the bound (1 − β₁)/√((1 − β₂)(1 − β₁²/β₂)) of |u| if there is one.

    Raises:
        ValueError: if a β is outside [0, 1).

    Source: arXiv 2002.04839.

    Example:
        >>> adam_stability((0.9, 0.999)).stable, adam_stability((0.9, 0.7)).stable
        (True, False)
    """  # noqa: DOC502
    beta1, beta2 = betas
    _check_beta("beta1", beta1)
    _check_beta("beta2", beta2)
    if beta2 == 0:
        return BetaStability(math.inf if beta1 else 0.0, beta1 == 0, math.inf if beta1 else 1.0)
    ratio = beta1 / math.sqrt(beta2)
    stable = ratio < 1
    bound = (1 - beta1) / math.sqrt((1 - beta2) * (1 - ratio**2)) if stable else math.inf
    return BetaStability(ratio, stable, bound)


def gradient_snr(mean_square: float, second_moment: float, beta1: float, t: int) -> float:
    """Signal-to-noise ratio ‖E g‖²/Tr C of minibatch gradients from Adam's state, (ρ − c)/(1 − ρ).

    ρ = Σm̂²/Σv̂ over a group of coordinates, and c = `adam_noise_mean_square` is what ρ would be without a signal.
    Slowly moving parameters are assumed. A single snapshot is off by 10 to 35 %: average numerator and denominator
    over some hundred steps where it matters.

    Args:
        mean_square: Σm̂², bias-corrected.
        second_moment: Σv̂, bias-corrected.
        beta1: β₁ in [0, 1).
        t: step, from 2: the first one has no noise to compare with.

    Returns:
        The ratio, 0 if ρ ≤ c; inf if ρ ≥ 1 and nan if there is no second moment or t < 2.

    Source: arXiv 2105.07222.

    Example:
        >>> round(gradient_snr(0.5, 1.0, 0.9, 1000), 3)
        0.895
    """
    if not second_moment > 0 or t < 2:
        return math.nan
    rho, noise = mean_square / second_moment, adam_noise_mean_square(t, beta1)
    if rho >= 1:
        return math.inf
    return max(0.0, (rho - noise) / (1 - rho))


def _check_step(t: int) -> None:
    if t < 1:
        raise ValueError(f"t counts steps from 1, got {t!r}.")


def _check_beta(name: str, beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"{name} must be in [0, 1), got {beta!r}.")
