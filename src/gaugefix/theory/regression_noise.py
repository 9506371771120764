"""Minibatch noise of linear regression: how far SGD scatters, up to which learning rate, and how that depends on B.

The loss of a sample is ½(wᵀx − y)², with the factor ½: for a loss without it use twice the learning rate and half the
weight decay. Batches are drawn with replacement. For Gaussian inputs everything is closed, for given data one linear
system.

Source: arXiv 2102.05375 (E2–E4, E7, E8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gaugefix.theory.mean_square import MeanSquare


@dataclass(frozen=True, eq=False)
class RegressionNoise:
    """Stationary state of SGD on a Gaussian regression.

    Attributes:
        variances: Σ_ii along the eigenvectors of the input covariance, ``(D,)``; nan if not stable.
        train_loss: mean loss of a sample; inf if not stable.
        excess_loss: ½Tr AΣ, what the fluctuation adds to the test loss.
        test_loss: ½E(wᵀx − uᵀx)² against the noise-free teacher.
        stable: whether the second moment is bounded.
        lr_limit: the learning rate up to which it is.
    """

    variances: Float[np.ndarray, " D"]
    train_loss: float
    excess_loss: float
    test_loss: float
    stable: bool
    lr_limit: float


@dataclass(frozen=True, eq=False)
class LinearStationary:
    """Stationary state of SGD on a given regression.

    Attributes:
        solution: w*, the (regularised) least-squares solution, ``(D,)``; of least norm if there are several.
        covariance: Σ of the iterates about it, ``(D, D)``; nan if not stable. Zero in directions that no input has,
            along which SGD does not move.
        excess_loss: ½Tr HΣ, H with the weight decay; inf if not stable.
        radius: ρ, the factor per step of the slowest second moment.
        lr_limit: learning rate up to which ρ < 1, exact for these data.
        stable: whether lr is below it.
        residual: of the linear system.
        rank: number of directions in which SGD moves.
    """

    solution: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]
    excess_loss: float
    radius: float
    lr_limit: float
    stable: bool
    residual: float
    rank: int


def label_noise_sgd(
    curvatures: Float[np.ndarray, " D"], sigma2: float, lr: float, batch_size: int, momentum: float = 0.0
) -> RegressionNoise:
    """SGD on y = uᵀx + ε with Gaussian inputs of covariance A and Var ε = σ².

        Σ = (σ²/S)(1 + κ/S)·lr·G⁻¹,   G = 2(1 − μ) − ((1 − μ)/(1 + μ) + 1/S)·lr·A,
        κ = Tr[lr·A G⁻¹]/(1 − Tr[lr·A G⁻¹]/S),   ½Tr AΣ = σ²κ/(2S).

    Noise on the inputs, x̃ = x + η with η ~ N(0, B), is the same with K = A + B for A and σ² = uᵀA K⁻¹B u.

    Args:
        curvatures: eigenvalues of A.
        sigma2: σ².
        lr: learning rate.
        batch_size: S.
        momentum: μ.

    Returns:
        The stationary state; ``stable=False`` with the limit beyond it.

    Raises:
        ValueError: if an argument is out of range.

    Source: arXiv 2102.05375 (E2, E3).

    Example:
        >>> found = label_noise_sgd(np.array([1.0, 0.5]), 1.0, lr=0.8, batch_size=10)
        >>> found.variances.round(5).tolist(), round(found.train_loss, 5)
        ([0.07911, 0.0568], 0.55375)
    """  # noqa: DOC502
    a = _check(curvatures, lr, batch_size, momentum, sigma2)
    limit = _limit(a, batch_size, momentum)
    if not lr < limit:
        return _unstable(len(a), limit)
    g = _g(a, lr, batch_size, momentum)
    trace = float((lr * a / g).sum())
    kappa = trace / (1 - trace / batch_size)
    variances = sigma2 / batch_size * (1 + kappa / batch_size) * lr / g
    excess = sigma2 * kappa / (2 * batch_size)
    return RegressionNoise(variances, sigma2 / 2 * (1 + kappa / batch_size), excess, excess, True, limit)


def ridge_sgd(
    curvatures: Float[np.ndarray, " D"],
    teacher: Float[np.ndarray, " D"],
    lr: float,
    batch_size: int,
    weight_decay: float,
    sigma2: float = 0.0,
) -> RegressionNoise:
    """SGD with weight decay on y = uᵀx + ε, Gaussian inputs of covariance A, by the linear system of its variances.

    With K = A + λ and the bias d = −λK⁻¹u,

        (2K_i − lr·K_i² − lr·A_i²/S)Σ_ii = (lr/S)[(Tr AΣ + dᵀA d + σ²)A_i + (A_i d_i)²].

    The closed form that is printed for the whole matrix Σ holds off the diagonal only if all matrices commute and is
    not used. λ may be negative: at a large learning rate that lowers the test loss, because stability needs
    lr·(A + λ) ≲ 2.

    Args:
        curvatures: eigenvalues of A.
        teacher: u along its eigenvectors.
        lr: learning rate.
        batch_size: S.
        weight_decay: λ above −min A.
        sigma2: Var ε.

    Returns:
        The stationary state; ``lr_limit`` is nan where it is stable, since the limit is not needed.

    Raises:
        ValueError: if an argument is out of range.

    Source: arXiv 2102.05375 (E4).

    Example:
        >>> one = np.ones(1)
        >>> ridge_sgd(one, one, 3.0, 100, 0.0).stable, round(ridge_sgd(one, one, 3.0, 100, -0.412).test_loss, 2)
        (False, 0.43)
    """
    a = _check(curvatures, lr, batch_size, 0.0, sigma2)
    u = np.asarray(teacher, dtype=float)
    if u.shape != a.shape or not weight_decay > -a.min():
        raise ValueError(
            f"ridge_sgd needs one entry of the teacher per curvature and weight_decay > {-a.min():g}, got shape "
            f"{u.shape} and {weight_decay!r}."
        )
    k = a + weight_decay
    bias = -weight_decay * u / k
    base = float((a * bias**2).sum())
    pull = 2 * k - lr * k**2 - lr * a**2 / batch_size
    share = float((a**2 / pull).sum()) * lr / batch_size
    if (pull <= 0).any() or share >= 1:
        return _unstable(len(a), _ridge_limit(a, k, batch_size))
    own = lr / batch_size * ((base + sigma2) * a + (a * bias) ** 2) / pull
    total = float((a * own).sum()) / (1 - share)
    variances = own + lr / batch_size * total * a / pull
    return RegressionNoise(variances, (base + total + sigma2) / 2, total / 2, (base + total) / 2, True, math.nan)


def linear_sgd_stationary(
    x: Float[np.ndarray, "N D"],
    y: Float[np.ndarray, " N"],
    lr: float,
    batch_size: int,
    weight_decay: float = 0.0,
    *,
    replacement: bool = True,
) -> LinearStationary:
    """Exact stationary state of SGD on a data set, for a linear model or the last layer of a network.

    Σ is the fixed point of Σ = E[(1 − lr·H_B)Σ(1 − lr·H_B)] + lr²C₀ with the noise C₀ at the solution, a linear
    system. Nothing is assumed about the inputs; label noise, input noise and misfit are in the residuals.

    Args:
        x: inputs, with a column of ones for a bias; subtract means yourself.
        y: targets.
        lr: learning rate.
        batch_size: S.
        weight_decay: λ.
        replacement: whether a batch may hold a sample twice; without, every batch is drawn anew from all samples.

    Returns:
        The stationary state. Cost: some tens of passes over the data with D² numbers each, for D up to a few hundred.

    Raises:
        ValueError: if a shape or range does not fit.

    Source: arXiv 2102.05375 (E0, E1, E7).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((400, 3))
        >>> y = x @ np.ones(3) + rng.standard_normal(400)
        >>> found = linear_sgd_stationary(x, y, lr=0.1, batch_size=4)
        >>> found.stable, bool(0.02 < found.excess_loss < 0.08), round(found.lr_limit, 1)
        (True, True, 1.0)
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or y.shape != x.shape[:1] or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"x must be (N, D) and y (N,), all finite, got {x.shape} and {y.shape}.")
    if not (lr > 0 and math.isfinite(lr)) or not weight_decay >= 0:
        raise ValueError(f"lr must be > 0 and weight_decay >= 0, got {lr!r} and {weight_decay!r}.")
    n = len(x)
    noise = MeanSquare(x, batch_size, weight_decay, replacement=replacement)
    basis = noise.basis
    z = x @ basis
    solution = np.linalg.solve(noise.mean, z.T @ y / n)
    residuals = z @ solution - y
    pull = weight_decay * solution
    source = lr**2 * noise.share * ((z * residuals[:, None] ** 2).T @ z / n - np.outer(pull, pull))
    limit = noise.lr_limit()
    radius, stable = noise.radius(lr), lr < limit
    inner, residual = noise.solve(source, lr) if stable else (np.full_like(noise.mean, np.nan), math.nan)
    excess = float((noise.mean * inner).sum()) / 2 if stable else math.inf
    rank = basis.shape[1]
    return LinearStationary(
        basis @ solution, basis @ inner @ basis.T, excess, radius, limit, bool(stable), residual, rank
    )


