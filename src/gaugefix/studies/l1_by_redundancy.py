"""Writing every weight as a product of two turns weight decay into an exact L1 penalty.

With w = u ⊙ v and PyTorch's weight decay λ on u and v, training solves loss + λ‖w‖₁: the product adds saddles, no
spurious minima. Zeros are exact because a weight whose gradient stays below λ decays exponentially. Two things spoil
it: factors that start equal keep every sign for ever, and a weight decay that is decoupled from the gradient has other
fixed points.

The study solves Lasso problems with `gaugefix.control.impose.sparse` and an ordinary optimizer and compares with
coordinate descent, and counts zeros in a network for digits. In scikit-learn's terms the data term here is ‖y −
Xw‖²/(2n), so that λ is the alpha of Lasso.

Source: Liu Ziyin and Zihao Wang, "spred: Solving L1 Penalty with SGD", arXiv 2210.01212.
"""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control import impose
from gaugefix.errors import StudyError
from gaugefix.studies.constraint_solvers import minimise
from gaugefix.studies.digits import digits, network, train_on_digits
from gaugefix.studies.figures import draw_identity
from gaugefix.studies.framework import Claim, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.theory.redundant_factors import factor_decay

SAMPLES, SIZE = 120, 15
STRENGTHS = (0.05, 0.15, 0.5)
ADAM_LR, STEPS, FEWER = 0.03, 5000, 3000  # the Lasso coefficients need most
LOGISTIC_STRENGTHS = (0.01, 0.03)
RATES = ((0.0, 0.0), (0.0, 0.06), (0.9, 0.0), (0.9, 0.06))  # momentum, gradient
RATE_STRENGTH = 0.1
NETWORK = (64, 64, 64, 10)
NETWORK_STRENGTH, NETWORK_LR, MOMENTUM, ZERO = 5e-3, 0.1, 0.9, 1e-6


@study("2210.01212")
def l1_by_redundancy() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "lasso",
            "Training the two factors with weight decay λ ends at the Lasso solution with penalty λ.",
            lasso_solutions,
            Tolerance("Adam stops at a finite time; near zero the approach takes longest", absolute=1e-6),
            draw_identity,
            unit="coefficient",
        ),
        Claim(
            "support",
            "The number of weights that survive is that of Lasso.",
            supports,
            Tolerance("a count is an integer"),
            unit="non-zero weights",
        ),
        Claim(
            "sign-trap",
            "From equal factors no weight can turn negative: the end is the non-negative Lasso.",
            sign_trap,
            Tolerance("Adam stops at a finite time; near zero the approach takes longest", absolute=1e-6),
            draw_identity,
            unit="coefficient",
        ),
        Claim(
            "logistic",
            "L1-penalised logistic regression ends at the objective of the solver that is made for it.",
            logistic_objectives,
            Tolerance("both solvers stop at a finite precision", absolute=1e-9),
            draw_identity,
            unit="objective",
        ),
        Claim(
            "decoupled-decay",
            "With decoupled weight decay (AdamW) the end is not the Lasso solution.",
            decoupled_distance,
            Tolerance("an inequality: at least a twentieth of the largest coefficient", relation=">="),
            unit="relative distance to Lasso",
        ),
        Claim(
            "dying-rate",
            "A dying weight shrinks by the square of 1 − lr·(λ − |g|)/(1 − momentum), to first order in lr, per step.",
            dying_rates,
            Tolerance("the mode that shrinks faster has a share in the beginning", relative=5e-3),
            draw_identity,
            unit="log of |w| per step",
        ),
        Claim(
            "network-zeros",
            "In a network at constant learning rate nearly all weights end at zero.",
            lambda setting: _zeros(setting, factored=True),
            Tolerance("an inequality", relation=">="),
            unit="fraction of |w| ≤ 1e-6",
        ),
        Claim(
            "subgradient",
            "The same penalty as a subgradient leaves them at the size of a step.",
            lambda setting: _zeros(setting, factored=False),
            Tolerance("an inequality", relation="<="),
            unit="fraction of |w| ≤ 1e-6",
        ),
    )


# Lasso


@cache
def _problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Regression on weights of both signs, some zero, with correlated inputs of unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, SIZE)) + 0.5 * rng.standard_normal((SAMPLES, 1))
    x = (x - x.mean(0)) / x.std(0)
    truth = np.where(np.arange(SIZE) % 3 == 0, 0.0, rng.standard_normal(SIZE))
    return x, x @ truth + 0.3 * rng.standard_normal(SAMPLES)


