"""Thermodynamic uncertainty: how irreversible any process is at least, from the mean and variance of one current.

A path [x] has probability P, the same path under another law Q, and R = log(Q/P). For every observable f

    Var_P f ≥ (⟨f⟩_P⟨e^R⟩ − ⟨f e^R⟩)² / (⟨e^{2R}⟩ − ⟨e^R⟩²),

which is Cauchy-Schwarz, holds far from any stationary state, and is reached by f = a + b e^R. With Q the law of the
reversed path started from the same initial distribution and f antisymmetric under reversal, σ = −R is the entropy
produced plus the change of the distribution, ⟨σ⟩ = ⟨σ_tot⟩ + D(P_M‖P_0), and

    Var f/⟨f⟩² ≥ 4/(⟨e^{−2σ}⟩ − 1),      Var f/⟨f⟩² ≥ 1/⟨tanh²(σ/2)⟩ − 1 ≥ 2/(e^⟨σ⟩ − 1).

The total entropy production σ_tot alone does not bound a process that is not stationary. Units with k_B = 1.

Source: arXiv 2207.14497; the inequalities are proved here in the form given and checked by enumeration.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from gaugefix.errors import ValidityWarning

Array = np.ndarray
_MAX_PATHS = 1_000_000
_MAX_DIMENSIONS = 20
_MAX_BLOCKS = 2000  # more samples are resampled in blocks: the interval is the same and costs no more


@dataclass(frozen=True)
class EntropyBound:
    """A lower bound on the entropy that a process produces within the window of one sample.

    Attributes:
        value: log(1 + 2⟨f⟩²/Var f); 0 where the mean is not distinguishable from zero.
        low: lower end of its confidence interval.
        high: upper end.
        mean: ⟨f⟩.
        variance: Var f.
        n_samples: how many.
        significant: whether the confidence interval of the mean excludes zero.
    """

    value: float
    low: float
    high: float
    mean: float
    variance: float
    n_samples: int
    significant: bool


@dataclass(frozen=True, eq=False)
class OptimalCurrent:
    """The linear current f = xᵀBx' with the sharpest bound.

    Attributes:
        matrix: B, ``(d, d)``, antisymmetric.
        bound: of the samples that were not used to find it.
    """

    matrix: Float[Array, "d d"] = field(repr=False)
    bound: EntropyBound


@dataclass(frozen=True)
class MarkovUncertainty:
    """A current of a Markov chain, exactly, against its bounds.

    Attributes:
        mean: ⟨f⟩.
        variance: Var f.
        entropy: ⟨σ⟩ = ⟨σ_tot⟩ + D; inf where some path has no reverse.
        total_entropy: ⟨σ_tot⟩.
        divergence: D(P_M‖P_0), how far from stationary.
        relative_variance: Var f/⟨f⟩²; inf without a mean current.
        universal_bound: its bound from ⟨e^{−2σ}⟩, 4/(⟨e^{−2σ}⟩ − 1) where every path has a reverse.
        tight_bound: 1/⟨tanh²(σ/2)⟩ − 1.
        average_bound: 2/(e^⟨σ⟩ − 1).
    """

    mean: float
    variance: float
    entropy: float
    total_entropy: float
    divergence: float
    relative_variance: float
    universal_bound: float
    tight_bound: float
    average_bound: float


def universal_bound(
    mean_p: float, mean_q: float, log_ratio: Float[Array, " n"], probabilities: Float[Array, " n"] | None = None
) -> float:
    """Least variance of an observable under P: (⟨f⟩_P⟨e^R⟩ − ⟨f e^R⟩)²/(⟨e^{2R}⟩ − ⟨e^R⟩²).

    With ⟨e^R⟩ = 1 (Q has no weight where P has none) it is (⟨f⟩_P − ⟨f⟩_Q)²/χ²(Q‖P); in finance, with e^R the pricing
    kernel over its mean, the bound of Hansen and Jagannathan on Sharpe ratios.

    Args:
        mean_p: ⟨f⟩ under P.
        mean_q: ⟨f⟩ under Q; ⟨f e^R⟩_P in general.
        log_ratio: R of samples of P, or of all outcomes; −inf where Q is zero. ⟨e^{2R}⟩ has a heavy tail: do not
            estimate it from samples if |R| goes beyond about 2.
        probabilities: of the outcomes under P; equal weights if None.

    Returns:
        The bound, 0 if P and Q are equal.

    Raises:
        ValueError: if there is no sample, or probabilities are negative, of another shape or do not add up to one.

    Example:
        >>> p, q, f = np.array([0.5, 0.5]), np.array([0.2, 0.8]), np.array([0.0, 1.0])
        >>> round(universal_bound(p @ f, q @ f, np.log(q / p), p), 12)  # two outcomes: reached
        0.25
    """  # noqa: DOC502
    r = np.asarray(log_ratio, dtype=float)
    weights = _probabilities(r, probabilities)
    top = float(r.max())
    if top == -math.inf:
        return 0.0
    ratio = np.exp(r - top)  # in units of its largest value
    first, second = float(weights @ ratio), float(weights @ ratio**2)
    spread = float(weights @ (ratio - first) ** 2)
    if spread <= 1e-28 * second:
        return 0.0
    return float((mean_p * first - mean_q * math.exp(-top)) ** 2 / spread)


def average_bound(entropy: float) -> float:
    """Least Var f/⟨f⟩² of an antisymmetric current, 2/(e^⟨σ⟩ − 1); close to equilibrium the conventional 2/⟨σ⟩.

    Args:
        entropy: ⟨σ⟩ = ⟨σ_tot⟩ + D ≥ 0.

    Returns:
        The bound; inf at zero entropy (no current flows), 0 for large.

    Raises:
        ValueError: if ⟨σ⟩ is negative.

    Example:
        >>> round(average_bound(1e-3) * 1e-3, 3)
        1.999
    """
    if not entropy >= 0:
        raise ValueError(f"The mean entropy must be >= 0, got {entropy!r}.")
    if entropy == 0:
        return math.inf
    return 2 / math.expm1(entropy) if entropy < 700 else 0.0


def entropy_production_lower_bound(
    samples: Float[Array, " n"], *, confidence: float = 0.95, n_bootstrap: int = 1000, block: int = 1, seed: int = 0
) -> EntropyBound:
    """Entropy production from one current: ⟨σ⟩ ≥ log(1 + 2⟨f⟩²/Var f).

    Args:
        samples: values of an observable that changes sign when the window is run backwards, one per window, of a
            process whose rules do not change within it (no learning-rate schedule).
        confidence: of the interval.
        n_bootstrap: resamplings for it.
        block: length of the blocks that are resampled, for windows that are not independent.
        seed: of the resampling.

    Returns:
        The bound with its bootstrap interval; 0 where the interval of the mean covers zero.

    Raises:
        ValueError: if there are fewer than two samples, or an argument is out of range.

    Example:
        >>> f = np.random.default_rng(0).normal(1.0, 1.0, 4000)
        >>> found = entropy_production_lower_bound(f)
        >>> bool(found.low < np.log(3) < found.high)
        True
    """
    f = np.asarray(samples, dtype=float)
    if f.ndim != 1 or len(f) < 2:
        raise ValueError(f"At least two samples are needed, in one dimension, got shape {f.shape}.")
    if not 0 < confidence < 1 or n_bootstrap < 10 or not 1 <= block <= len(f) // 2:
        raise ValueError(
            f"confidence must be in (0, 1), n_bootstrap >= 10 and block in [1, {len(f) // 2}], got {confidence!r}, "
            f"{n_bootstrap!r} and {block!r}."
        )
    mean, variance = float(f.mean()), float(f.var(ddof=1))
    if variance == 0:
        warnings.warn(
            "The current does not fluctuate: the bound is infinite." if mean else "The current is zero.",
            ValidityWarning,
            stacklevel=2,
        )
        value = math.inf if mean else 0.0
        return EntropyBound(value, value, value, mean, variance, len(f), bool(mean))
    block = max(block, -(-len(f) // _MAX_BLOCKS))
    blocks = f[: len(f) // block * block].reshape(-1, block)
    sums, squares = blocks.sum(1), (blocks**2).sum(1)
    rng, found = np.random.default_rng(seed), np.empty((2, n_bootstrap))
    for i in range(n_bootstrap):  # counts instead of indices: one multinomial draw
        counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)))
        m = counts @ sums / blocks.size
        found[:, i] = m, counts @ squares / blocks.size - m**2
    tail = (1 - confidence) / 2
    low_mean, high_mean = np.quantile(found[0], [tail, 1 - tail])
    significant = bool(low_mean > 0 or high_mean < 0)
    low, high = np.quantile(np.log1p(2 * found[0] ** 2 / found[1]), [tail, 1 - tail])
    value = math.log1p(2 * mean**2 / variance) if significant else 0.0
    return EntropyBound(value, float(low) if significant else 0.0, float(high), mean, variance, len(f), significant)


def optimal_current(
    before: Float[Array, "n d"], after: Float[Array, "n d"], *, confidence: float = 0.95, seed: int = 0
) -> OptimalCurrent:
    """The antisymmetric B that maximises ⟨f⟩²/Var f of f = xᵀBx', found on one half of the pairs, tested on the other.

    Args:
        before: states x at the start of windows.
        after: states x' at their end.
        confidence: of the interval of the bound.
        seed: of the split and of the resampling.

    Returns:
        The current and its bound. Cost: a linear system in d(d − 1)/2 unknowns.

    Raises:
        ValueError: if shapes differ, d is below 2 (no current) or above 20 (project first), or there are too few pairs.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((4000, 2))
        >>> turned = x @ np.array([[0.0, 0.5], [-0.5, 0.0]]) + rng.standard_normal((4000, 2))
        >>> optimal_current(x, turned).bound.significant
        True
    """
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"before and after must be of one shape (n, d), got {x.shape} and {y.shape}.")
    n, d = x.shape
    if not 2 <= d <= _MAX_DIMENSIONS:
        raise ValueError(f"The state must have 2 to {_MAX_DIMENSIONS} dimensions, got {d}: project it first.")
    rows, columns = np.triu_indices(d, 1)
    if n < 4 * (len(rows) + 1):
        raise ValueError(f"{n} pairs are too few for {len(rows)} currents: at least {4 * (len(rows) + 1)} are needed.")
    order = np.random.default_rng(seed).permutation(n)
    areas = x[:, rows] * y[:, columns] - x[:, columns] * y[:, rows]
    fit, test = areas[order[: n // 2]], areas[order[n // 2 :]]
    covariance = np.atleast_2d(np.cov(fit.T))
    weights = np.linalg.lstsq(covariance, fit.mean(0), rcond=1e-10)[0]
    matrix = np.zeros((d, d))
    matrix[rows, columns] = weights
    return OptimalCurrent(
        matrix - matrix.T, entropy_production_lower_bound(test @ weights, confidence=confidence, seed=seed)
    )


def markov_tur(
    kernel: Float[Array, "n n"], start: Float[Array, " n"], steps: int, current: Float[Array, "n n"]
) -> MarkovUncertainty:
    """All paths of a Markov chain: the current f = Σ_t J(x_{t+1}, x_t), its variance, the entropy and the bounds.

    Args:
        kernel: K(x' | x), columns add up to one.
        start: P_0; where it is zero some paths have no reverse, and the universal bound is that of the general form.
        steps: M.
        current: J, antisymmetric.

    Returns:
        Exact values. Cost: n^(M+1) paths.

    Raises:
        ValueError: if the kernel or the start are no probabilities, J is not antisymmetric, ``steps`` < 1, or there are
            more than a million paths.

    Example:
        >>> turn = np.array([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2], [0.2, 0.7, 0.1]])
        >>> found = markov_tur(turn, np.full(3, 1 / 3), 2, turn - turn.T)
        >>> found.relative_variance >= found.tight_bound >= found.average_bound, abs(found.divergence) < 1e-12
        (True, True)
    """
    k, p0, j = (np.asarray(a, dtype=float) for a in (kernel, start, current))
    n = len(p0)
    if k.shape != (n, n) or j.shape != (n, n):
        raise ValueError(f"kernel and current must be ({n}, {n}) for this start, got {k.shape} and {j.shape}.")
    if (k < 0).any() or np.abs(k.sum(0) - 1).max() > 1e-9:
        raise ValueError(f"The columns of the kernel must be probabilities; they add up to {k.sum(0)}.")
    if (p0 < 0).any() or abs(p0.sum() - 1) > 1e-9:
        raise ValueError(f"start must be probabilities that add up to one, got {p0}.")
    if np.abs(j + j.T).max() > 1e-12 * max(float(np.abs(j).max()), 1e-300):
        raise ValueError("current must be antisymmetric.")
    if steps < 1 or n ** (steps + 1) > _MAX_PATHS:
        raise ValueError(f"steps must be >= 1 and n^(steps + 1) <= {_MAX_PATHS}, got {steps!r} for n = {n}.")
    paths = np.stack(np.unravel_index(np.arange(n ** (steps + 1)), (n,) * (steps + 1)))
    old, new = paths[:-1], paths[1:]
    forward, backward = k[new, old].prod(0), k[old, new].prod(0)
    end = np.linalg.matrix_power(k, steps) @ p0
    p, reverse, total = p0[paths[0]] * forward, p0[paths[-1]] * backward, end[paths[-1]] * backward
    f, seen = j[new, old].sum(0), p > 0
    p, reverse, total, f = p[seen], reverse[seen], total[seen], f[seen]
    mean, variance = float(p @ f), float(p @ (f - p @ f) ** 2)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(reverse / p)
        total_entropy = float(p @ np.log(p / total))
        alive = end > 0
        divergence = float(end[alive] @ np.log(end[alive] / p0[alive]))
    square = mean**2
    tanh_sq = float(p @ ((p - reverse) / (p + reverse)) ** 2)
    universal = universal_bound(mean, float(reverse @ f), log_ratio, p)
    entropy = float(-(p @ log_ratio))
    return MarkovUncertainty(
        mean,
        variance,
        entropy,
        total_entropy,
        divergence,
        variance / square if square > 0 else math.inf,
        universal / square if square > 0 else math.inf,
        1 / tanh_sq - 1 if tanh_sq > 0 else math.inf,
        average_bound(max(entropy, 0.0)),
    )


def _probabilities(values: Array, probabilities: Float[Array, " n"] | None) -> Array:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"log_ratio must have one dimension and at least one entry, got shape {values.shape}.")
    if probabilities is None:
        return np.full(len(values), 1 / len(values))
    p = np.asarray(probabilities, dtype=float)
    if p.shape != values.shape or (p < 0).any() or abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"probabilities must be ({len(values)},), not negative, and add up to one.")
    return p
