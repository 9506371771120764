"""A symmetric function of many things is a function of their moments, so that few of the things can stand for all.

Rows of a data set in a loss, hidden units in a layer: they are interchangeable, and what is computed from them depends
on moments. Keep the moments of degree ≤ k with positive weights on few of them, and a function that sees no higher ones
does not change at all, along a whole training run if need be; a smooth one changes by an error that falls with the
number of things as d^(−(k + 1)/m − 1/2) in m dimensions.

The study measures the exponent, the two exact cases (least squares on a tenth of the rows; a linear network that trains
like one of 28 units), smooth networks and attention heads followed along their training, the scaling law of training on
few rows, and classification of digits from a third of the images, with `gaugefix.control.compress_points`,
`compress_dataset` and `compress_width`. Attention gains least: its heads have eight dimensions, and 165 moments of
degree three are many beside 300 heads.

Source: Hong-Yi Wang, Di Luo, Tomaso Poggio, Isaac Chuang and Liu Ziyin, "A universal compression theory: lottery ticket
hypothesis and superpolynomial scaling laws", arXiv 2510.00504.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control import WeightedMLP, compress_dataset, compress_points, compress_width
from gaugefix.studies.compressed_heads import exact_heads, head_dynamics
from gaugefix.studies.compressed_training import draw_scaling, scaling_laws
from gaugefix.studies.figures import draw_identity
from gaugefix.studies.framework import Claim, Evidence, Setting, Tolerance
from gaugefix.studies.registry import study
from gaugefix.theory.moment_matching import n_atoms, predict_exponent

CELLS = ((1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3))  # m, k
TRIALS, PROBES = 2, 20  # clouds for each size and seed; functions for each cloud
RUNS = (("tanh, SGD", nn.Tanh, "sgd"), ("tanh, Adam", nn.Tanh, "adam"), ("ReLU, SGD", nn.ReLU, "sgd"))
PART, DEGREE, DRAWS = 0.1, 4, 3  # of the hidden units; random choices to compare with


@study("2510.00504")
def moment_compression() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "exponent",
            "The error of compressing d points to a tenth falls as d^(−(k + 1)/m − 1/2).",
            exponents,
            Tolerance("finite sizes; fits of single seeds scatter", absolute=0.3, per_seed=False),
            draw_identity,
            unit="exponent",
        ),
        Claim(
            "least-squares",
            "With second moments, few rows have the squared loss of all rows for every linear model.",
            least_squares,
            Tolerance("rounding", absolute=1e-10),
            unit="largest difference",
        ),
        Claim(
            "linear-dynamics",
            "28 hidden units with weights train exactly as a linear network of 1000.",
            linear_dynamics,
            Tolerance("rounding, over the steps of training", absolute=1e-10),
            unit="largest difference of predictions",
        ),
        Claim(
            "network-dynamics",
            "A tenth of the units of a network follows its test loss far more closely than a random tenth.",
            network_dynamics,
            Tolerance("an inequality on the largest gap along the run", relation="<=", per_seed=False),
            unit="gap relative to random units",
        ),
        Claim(
            "scaling-law",
            "Trained on 16√d of d rows a network tests as with all: in rows trained on the exponent is doubled.",
            scaling_laws,
            Tolerance("both fits are to the same data sets, with few rows left out", relative=0.05),
            draw_scaling,
            unit="exponent of the excess test loss",
        ),
        Claim(
            "heads-exact",
            "With fourth moments, 495 attention heads without softmax compute what 1000 do.",
            exact_heads,
            Tolerance("rounding", absolute=1e-10),
            unit="largest difference, relative",
        ),
        Claim(
            "heads-dynamics",
            "With softmax, fewer than a third of the heads follow the training of all more closely than random ones.",
            head_dynamics,
            Tolerance("an inequality on the gap of the outputs along the run", relation="<="),
            unit="gap relative to random heads",
        ),
        Claim(
            "digits-probabilities",
            "Logistic regression on a third of the digits gives nearly the probabilities of all of them.",
            lambda setting: _digits_evidence(setting, 0),
            Tolerance("an inequality on the mean gap", relation="<="),
            unit="gap relative to random rows",
        ),
        Claim(
            "digits-accuracy",
            "On 90 digits it classifies better than on 90 random ones.",
            lambda setting: _digits_evidence(setting, 1),
            Tolerance("an inequality on the mean over seeds", relation=">=", per_seed=False),
            unit="gain of test accuracy",
        ),
    )


# Points


def exponents(setting: Setting) -> Evidence:
    """Slope of the error of a mean of sigmoids against the number of points, on logarithmic scales."""
    sizes = np.array(setting.choose(quick=(1000, 2000, 4000, 8000), full=(1000, 2000, 4000, 8000, 16000, 32000)))
    measured = np.empty((len(setting.seeds), len(CELLS)))
    for row, seed in enumerate(setting.seeds):
        for column, (m, k) in enumerate(CELLS):
            errors = [_mean_error(int(d), m, k, seed) for d in sizes]
            measured[row, column] = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    predicted = np.array([predict_exponent(m, k) for m, k in CELLS])
    return Evidence(predicted, measured, tuple(f"m = {m}, k = {k}" for m, k in CELLS))


def _mean_error(d: int, m: int, k: int, seed: int) -> float:
    """Root mean square of f(compressed) − f(all), f = mean over points and over ten directions of σ(⟨w, x⟩)."""
    squares = []
    for trial in range(TRIALS):
        rng = np.random.default_rng((seed, trial, d, m, k))
        points = rng.uniform(-1, 1, (d, m))
        kept, weights = compress_points(points, k, max(d // 10, n_atoms(m, k)))
        change = -np.ones(d)
        change[kept] += weights
        directions = rng.uniform(-1, 1, (m, 10 * PROBES))
        values = change @ (1 / (1 + np.exp(-points @ directions))) / d
        squares.append(values.reshape(PROBES, 10).mean(1) ** 2)
    return float(np.sqrt(np.mean(squares)))


# Rows of a data set


def least_squares(setting: Setting) -> Evidence:
    """400 of the 442 patients of the diabetes data, another choice for each seed."""
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    inputs, targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
    measured = np.empty((len(setting.seeds), 3))
    for row, seed in enumerate(setting.seeds):
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(inputs))[:400]
        x, y = inputs[some], targets[some]
        kept, weights = compress_dataset(x, y, k=2)
        theta = rng.standard_normal((x.shape[1], 50))
        losses = ((x @ theta - y[:, None]) ** 2).mean(0)
        few = weights @ (x[kept] @ theta - y[kept, None]) ** 2 / len(x)
        gaps = [np.abs(losses - few).max()]
        for ridge in (0.0, 10.0):
            whole = np.linalg.solve(x.T @ x + ridge * np.eye(10), x.T @ y)
            scaled = x[kept].T * weights
            part = np.linalg.solve(scaled @ x[kept] + ridge * np.eye(10), scaled @ y[kept])
            gaps.append(np.abs(whole - part).max())
        measured[row] = gaps
    return Evidence(np.zeros(3), measured, ("loss, 50 models", "least squares", "ridge"))


# Hidden units


def linear_dynamics(setting: Setting) -> Evidence:
    """Minibatch SGD with and without momentum and weight decay."""
    settings: tuple[dict[str, Any], ...] = ({"lr": 0.002}, {"lr": 0.0005, "momentum": 0.9, "weight_decay": 0.01})
    measured = np.empty((len(setting.seeds), len(settings)))
    for row, seed in enumerate(setting.seeds):
        x, y = _data(seed, inputs=5)
        for column, options in enumerate(settings):
            wide = _wide(1000, nn.Identity, seed, inputs=5, bias=False)
            narrow = compress_width(wide[0], wide[2], k=2, activation=wide[1])  # type: ignore[arg-type]
            ends = []
            for model in (wide, narrow):
                _descend(model, torch.optim.SGD(model.parameters(), **options), x, y, seed, steps=500)
                ends.append(model(x).detach())
            measured[row, column] = float((ends[0] - ends[1]).abs().max())
    return Evidence(np.zeros(2), measured, ("SGD", "momentum, weight decay"))


def network_dynamics(setting: Setting) -> Evidence:
    """Largest gap of the test loss to that of the wide network, of chosen units over the mean of random ones."""
    width, steps = setting.choose(quick=(2000, 200), full=(4000, 1000))
    measured = np.empty((len(setting.seeds), len(RUNS)))
    for row, seed in enumerate(setting.seeds):
        x, y = _data(seed, inputs=2)
        for column, (_, activation, kind) in enumerate(RUNS):
            wide = _wide(width, activation, seed, inputs=2)
            chosen = compress_width(wide[0], wide[2], DEGREE, PART, activation=wide[1])  # type: ignore[arg-type]
            random = [_random_units(wide, chosen, DRAWS * seed + i) for i in range(DRAWS)]
            curves = []
            for model in (wide, chosen, *random):
                lr = 0.6 / width if kind == "sgd" else 2e-4
                optimizer = (torch.optim.SGD if kind == "sgd" else torch.optim.Adam)(model.parameters(), lr=lr)
                curves.append(_descend(model, optimizer, x, y, seed, steps=steps))
            gap, *others = np.abs(np.array(curves[1:]) - curves[0]).max(1)
            measured[row, column] = gap / np.mean(others)
    return Evidence(np.array([0.25, 0.25, 0.2]), measured, tuple(name for name, *_ in RUNS))


def _data(seed: int, inputs: int) -> tuple[Tensor, Tensor]:
    """sin(3x₁) cos(2x₂) with noise; the first 200 rows are for testing."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(1200, inputs, generator=generator, dtype=torch.float64) - 1
    noise = 0.1 * torch.randn(1200, generator=generator, dtype=torch.float64)
    return x, torch.sin(3 * x[:, 0]) * torch.cos(2 * x[:, 1]) + noise


