"""Below a learning rate training can move the neurons of a layer, but neither merge nor split them.

A neuron is the row x_i of all its parameters. Because the loss does not care which neuron comes first, one step of
gradient descent is one map applied to all neurons. Its slope between two of them is 1 − lr·R_ij with
R_ij = (g_i − g_j)·(x_i − x_j)/‖x_i − x_j‖², and its size is at most K, the largest curvature of the loss. So below
lr = 1/K the map is one to one, half of the learning rate at which training becomes unstable; above it, two neurons may
pass through each other, and only then may they become one.

The study follows a tanh network neuron by neuron, and thousands of scalar neurons on a line, where the threshold is
known exactly. Equal neurons stay equal at any learning rate.

Source: Yongyi Yang, Tomaso Poggio, Isaac Chuang, Liu Ziyin, "Topological Invariance and Breakdown in Learning",
arXiv 2510.02670.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_against, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.theory.neurons_on_a_line import order_keeping_lr, reversed_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INPUTS, HIDDEN, SAMPLES, STEPS = 3, 12, 80, 60
LRS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.6)  # of the tanh network; at the last some neurons change places
CURVATURE_EVERY = 5
NEURONS, REACH = 4000, 3.0  # on the line, uniform
FACTORS = (0.5, 0.9, 1.1, 1.5, 2.0, 3.0, 4.0)  # learning rates in units of the threshold
TWIN_STEPS = 100


@study("2510.02670")
def topological_invariance() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "twins",
            "Two equal neurons stay equal, whatever the optimiser and the learning rate, while the others move.",
            twins,
            Tolerance("rounding of float64", absolute=1e-12),
            draw_twins,
            unit="distance of the two",
        ),
        Claim(
            "slope",
            "One step multiplies the distance of two neurons, along itself, by exactly 1 − lr·R_ij.",
            slopes,
            Tolerance("rounding of float64", absolute=1e-9),
            draw_identity,
            unit="smallest and largest factor",
        ),
        Claim(
            "bound",
            "The change is at most lr·K: distances stay between 1 − lr·K and 1 + lr·K of what they were.",
            bounds,
            Tolerance("an inequality; K is the largest curvature met along the run", relation="<="),
            draw_cone,
            unit="relative change of a distance",
        ),
        Claim(
            "reversals",
            "The neurons that pass through each other are those with lr·R_ij > 1, and there are none below 1/K.",
            reversals,
            Tolerance("a count is an integer"),
            draw_reversals,
            unit="pairs, all steps",
        ),
        Claim(
            "critical-rate",
            "Neurons on a line keep their order up to lr = 1/max(r φ''), and lose it just above.",
            critical_rates,
            Tolerance("bisection, and 4000 neurons reach the steepest place only so closely", absolute=1e-5),
            draw_identity,
            unit="learning rate",
        ),
        Claim(
            "breakdown",
            "Above it the share of neighbours that change places grows as the slope of the map says.",
            broken_shares,
            Tolerance("two neighbours at each end of every fold", absolute=3 / NEURONS),
            draw_against("learning rate / critical learning rate"),
            unit="share of neighbours that change places",
        ),
    )


# Equal neurons


def twins(setting: Setting) -> Evidence:
    """Neurons 0 and 1 start equal; Muon, which is for matrices, steps the bias by SGD."""
    distances, others = np.empty((2, len(setting.seeds), len(_OPTIMIZERS)))
    for row, seed in enumerate(setting.seeds):
        x, y, start = _network(seed)
        for column, kind in enumerate(_OPTIMIZERS):
            start[1] = start[0]
            into, out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, 1, bias=False)
            model = nn.Sequential(into, nn.Tanh(), out).double()
            with torch.no_grad():
                into.weight.copy_(start[:, :INPUTS])
                into.bias.copy_(start[:, INPUTS])
                out.weight.copy_(start[:, -1:].mT)
            optimizers = _optimizers(kind, model)
            for _ in range(TWIN_STEPS):
                loss = (model(x).squeeze(-1) - y).square().mean() / 2
                model.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
            end = torch.cat([into.weight, into.bias[:, None], out.weight.mT], 1).detach()
            distances[row, column] = (end[0] - end[1]).norm()
            others[row, column] = (end - start)[2:].norm(dim=1).mean()
    return Evidence(np.zeros(len(_OPTIMIZERS)), distances, _OPTIMIZERS, {"others": others})


_OPTIMIZERS = ("momentum", "Adam", "Adagrad", "Muon")


def _optimizers(kind: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    params = list(model.parameters())
    if kind == "momentum":
        return [torch.optim.SGD(params, lr=0.3, momentum=0.9)]
    if kind == "Muon":
        matrices, rest = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.SGD(rest, lr=0.02)]
    return [{"Adam": torch.optim.Adam, "Adagrad": torch.optim.Adagrad}[kind](params, lr=0.05)]


def draw_twins(axes: Axes, result: Comparison) -> None:
    """How far the twins are apart, beside how far the other neurons have moved."""
    places = np.arange(len(result.cells))
    axes.bar(places, result.curves["others"].mean(0), color="#d5dae2", label="path of the other neurons, mean")
    axes.axhline(0, color=PREDICTED, lw=1.2, label="predicted: 0")
    axes.plot(places, result.measured.T, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], "o", ms=4.5, color=MEASURED, label="distance of the twins, each seed")
    axes.set_xticks(places, result.cells)
    axes.set(ylabel=f"after {TWIN_STEPS} steps")
    axes.set_ylim(top=1.45 * result.curves["others"].mean(0).max())
    axes.legend()


# A tanh network, all neurons of all runs as one tensor (seeds, rates, neurons, entries)


def _network(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data ``(n, d), (n,)`` and neurons ``(12, d + 2)``: incoming weights, bias, outgoing weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    neurons = torch.randn(HIDDEN, INPUTS + 2, generator=generator, dtype=torch.float64)
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2, neurons


def _loss(neurons: Tensor, x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ neurons[..., :INPUTS].mT + neurons[..., None, :, INPUTS])
    errors: Tensor = (hidden * neurons[..., None, :, -1]).sum(-1) - y
    return errors.square().mean(-1) / 2


@cache
def _run(seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Slopes, rates and ratios of all pairs ``(seeds, lrs, steps, pairs)``, and the curvature at some steps."""
    data = [_network(seed) for seed in seeds]
    x, y = (torch.stack([d[i] for d in data])[:, None] for i in (0, 1))
    neurons = torch.stack([d[2] for d in data])[:, None].repeat(1, len(LRS), 1, 1)
    lr = torch.tensor(LRS, dtype=torch.float64)[:, None, None]
    i, j = torch.triu_indices(HIDDEN, HIDDEN, 1)
    found: dict[str, list[Tensor]] = {"slope": [], "rate": [], "ratio": [], "curvature": []}
    for step in range(STEPS):
        leaf = neurons.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(leaf, x, y).sum(), leaf)
        after = neurons - lr * gradient
        old, new, pull = (t[..., i, :] - t[..., j, :] for t in (neurons, after, gradient))
        square = old.square().sum(-1)
        found["slope"].append((new * old).sum(-1) / square)
        found["rate"].append((pull * old).sum(-1) / square)
        found["ratio"].append(new.norm(dim=-1) / square.sqrt())
        if step % CURVATURE_EVERY == 0:
            found["curvature"].append(_curvature(neurons, x, y))
        neurons = after
    return {k: torch.stack(v, dim=2).numpy() for k, v in found.items()}


