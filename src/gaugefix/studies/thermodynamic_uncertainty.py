"""How irreversible a process is at least follows from the mean and the variance of one current.

For a current f that changes sign when time runs backwards, Var f/⟨f⟩² ≥ 2/(e^⟨σ⟩ − 1), where ⟨σ⟩ is the entropy that is
produced plus a divergence that says how far the distribution has moved. It holds far from any stationary state, where
neither the entropy production alone nor the conventional bound 2/⟨σ⟩ is a bound; it has sharper forms that are reached;
and it is an inequality about any two laws, so that it limits Sharpe ratios too.

The study enumerates the paths of thousands of random Markov chains, samples SGD beside a minimum, where the entropy
production is known, and prices a stock. Units with k_B = 1.

Source: Liu Ziyin and Masahito Ueda, "Universal Thermodynamic Uncertainty Relation in Non-Equilibrium Dynamics",
arXiv 2207.14497. The inequalities are in the form in which they can be proved; the printed ones could not be read.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_against, draw_identity, draw_within
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.theory.linear_sgd import LinearSGD
from gaugefix.theory.uncertainty_relation import (
    MarkovUncertainty,
    entropy_production_lower_bound,
    markov_tur,
    optimal_current,
    universal_bound,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATES, CHAINS, MAX_STEPS = 3, 1000, 4  # chains for each seed
LRS, PAIRS = (0.05, 0.2, 0.5), 200_000
HESSIAN = np.diag([1.0, 0.3])
NOISE = np.array([[0.525, 0.475], [0.475, 0.525]])  # diag(1, 0.05) turned by 45°: it does not commute with the Hessian
DRIFT, RATE, VOLATILITY, HORIZONS = 0.08, 0.02, 0.2, (0.25, 1.0, 4.0, 16.0)  # a stock, per year
SHOWN = 300


@study("2207.14497")
def thermodynamic_uncertainty() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "bounds",
            "Var f/⟨f⟩² is never below the bounds, for any chain, any start and any current.",
            least_ratios,
            Tolerance("rounding", absolute=1e-9, relation=">="),
            draw_bounds,
            unit="least (Var f/⟨f⟩²)/bound",
        ),
        Claim(
            "identity",
            "The σ in them is entropy production plus the divergence of the last distribution from the first.",
            identity,
            Tolerance("rounding", absolute=1e-9),
            draw_identity,
            unit="⟨σ⟩",
        ),
        Claim(
            "alone",
            "Entropy production alone is no bound away from a stationary state, and neither is the conventional 2/⟨σ⟩.",
            violations,
            Tolerance("an inequality: at least one chain in a thousand", relation=">="),
            unit="share of chains below",
        ),
        Claim(
            "reached",
            "The sharper forms are reached, by f = a + b·Q/P and by f = tanh(σ/2).",
            saturation,
            Tolerance("rounding", absolute=1e-9),
            draw_within(0.9, 1.1),
            unit="(Var f/⟨f⟩²)/bound",
        ),
        Claim(
            "circulation",
            "SGD beside a minimum circulates if the noise and the Hessian do not commute, at a known rate.",
            circulation,
            Tolerance(
                "four standard errors of the mean of 200,000 pairs, at the smallest learning rate", relative=0.08
            ),
            draw_against("learning rate"),
            unit="area per step",
        ),
        Claim(
            "sgd",
            "So samples of its weights alone prove that it is irreversible, and by no more than it really is.",
            proven_entropy,
            Tolerance("an inequality", relation="<="),
            draw_entropy,
            unit="entropy per step",
        ),
        Claim(
            "reversible",
            "If noise and Hessian commute nothing is produced, and nothing is proven.",
            reversible_entropy,
            Tolerance("rounding; a current is found by chance in five of a hundred cases", absolute=2e-4),
            unit="entropy per step",
        ),
        Claim(
            "finance",
            "With the pricing kernel for Q/P the inequality limits the Sharpe ratio over any horizon.",
            sharpe_ratios,
            Tolerance("an inequality", relation="<="),
            draw_sharpe,
            unit="Sharpe ratio",
        ),
    )


# Markov chains


@cache
def _chains(seeds: tuple[int, ...], n: int) -> list[list[MarkovUncertainty]]:
    """Random kernels, starts and currents, one to four steps."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        row = []
        for i in range(n):
            kernel = rng.dirichlet(np.ones(STATES), STATES).T
            current = rng.standard_normal((STATES, STATES))
            row.append(markov_tur(kernel, rng.dirichlet(np.ones(STATES)), 1 + i % MAX_STEPS, current - current.T))
        found.append(row)
    return found