def _wide(width: int, activation: type[nn.Module], seed: int, *, inputs: int, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width, bias=bias), activation(), nn.Linear(width, 1, bias=bias)
        ).double()  # fmt: skip


def _random_units(wide: nn.Sequential, like: WeightedMLP, seed: int) -> WeightedMLP:
    """As many units drawn at random, all with the same weight."""
    generator = torch.Generator().manual_seed(seed)
    first, second = wide[0], wide[2]
    kept = torch.randperm(len(first.weight), generator=generator)[: len(like.weights)]  # type: ignore[arg-type]
    out = copy.deepcopy(like)
    with torch.no_grad():
        out.first.weight.copy_(first.weight[kept])  # type: ignore[index]
        out.first.bias.copy_(first.bias[kept])  # type: ignore[index]
        out.second.weight.copy_(second.weight[:, kept])  # type: ignore[index]
        out.weights.fill_(len(first.weight) / len(kept))  # type: ignore[arg-type]
    return out


def _descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, seed: int, *, steps: int
) -> np.ndarray:
    """Batches of 64, the same for every model; the test loss every tenth step."""
    generator, curve = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        batch = 200 + torch.randint(len(x) - 200, (64,), generator=generator)
        loss = (model(x[batch]).squeeze(-1) - y[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                curve.append(float((model(x[:200]).squeeze(-1) - y[:200]).square().mean()))
    return np.array(curve)


# Digits


def _digits_evidence(setting: Setting, which: int) -> Evidence:
    results = np.array([_digits(seed) for seed in setting.seeds])
    if which == 0:
        return Evidence(np.array([0.5]), results[:, :1], ("45 rows of each digit",))
    return Evidence(np.array([0.03]), results[:, 1:], ("9 rows of each digit",))


@cache
def _digits(seed: int) -> tuple[float, float]:
    """Gap of the probabilities over that of random rows (k = 2), and gain of accuracy over random rows (k = 1)."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:1437], order[1437:]
    centred = x - x[train].mean(0)
    z = centred @ np.linalg.svd(centred[train], full_matrices=False)[2][:8].T
    z = z / z[train].std(0)

    def fitted(rows: np.ndarray, weights: np.ndarray) -> LogisticRegression:
        return LogisticRegression(max_iter=2000, tol=1e-8).fit(z[train][rows], y[train][rows], sample_weight=weights)

    whole = fitted(np.arange(len(train)), np.ones(len(train)))
    gaps, accuracies = [], []
    for k in (2, 1):
        kept, weights = compress_dataset(z[train], y[train], k)
        rows = np.random.default_rng(seed + 1).permutation(len(train))[: len(kept)]
        for model in (fitted(kept, weights), fitted(rows, np.full(len(rows), len(train) / len(rows)))):
            gaps.append(np.abs(model.predict_proba(z[test]) - whole.predict_proba(z[test])).mean())
            accuracies.append(float((model.predict(z[test]) == y[test]).mean()))
    return float(gaps[0] / gaps[1]), accuracies[2] - accuracies[3]