def _curvature(neurons: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Largest |eigenvalue| of the Hessian of every member."""
    size = HIDDEN * (INPUTS + 2)
    hessian = torch.func.hessian(lambda flat, x, y: _loss(flat.reshape(HIDDEN, INPUTS + 2), x, y))
    batch = neurons.shape[:2]
    xs, ys = (t.expand(*batch, *t.shape[2:]).flatten(0, 1) for t in (x, y))
    matrices = torch.func.vmap(hessian)(neurons.reshape(-1, size), xs, ys)
    largest: Tensor = torch.linalg.eigvalsh(matrices).abs().amax(-1)
    return largest.reshape(batch)


def slopes(setting: Setting) -> Evidence:
    """The smallest and the largest over all pairs and steps."""
    run = _run(setting.seeds)
    predicted = 1 - np.array(LRS)[:, None, None] * run["rate"]
    ends = [np.stack([v.min((2, 3)), v.max((2, 3))], axis=-1) for v in (predicted, run["slope"])]
    cells = tuple(f"lr = {lr:g}, {end}" for lr in LRS for end in ("smallest", "largest"))
    shape = len(setting.seeds), len(cells)
    return Evidence(ends[0].reshape(shape), ends[1].reshape(shape), cells)


def bounds(setting: Setting) -> Evidence:
    """Largest |ratio − 1| of a run against lr times the largest curvature on its way."""
    run = _run(setting.seeds)
    allowed = np.array(LRS) * run["curvature"].max(2)
    ends = np.stack([run["ratio"].min((2, 3)), run["ratio"].max((2, 3))], axis=-1)
    return Evidence(allowed, np.abs(ends - 1).max(-1), labels("lr", LRS), {"ends": ends})


def draw_cone(axes: Axes, result: Comparison) -> None:
    """Extreme ratios of distances of every run inside the cone 1 ± lr·K."""
    grid = np.linspace(0, 1.05 * result.predicted.max(), 50)
    axes.fill_between(grid, np.maximum(1 - grid, 0), 1 + grid, color=PREDICTED, alpha=0.12, lw=0, label="allowed")
    axes.plot(grid, 1 + grid, grid, np.maximum(1 - grid, 0), color=PREDICTED, lw=1.2)
    ends = result.curves["ends"].reshape(*result.predicted.shape, 2)
    axes.plot(result.predicted.ravel(), ends[..., 0].ravel(), "v", ms=5, color=MEASURED, label="shrank most")
    axes.plot(result.predicted.ravel(), ends[..., 1].ravel(), "^", ms=5, color=MEASURED, label="grew most")
    axes.axvline(1, color=NEUTRAL, lw=0.8, ls=":")
    axes.text(1, 0.1, " lr = 1/K", color=NEUTRAL, fontsize=8.5)
    axes.set(xlabel="lr·K, each run", ylabel="distance after a step / before")
    axes.legend(loc="upper left")


def reversals(setting: Setting) -> Evidence:
    """All pairs and steps; a run that stays below lr·K = 1 is predicted to have none."""
    run, lr = _run(setting.seeds), np.array(LRS)
    reach = lr * run["curvature"].max(2)
    predicted = np.where(reach < 1, 0, (lr[:, None, None] * run["rate"] > 1).sum((2, 3)))
    return Evidence(predicted, (run["slope"] < 0).sum((2, 3)), labels("lr", LRS), {"reach": reach})


def draw_reversals(axes: Axes, result: Comparison) -> None:
    """Counts against lr·K."""
    reach = result.curves["reach"]
    axes.axvline(1, color=NEUTRAL, lw=0.8, ls=":")
    axes.plot(reach, result.predicted, "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4)
    axes.plot(reach, result.measured, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="pairs with lr·R_ij > 1")
    axes.plot([], [], "o", ms=4.5, color=MEASURED, label="pairs that changed places")
    axes.set(xlabel="lr·K, each run", ylabel=result.unit, xscale="log")
    axes.set_ylim(-0.06 * result.measured.max(), 1.4 * result.measured.max())
    axes.text(1, 0.6 * axes.get_ylim()[1], " lr = 1/K", color=NEUTRAL, fontsize=8.5)
    axes.legend(loc="upper left")


# Neurons on a line: L = ½(mean sin θ − y)²


def _line(seed: int) -> tuple[np.ndarray, float]:
    """Neurons in order, and the error r = mean sin θ − y with y = 2 + seed."""
    theta = np.sort(np.random.default_rng(seed).uniform(-REACH, REACH, NEURONS))
    return theta, float(np.sin(theta).mean() - 2 - seed)


def _reversed(theta: np.ndarray, error: float, lr: float) -> np.ndarray:
    return np.asarray(np.diff(theta - lr * error * np.cos(theta)) < 0)


def critical_rates(setting: Setting) -> Evidence:
    """Bisection on whether one step leaves the neurons in order; the prediction takes the supremum over the line."""
    predicted, measured = np.empty((2, len(setting.seeds), 1))
    for row, seed in enumerate(setting.seeds):
        theta, error = _line(seed)
        predicted[row] = order_keeping_lr(error, -np.sin(np.linspace(-REACH, REACH, 200_001)))
        low, high = 0.0, 4 * predicted[row, 0]
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if _reversed(theta, error, middle).any() else (middle, high)
        measured[row] = high
    return Evidence(predicted, measured, ("onset",))


def broken_shares(setting: Setting) -> Evidence:
    """Neighbours that are in the wrong order after one step, and the share of the line where the slope is negative."""
    predicted, measured = np.empty((2, len(setting.seeds), len(FACTORS)))
    for row, seed in enumerate(setting.seeds):
        theta, error = _line(seed)
        rates = order_keeping_lr(error, -np.sin(theta)) * np.array(FACTORS)
        predicted[row] = reversed_share(rates, error, -np.sin(theta))
        measured[row] = [_reversed(theta, error, lr).mean() for lr in rates]
    grid = np.linspace(min(FACTORS), max(FACTORS), 400)
    line = reversed_share(grid, -1.0, -np.sin(np.linspace(-REACH, REACH, 20_001)))
    curves = {"x": np.array(FACTORS), "grid": grid, "line": line}
    return Evidence(predicted, measured, labels("lr/lr_c", FACTORS), curves)
