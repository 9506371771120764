"""Lyapunov exponents with error bars: sums of log growth in blocks, and products of random matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Verdict = Literal["collapses", "escapes", "undecided"]

_SIGNIFICANT = 2.0


def verdict(value: float, stderr: float) -> Verdict:
    """What the sign of an exponent says.

    Args:
        value: Λ.
        stderr: its standard error; nan counts as unknown, unless Λ is −inf.

    Returns:
        "collapses" or "escapes" if |Λ| exceeds two standard errors, else "undecided".

    Example:
        >>> verdict(-0.01, 0.002), verdict(0.001, 0.002)
        ('collapses', 'undecided')
    """
    if value == -math.inf:
        return "collapses"
    if not abs(value) > _SIGNIFICANT * stderr:
        return "undecided"
    return "collapses" if value < 0 else "escapes"


@dataclass(frozen=True, eq=False)
class Exponents:
    """Means of log growth per step, one for every member of an ensemble.

    Attributes:
        value: Λ; −inf where one factor was exactly zero.
        stderr: standard error from the scatter of the blocks; nan with fewer than two, or where Λ is −inf.
        steps: how many steps were counted.
        blocks: in how many blocks.
    """

    value: Float[np.ndarray, ...]
    stderr: Float[np.ndarray, ...]
    steps: int
    blocks: int


class LyapunovAccumulator:
    """Adds up log growth step by step, in blocks whose scatter gives the standard error.

    Successive steps are correlated, their blocks hardly are once a block is longer than the memory of the run. The
    memory needed does not grow with time: when all blocks are full, neighbours are merged and the length doubles.

    Args:
        burn_in: steps left out at the start, while directions align and the run relaxes.
        blocks: there are between this number and twice this number of them.

    Raises:
        ValueError: if ``burn_in`` is negative or ``blocks`` < 2.

    Example:
        >>> walk = LyapunovAccumulator()
        >>> for growth in np.random.default_rng(0).normal(0.1, 1.0, (4000, 3)):  # three members
        ...     walk.add(growth)
        >>> found = walk.result()
        >>> found.value.shape, bool(np.all(np.abs(found.value - 0.1) < 3 * found.stderr))
        ((3,), True)
    """

    def __init__(self, *, burn_in: int = 0, blocks: int = 20) -> None:
        if burn_in < 0 or blocks < 2:
            raise ValueError(f"burn_in must be >= 0 and blocks >= 2, got {burn_in!r} and {blocks!r}.")
        self._left, self._blocks, self._length = burn_in, blocks, 1
        self._full: list[np.ndarray] = []
        self._open: np.ndarray | None = None
        self._count = 0

    def add(self, log_growth: Float[np.ndarray, "*members"] | float) -> None:
        """Count one step.

        Args:
            log_growth: log‖v'‖/‖v‖ of every member.
        """
        if self._left:
            self._left -= 1
            return
        step = np.asarray(log_growth, dtype=float)
        self._open = step.copy() if self._open is None else self._open + step
        self._count += 1
        if self._count < self._length:
            return
        self._full.append(self._open)
        self._open, self._count = None, 0
        if len(self._full) == 2 * self._blocks:
            self._full = [a + b for a, b in zip(self._full[::2], self._full[1::2], strict=True)]
            self._length *= 2

    def result(self) -> Exponents:
        """Mean over all steps so far, standard error over the full blocks.

        Returns:
            The exponents.

        Raises:
            ValueError: if no step was counted after the burn-in.
        """
        parts = [*self._full, *([] if self._open is None else [self._open])]
        if not parts:
            raise ValueError("No step was counted after the burn-in; run longer or lower burn_in.")
        steps = len(self._full) * self._length + self._count
        value = np.asarray(sum(parts)) / steps
        stderr = np.full(value.shape, np.nan)
        if len(self._full) > 1:
            means = np.stack(self._full) / self._length
            finite = np.isfinite(means).all(axis=0)
            stderr = np.where(finite, np.where(finite, means, 0.0).std(axis=0, ddof=1), np.nan)
            stderr = stderr / math.sqrt(len(self._full))
        return Exponents(value, stderr, steps, len(self._full))


def product_exponent(
    blocks: Float[np.ndarray, "T k k"],
    lr: Float[np.ndarray, "*grid"] | float,
    weight_decay: Float[np.ndarray, "*grid"] | float = 0.0,
    *,
    burn_in: int = 0,
    seed: int = 0,
) -> Exponents:
    """Largest exponent of the random matrix product v ← v − lr·(H_t + λ)v, for a whole grid of settings at once.

    Every setting sees the same sequence of matrices (common random numbers), so that differences and thresholds are
    far sharper than the exponents themselves.

    Args:
        blocks: H_t of every minibatch, restricted to the normal directions.
        lr: learning rates.
        weight_decay: λ, broadcast against ``lr``.
        burn_in: steps left out while v turns to the leading direction.
        seed: of the starting vector.

    Returns:
        Exponents in the broadcast shape. Cost: T matrix-vector products of size k for every setting.

    Raises:
        ValueError: if the blocks are not square matrices.

    Source: arXiv 2303.13093 (L2, algorithm D).

    Example:
        >>> h = np.array([-1.2, 1.0, 1.0, -1.2]).reshape(4, 1, 1)
        >>> product_exponent(h, np.array([0.1, 0.5])).value.round(4)
        array([ 0.004 , -0.1116])
    """
    blocks = np.asarray(blocks, dtype=float)
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
        raise ValueError(f"product_exponent needs matrices (T, k, k), got shape {blocks.shape}.")
    rates, decays = np.broadcast_arrays(np.asarray(lr, dtype=float), np.asarray(weight_decay, dtype=float))
    k = blocks.shape[1]
    v = np.random.default_rng(seed).standard_normal(k) * np.ones((*rates.shape, 1))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    total = LyapunovAccumulator(burn_in=burn_in)
    keep, rate = (1 - rates * decays)[..., None], rates[..., None]
    for h in blocks:
        moved = keep * v - rate * (v @ h.T)
        norm = np.linalg.norm(moved, axis=-1, keepdims=True)
        with np.errstate(divide="ignore"):
            total.add(np.log(norm[..., 0]))
        v = np.where(norm > 0, moved / np.where(norm > 0, norm, 1.0), v)
    return total.result()