def _each(setting: Setting, name: str) -> np.ndarray:
    rows = _chains(setting.seeds, setting.choose(CHAINS, 10 * CHAINS))
    return np.array([[getattr(c, name) for c in row] for row in rows])


def least_ratios(setting: Setting) -> Evidence:
    """Least over 1000 chains for each seed."""
    names = ("universal_bound", "tight_bound", "average_bound")
    seen = _each(setting, "relative_variance")
    measured = np.stack([(seen / _each(setting, n)).min(1) for n in names], axis=1)
    curves = {"entropy": _each(setting, "entropy")[0, :SHOWN], "total": _each(setting, "total_entropy")[0, :SHOWN]}
    curves["seen"] = seen[0, :SHOWN]
    return Evidence(np.ones(3), measured, ("from ⟨e^−2σ⟩", "from ⟨tanh²⟩", "from ⟨σ⟩"), curves)


def draw_bounds(axes: Axes, result: Comparison) -> None:
    """Every chain over its ⟨σ⟩, above the bound; over its entropy production, some are below."""
    grid = np.geomspace(0.02, 8, 200)
    curves = result.curves
    axes.loglog(
        curves["total"], curves["seen"], "o", ms=3, mfc="none", mec=NEUTRAL, mew=0.7, label="over ⟨σ_tot⟩ alone"
    )
    axes.loglog(curves["entropy"], curves["seen"], "o", ms=3, color=MEASURED, label="chains over ⟨σ⟩")
    axes.loglog(grid, 2 / np.expm1(grid), color=PREDICTED, label="bound 2/(e^⟨σ⟩ − 1)")
    axes.loglog(grid, 2 / grid, ":", color=PREDICTED, label="conventional 2/⟨σ⟩")
    axes.set(xlabel="entropy", ylabel="Var f/⟨f⟩²", xlim=(0.02, 8), ylim=(2e-2, 1e4))
    axes.legend(fontsize=7.5)


def identity(setting: Setting) -> Evidence:
    """The chains of largest divergence of every number of steps."""
    entropy, total, moved = (_each(setting, n) for n in ("entropy", "total_entropy", "divergence"))
    which = [moved[:, k::MAX_STEPS].argmax(1) * MAX_STEPS + k for k in range(MAX_STEPS)]
    rows = np.arange(len(moved))
    predicted = np.stack([(total + moved)[rows, w] for w in which], axis=1)
    return Evidence(
        predicted, np.stack([entropy[rows, w] for w in which], axis=1), labels("M", range(1, MAX_STEPS + 1))
    )


def violations(setting: Setting) -> Evidence:
    """Counted."""
    seen, entropy, total = (_each(setting, n) for n in ("relative_variance", "entropy", "total_entropy"))
    alone, conventional = seen < 2 / np.expm1(total), seen < 2 / entropy
    measured = np.stack([alone.mean(1), conventional.mean(1)], axis=1)
    return Evidence(np.full(2, 1e-3), measured, ("2/(e^⟨σ_tot⟩ − 1)", "2/⟨σ⟩"))


def saturation(setting: Setting) -> Evidence:
    """All paths of a chain of two steps."""
    measured = []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        kernel, start = rng.dirichlet(np.ones(STATES), STATES).T, rng.dirichlet(np.ones(STATES))
        a, b, c = np.unravel_index(np.arange(STATES**3), (STATES,) * 3)
        p, q = start[a] * kernel[b, a] * kernel[c, b], start[c] * kernel[b, c] * kernel[a, b]
        linear = 0.7 - 1.3 * q / p
        tanh = (p - q) / (p + q)
        mean = p @ tanh
        variance = p @ (linear - p @ linear) ** 2
        tight = (p @ (tanh - mean) ** 2 / mean**2) / (1 / (p @ tanh**2) - 1)
        measured.append([variance / universal_bound(float(p @ linear), float(q @ linear), np.log(q / p), p), tight])
    return Evidence(np.ones(2), np.array(measured), ("a + b·Q/P", "tanh(σ/2)"))


# SGD beside a minimum