def equivalent_lr(curvatures: Float[np.ndarray, " D"], lr: float, batch_size: int, new_batch_size: int) -> float:
    """The learning rate at a new batch size that leaves the excess loss from gradient noise unchanged.

    The excess loss relative to the loss itself is κ(lr, S)/S of `label_noise_sgd`; its root is found. For a small
    learning rate and S ≫ 1 this is the rule lr ∝ S. It fails at both ends: where lr comes near 2/h_max, which no
    batch size can exceed, and at a batch of few samples, whose own curvature fluctuates.

    Args:
        curvatures: eigenvalues of the Hessian at the minimum; the large ones decide.
        lr: learning rate at the old batch size.
        batch_size: old.
        new_batch_size: new.

    Returns:
        The learning rate, always below the limit of stability at the new batch size.

    Raises:
        ValueError: if an argument is out of range, or SGD is unstable at the old setting.

    Source: arXiv 2102.05375 (E8).

    Example:
        >>> h = np.array([1, 0.7, 0.4, 0.2, 0.1]).repeat(4)
        >>> [round(equivalent_lr(h, 0.177, 4, b), 3) for b in (1, 4, 16, 64)]  # the linear rule: 0.044 … 2.83
        [0.046, 0.177, 0.59, 1.355]
    """
    from scipy.optimize import brentq  # late: slow to import

    old = label_noise_sgd(curvatures, 1.0, lr, batch_size)
    if not old.stable:
        raise ValueError(
            f"equivalent_lr: SGD is unstable at lr = {lr:g} and batch size {batch_size}: the limit is {old.lr_limit:g}."
        )
    limit = _limit(_check(curvatures, lr, new_batch_size, 0.0, 1.0), new_batch_size, 0.0)

    def gap(log_rate: float) -> float:
        found = label_noise_sgd(curvatures, 1.0, math.exp(log_rate), new_batch_size)
        return math.log(found.excess_loss / old.excess_loss) if found.stable else math.inf

    high = math.log(limit * (1 - 1e-9))
    low = min(high, math.log(lr)) - 1
    while gap(low) > 0:
        low -= 2
    if gap(high) <= 0:  # as noisy as it can be
        return math.exp(high)
    return math.exp(float(brentq(gap, low, high, xtol=1e-12)))


