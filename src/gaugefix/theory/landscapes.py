"""Toy landscapes in one dimension on which SGD does what the averaged loss does not suggest.

The curvature h of a sample is random, drawn from equally likely values. `gradient` is that of a sample, `loss` the
average.

Source: arXiv 2107.11774; the constructions are those of this package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class RandomCurvature:
    """ℓ(w; h) = ½hw² + ¼q·w⁴, a stationary point at w = 0 for every sample.

    Attributes:
        curvatures: equally likely values of h.
        quartic: q ≥ 0.
    """

    curvatures: tuple[float, ...]
    quartic: float = 0.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Curvatures of samples."""
        return np.asarray(rng.choice(np.array(self.curvatures), shape))

    def gradient(self, w: Float[np.ndarray, "*s"], h: Float[np.ndarray, "*s"]) -> np.ndarray:
        """Of the samples with curvature h at w."""
        return np.asarray(h * w + self.quartic * w**3)

    def loss(self, w: Float[np.ndarray, "*s"]) -> np.ndarray:
        """Average over the samples."""
        return np.asarray(float(np.mean(self.curvatures)) / 2 * w**2 + self.quartic / 4 * w**4)


@dataclass(frozen=True)
class TwoWells:
    """A flat minimum at −1, whose curvature is ``curvature`` with probability p and else 0, and a sharp one at 1.

    Attributes:
        p: probability of the rare samples that hold the flat minimum.
        curvature: theirs.
        sharp: curvature of every sample at the sharp minimum, above p·curvature.
    """

    p: float
    curvature: float
    sharp: float

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Curvatures of samples at the flat minimum."""
        return np.asarray(np.where(rng.random(shape) < self.p, self.curvature, 0.0))

    def gradient(self, w: Float[np.ndarray, "*s"], h: Float[np.ndarray, "*s"]) -> np.ndarray:
        """Of the samples with curvature h at w."""
        return np.asarray(np.where(w < 0, h * (w + 1), self.sharp * (w - 1)))

    def loss(self, w: Float[np.ndarray, "*s"]) -> np.ndarray:
        """Average over the samples, with a step at the ridge w = 0."""
        return np.asarray(np.where(w < 0, self.p * self.curvature * (w + 1) ** 2, self.sharp * (w - 1) ** 2) / 2)

    def exponents(self, lr: float) -> tuple[float, float]:
        """Λ at the flat and at the sharp minimum: SGD leaves the one at which it is positive."""
        with np.errstate(divide="ignore"):
            flat = self.p * np.log(abs(1 - lr * self.curvature))
            return float(flat), float(np.log(abs(1 - lr * self.sharp)))


def local_max(a: float) -> RandomCurvature:
    """A maximum on average: h = 1 + a or −1, mean a/2.

    Args:
        a: in (−1, 0).

    Returns:
        The landscape. SGD with batches of one converges to the maximum for learning rates between −a/(1 + a) and
        (−a + √(a² + 8(1 + a)))/(2(1 + a)).

    Raises:
        ValueError: if ``a`` is out of range.

    Source: arXiv 2107.11774 (C1).

    Example:
        >>> local_max(-0.1).curvatures
        (0.9, -1.0)
    """
    if not -1 < a < 0:
        raise ValueError(f"a must be in (−1, 0), got {a!r}.")
    return RandomCurvature((1 + a, -1.0))


def quartic(a: float) -> RandomCurvature:
    """The same with ¼w⁴, so that the averaged loss has minima at ±√(−a/2).

    Args:
        a: in (−1, 0).

    Returns:
        The landscape.

    Source: arXiv 2107.11774 (C1).

    Example:
        >>> w = 0.05**0.5
        >>> bool(quartic(-0.1).loss(w) < quartic(-0.1).loss(0.0))
        True
    """
    return RandomCurvature(local_max(a).curvatures, 1.0)


def sharp_vs_flat(p: float, curvature: float, sharp: float) -> TwoWells:
    """Two minima of which the flat one rests on rare samples of large curvature.

    Args:
        p: probability of the rare samples.
        curvature: theirs, H; the flat minimum is left for lr·H > 2.
        sharp: curvature of every sample at the other minimum, above p·H.

    Returns:
        The landscape.

    Raises:
        ValueError: if the flat minimum is not the flatter one.

    Source: arXiv 2107.11774 (C3).

    Example:
        >>> flat, sharp = sharp_vs_flat(0.1, 4.0, 1.5).exponents(1.0)
        >>> round(flat, 3), round(sharp, 3)
        (0.11, -0.693)
    """
    if not (0 < p < 1 and 0 < p * curvature < sharp):
        raise ValueError(f"sharp_vs_flat needs 0 < p < 1 and p·curvature < sharp, got {p!r}, {curvature!r}, {sharp!r}.")
    return TwoWells(p, curvature, sharp)