def circulation(setting: Setting) -> Evidence:
    """Mean of θ₁θ₂' − θ₂θ₁' over independent pairs."""
    n = setting.choose(PAIRS, 10 * PAIRS)
    predicted, measured = [], np.empty((len(setting.seeds), len(LRS)))
    for column, lr in enumerate(LRS):
        sgd = LinearSGD(HESSIAN, NOISE, lr)
        predicted.append(sgd.circulation[0, 1])
        for row, seed in enumerate(setting.seeds):
            x, y = sgd.sample(n, seed)
            measured[row, column] = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).mean()
    return Evidence(np.array(predicted), measured, labels("lr", LRS), {"x": np.array(LRS)})


def proven_entropy(setting: Setting) -> Evidence:
    """From the sharpest linear current, found on half of the pairs."""
    measured = np.empty((len(setting.seeds), len(LRS)))
    for column, lr in enumerate(LRS):
        sgd = LinearSGD(HESSIAN, NOISE, lr)
        for row, seed in enumerate(setting.seeds):
            measured[row, column] = optimal_current(*sgd.sample(PAIRS, seed), seed=seed).bound.value
    grid = np.linspace(0.02, 0.6, 40)
    line = np.array([LinearSGD(HESSIAN, NOISE, lr).entropy_production for lr in grid])
    exact = np.array([LinearSGD(HESSIAN, NOISE, lr).entropy_production for lr in LRS])
    return Evidence(exact, measured, labels("lr", LRS), {"grid": grid, "line": line})


def draw_entropy(axes: Axes, result: Comparison) -> None:
    """What is proven stays below what there is."""
    axes.plot(result.curves["grid"], result.curves["line"], color=PREDICTED, label="entropy production, exact")
    axes.errorbar(
        LRS, result.mean, np.nan_to_num(result.stderr), fmt="o", ms=4.5, color=MEASURED, label="proven by samples"
    )
    axes.set(xlabel="learning rate", ylabel=result.unit)
    axes.legend()


def reversible_entropy(setting: Setting) -> Evidence:
    """The same noise in the axes of the Hessian."""
    measured = np.empty((len(setting.seeds), 2))
    sgd = LinearSGD(HESSIAN, np.diag([1.0, 0.05]), LRS[1])
    for row, seed in enumerate(setting.seeds):
        x, y = sgd.sample(PAIRS, seed)
        proven = entropy_production_lower_bound(x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0], seed=seed).value
        measured[row] = sgd.entropy_production, proven
    return Evidence(np.zeros(2), measured, ("exact", "proven"))


# Finance


def _sharpe(horizon: float) -> float:
    """Mean over standard deviation of the excess return of a stock that grows geometrically."""
    excess = math.exp(DRIFT * horizon) - math.exp(RATE * horizon)
    return excess / (math.exp(DRIFT * horizon) * math.sqrt(math.expm1(VOLATILITY**2 * horizon)))


def _largest_sharpe(horizon: float | np.ndarray) -> np.ndarray:
    """√(e^{κ²τ} − 1) with the market price of risk κ: the standard deviation of the pricing kernel over its mean."""
    return np.asarray(np.sqrt(np.expm1(((DRIFT - RATE) / VOLATILITY) ** 2 * np.asarray(horizon))))


def sharpe_ratios(setting: Setting) -> Evidence:
    """The stock in 400,000 futures for each horizon."""
    measured = np.empty((len(setting.seeds), len(HORIZONS)))
    for row, seed in enumerate(setting.seeds):
        normal = np.random.default_rng(seed).standard_normal(200_000)
        normal = np.concatenate([normal, -normal])
        for column, horizon in enumerate(HORIZONS):
            growth = (DRIFT - VOLATILITY**2 / 2) * horizon + VOLATILITY * math.sqrt(horizon) * normal
            excess = np.exp(growth) - math.exp(RATE * horizon)
            measured[row, column] = excess.mean() / excess.std()
    grid = np.geomspace(0.2, 20, 60)
    curves = {"grid": grid, "line": _largest_sharpe(grid), "stock": np.array([_sharpe(h) for h in grid])}
    return Evidence(_largest_sharpe(np.array(HORIZONS)), measured, labels("years", HORIZONS), curves)


def draw_sharpe(axes: Axes, result: Comparison) -> None:
    """The stock below the bound, at every horizon."""
    curves = result.curves
    axes.loglog(curves["grid"], curves["line"], color=PREDICTED, label="bound")
    axes.loglog(curves["grid"], curves["stock"], "--", color=NEUTRAL, lw=1, label="the stock, closed form")
    axes.loglog(HORIZONS, result.mean, "o", ms=4.5, color=MEASURED, label="the stock, sampled")
    axes.set(xlabel="horizon in years", ylabel=result.unit)
    axes.legend()