def _check(curvatures: np.ndarray, lr: float, batch_size: int, momentum: float, sigma2: float) -> np.ndarray:
    a = np.atleast_1d(np.asarray(curvatures, dtype=float))
    if a.ndim != 1 or not (np.isfinite(a).all() and (a > 0).all()):
        raise ValueError("curvatures must be a vector of positive numbers; leave out the flat directions.")
    if not (lr > 0 and math.isfinite(lr)) or batch_size < 1 or not 0 <= momentum < 1 or not sigma2 >= 0:
        raise ValueError(
            f"lr must be > 0, batch_size >= 1, momentum in [0, 1), sigma2 >= 0; got {lr!r}, {batch_size!r}, "
            f"{momentum!r}, {sigma2!r}."
        )
    return a


def _g(a: np.ndarray, lr: float, batch_size: int, momentum: float) -> np.ndarray:
    return np.asarray(2 * (1 - momentum) - ((1 - momentum) / (1 + momentum) + 1 / batch_size) * lr * a)


def _limit(a: np.ndarray, batch_size: int, momentum: float) -> float:
    """Where Tr[lr·A G⁻¹] reaches S; for equal curvatures and μ = 0 that is 2S/(a(S + 1 + D))."""
    from scipy.optimize import brentq

    pole = 2 * (1 - momentum) / (((1 - momentum) / (1 + momentum) + 1 / batch_size) * float(a.max()))

    def slack(share: float) -> float:  # positive below the limit
        rate = share * pole
        return batch_size - float((rate * a / _g(a, rate, batch_size, momentum)).sum())

    return pole * float(brentq(slack, 0.0, 1 - 1e-13, xtol=1e-15, rtol=1e-14))


def _ridge_limit(a: np.ndarray, k: np.ndarray, batch_size: int) -> float:
    """The same with weight decay: the smallest lr at which the variances diverge."""
    from scipy.optimize import brentq

    pole = float((2 * k / (k**2 + a**2 / batch_size)).min())

    def slack(share: float) -> float:
        rate = share * pole
        return 1 - rate / batch_size * float((a**2 / (2 * k - rate * (k**2 + a**2 / batch_size))).sum())

    return pole * float(brentq(slack, 0.0, 1 - 1e-13, xtol=1e-15, rtol=1e-14))


def _unstable(size: int, limit: float) -> RegressionNoise:
    return RegressionNoise(np.full(size, np.nan), math.inf, math.inf, math.inf, False, limit)