def _coordinate_descent(x: np.ndarray, y: np.ndarray, strength: float, *, positive: bool = False) -> np.ndarray:
    """Lasso to machine precision; columns of x have mean square one."""
    w, residual = np.zeros(x.shape[1]), y.copy()
    for _ in range(10_000):
        change = 0.0
        for j in range(len(w)):
            rho = x[:, j] @ residual / len(x) + w[j]
            new = math.copysign(max(abs(rho) - strength, 0.0), rho)
            new = max(new, 0.0) if positive else new
            residual += x[:, j] * (w[j] - new)
            change, w[j] = max(change, abs(new - w[j])), new
        if change < 1e-15:
            return w
    raise StudyError("Coordinate descent has not converged.")


def _train(
    seeds: tuple[int, ...],
    strength: float,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    *,
    steps: int = FEWER,
    equal: bool = False,
) -> np.ndarray:
    """Train the factors of linear layers, a row for each seed, the learning rate falling to zero along a cosine."""
    x, y = (torch.from_numpy(np.stack(parts)) for parts in zip(*map(_problem, seeds), strict=True))
    starts = [torch.randn(SIZE, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    layer = nn.Linear(SIZE, len(seeds), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack(starts))
    impose.sparse(layer, "weight", strength=strength)
    if equal:
        with torch.no_grad():
            for _, factor in impose.factors(layer):
                factor.fill_(0.5)
    optimizer = kind(impose.parameter_groups(layer), lr=ADAM_LR)  # type: ignore[call-arg]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        errors = (x @ layer.weight[..., None])[..., 0] - y
        (errors.square().sum() / (2 * SAMPLES)).backward()
        optimizer.step()
        schedule.step()
    weight: np.ndarray = layer.weight.detach().numpy()
    return weight


@cache
def _solutions(seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured coefficients, ``(seeds, strengths, coefficients)``."""
    predicted = [[_coordinate_descent(*_problem(seed), s) for s in STRENGTHS] for seed in seeds]
    return np.array(predicted), np.stack([_train(seeds, s, steps=STEPS) for s in STRENGTHS], axis=1)


def lasso_solutions(setting: Setting) -> Evidence:
    """Every coefficient at every strength."""
    predicted, measured = (a.reshape(len(a), -1) for a in _solutions(setting.seeds))
    return Evidence(predicted, measured, tuple(f"λ = {s:g}, w{j}" for s in STRENGTHS for j in range(SIZE)))


def supports(setting: Setting) -> Evidence:
    """Counts of coefficients; the measured zeros are found by `impose.noise_floor`, blind to the prediction."""
    predicted, measured = _solutions(setting.seeds)
    alive = [[SIZE - impose.noise_floor(np.abs(w)).dead for w in row] for row in measured]
    return Evidence((predicted != 0).sum(-1), np.array(alive), labels("λ", STRENGTHS))


def sign_trap(setting: Setting) -> Evidence:
    """Start with u = v."""
    strength = STRENGTHS[0]
    predicted = [_coordinate_descent(*_problem(seed), strength, positive=True) for seed in setting.seeds]
    return Evidence(
        np.array(predicted), _train(setting.seeds, strength, equal=True), tuple(f"w{j}" for j in range(SIZE))
    )


def decoupled_distance(setting: Setting) -> Evidence:
    """Largest deviation of a coefficient, in units of the largest coefficient."""
    strength = STRENGTHS[1]
    solutions = np.array([_coordinate_descent(*_problem(seed), strength) for seed in setting.seeds])
    found = _train(setting.seeds, strength, torch.optim.AdamW)
    distance = np.abs(found - solutions).max(axis=1) / np.abs(solutions).max(axis=1)
    return Evidence(np.array([0.05]), distance[:, None], ("AdamW",))


def logistic_objectives(setting: Setting) -> Evidence:
    """Breast cancer, 500 of the 569 rows, standardised, no intercept: mean cross-entropy + λ‖w‖₁; C = 1/(nλ)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    data, diagnosis = load_breast_cancer(return_X_y=True)
    predicted, measured = np.empty((2, len(setting.seeds), len(LOGISTIC_STRENGTHS)))
    for row, seed in enumerate(setting.seeds):
        some = np.random.default_rng(seed).permutation(len(data))[:500]
        x, y = (data[some] - data[some].mean(0)) / data[some].std(0), diagnosis[some]
        for column, strength in enumerate(LOGISTIC_STRENGTHS):
            solver = LogisticRegression(
                C=1 / (len(x) * strength), l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-13,
                max_iter=100_000,
            )  # fmt: skip
            for found, w in ((predicted, solver.fit(x, y).coef_[0]), (measured, _logistic(x, y, strength, seed))):
                losses = np.logaddexp(0, (1 - 2 * y) * (x @ w))
                found[row, column] = losses.mean() + strength * np.abs(w).sum()
    return Evidence(predicted, measured, labels("λ", LOGISTIC_STRENGTHS))


def _logistic(x: np.ndarray, y: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Coefficients from the factors, by L-BFGS on the loss with weight decay."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y).double()
    layer = nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(1, x.shape[1], generator=torch.Generator().manual_seed(seed)))
    impose.sparse(layer, "weight", strength=strength)
    minimise(layer, lambda: nn.functional.binary_cross_entropy_with_logits(layer(inputs)[:, 0], targets))
    weight: np.ndarray = layer.weight.detach().numpy()[0]
    return weight


# The rate of dying


def dying_rates(setting: Setting) -> Evidence:
    """Follow log|w| of a small weight under the loss g·w; the slope of the last quarter of the run."""
    measured = np.empty((len(setting.seeds), len(RATES)))
    predicted = np.empty(len(RATES))
    for column, (momentum, gradient) in enumerate(RATES):
        lr = 2 * (1 - math.sqrt(momentum)) ** 2
        predicted[column] = 2 * np.log(factor_decay(RATE_STRENGTH, lr, momentum=momentum, gradient=gradient))
        steps = min(1700, round(-60 / predicted[column]))  # not so long that the weight underflows
        measured[:, column] = _slopes(setting.seeds, lr, momentum, gradient, steps)
    return Evidence(predicted, measured, tuple(f"μ = {m:g}, g = {g:g}" for m, g in RATES))


def _slopes(seeds: tuple[int, ...], lr: float, momentum: float, gradient: float, steps: int) -> np.ndarray:
    starts = [torch.randn(1, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    layer = nn.Linear(1, len(seeds), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(1e-3 * torch.stack(starts))
    impose.sparse(layer, "weight", strength=RATE_STRENGTH)
    sgd = impose.optimizer(torch.optim.SGD, layer, lr=lr, momentum=momentum)
    logs = []
    for _ in range(steps):
        sgd.zero_grad()
        (gradient * layer.weight.sum()).backward()
        sgd.step()
        logs.append(layer.weight.detach().abs().log()[:, 0].numpy())
    return np.asarray((logs[-1] - logs[-1 - steps // 4]) / (steps // 4))


# A network


def _zeros(setting: Setting, *, factored: bool) -> Evidence:
    """Fraction of weights at zero after training on digits with SGD at constant learning rate."""
    steps = setting.choose(quick=2000, full=6000)
    measured = []
    for seed in setting.seeds:
        x, y, _ = digits(seed)
        net = network(NETWORK, nn.ReLU, seed)
        linears = [layer for layer in net if isinstance(layer, nn.Linear)]
        if factored:
            for layer in linears:
                impose.sparse(layer, "weight", strength=NETWORK_STRENGTH)
            sgd = impose.optimizer(torch.optim.SGD, net, lr=NETWORK_LR, momentum=MOMENTUM)
            train_on_digits(net, sgd, (x, y), steps=steps, seed=seed)
        else:
            sgd = torch.optim.SGD(net.parameters(), lr=NETWORK_LR, momentum=MOMENTUM)
            penalty = partial(_l1, linears)
            train_on_digits(net, sgd, (x, y), steps=steps, seed=seed, penalty=penalty)
        weights = torch.cat([layer.weight.detach().flatten() for layer in linears])
        measured.append([(weights.abs() <= ZERO).double().mean().item()])
    bar = 0.95 if factored else 0.02
    return Evidence(np.array([bar]), np.array(measured), ("factors" if factored else "subgradient",))


def _l1(linears: list[nn.Linear]) -> Tensor:
    return NETWORK_STRENGTH * torch.stack([layer.weight.abs().sum() for layer in linears]).sum()
