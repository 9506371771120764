"""How long SGD stays in a minimum: a power of the loss at the barrier, not an exponential of its height.

The noise of minibatches near a minimum with squared error is proportional to the loss. In a time that runs faster where
the loss is larger it becomes plain diffusion in the potential log L: SGD sits in the valley with the density L^−φ, and
leaves it at a rate that is a power of L(saddle)/L(minimum), higher with every direction in which there is noise.

The first part runs the stochastic differential equation in a double well, the second SGD itself on regression and on
digits. The loss is ½(f − y)².

Source: Takashi Mori, Liu Ziyin, Kangqiao Liu, Masahito Ueda, "Power-law escape rate of SGD", arXiv 2105.09557.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from gaugefix.measure import decoupling_ratio
from gaugefix.studies.digits import network
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, errorbars
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.task import Task
from gaugefix.theory import log_barrier_escape, passage_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVATURE = 2.0  # of the double well L = L0 + (h/8)(θ² − 1)² + (h/2)|z|²
WELLS = ((1, 0.1, 0.4), (1, 0.05, 0.6), (3, 0.1, 0.3), (5, 0.1, 0.25))  # dimensions n, L0, lr·h/B
DT, TIME, CHAINS, OUT = 0.01, 200.0, 120, 0.8
DENSITY = ((0.05, 1), (0.1, 1), (0.1, 2), (0.2, 1))  # lr·h and B
BEYOND = ((0.4, 2), (0.4, 4), (1.0, 4))  # shown, not claimed: the theory is for lr·h ≪ 1
CLIMB_LR, CLIMB_CHAINS = 0.1, 70
CLIMBS = {4: (2.0, 2.3, 2.6), 10: (3.0, 4.0, 5.0, 6.0)}  # n: levels L/L* whose passage times give the slope
NET_LR, NET_BATCH, EPOCHS = 0.02, 20, (0, 2, 5, 10, 20)


@study("2105.09557")
def power_law_escape() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "escape-time",
            "The time to leave is a power of L(saddle)/L(minimum), shorter in more dimensions.",
            escape_times,
            Tolerance("an asymptotic formula; barriers are low so that runs leave", relative=0.2, per_seed=False),
            draw_times,
            unit="mean time to leave",
        ),
        Claim(
            "quadrature",
            "In one dimension the mean passage time is an integral over loss and noise along the path.",
            quadratures,
            Tolerance("about 400 escapes in all, steps of 0.01", relative=0.12, per_seed=False),
            draw_times,
            unit="mean time to leave",
        ),
        Claim(
            "stationary-density",
            "In the valley SGD has the density L^−φ with φ = 1 + B/(lr·h).",
            densities,
            Tolerance("finite learning rate, most at lr·h = 0.2", relative=0.12),
            draw_density,
            unit="φ",
        ),
        Claim(
            "dimension",
            "SGD climbs to c·L* in a time that is a power of c, B/(lr·h) + 1 − n/2, smaller for more dimensions.",
            climbs,
            Tolerance(
                "large deviations of a discrete chain, of which the theory is the diffusion limit", relative=0.25
            ),
            unit="slope of log time against log c",
        ),
        Claim(
            "noise-and-loss",
            "Gradient noise is loss × curvature at the start; on digits it grows beyond that, see the line.",
            decoupling,
            Tolerance("at the start losses say nothing about gradients of f; later they do", absolute=0.05),
            draw_decoupling,
            unit="noise / (2L·curvature)",
        ),
    )


# The double well


@cache
def _escapes(setting: Setting) -> np.ndarray:
    """Mean time from −1 to 0.8, ``(seeds, wells)``: chains that arrive begin anew."""
    dims = max(n for n, _, _ in WELLS)
    shape = (len(WELLS), len(setting.seeds), CHAINS)
    floor, strength = (torch.tensor([w[i] for w in WELLS])[:, None, None] for i in (1, 2))
    alive = torch.tensor([[float(k < n) for k in range(1, dims)] for n, _, _ in WELLS])[:, None, None]
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    theta, across = torch.full(shape, -1.0), torch.zeros(*shape, dims - 1)
    arrivals = torch.zeros(shape[:2])
    for _ in range(math.ceil(setting.choose(TIME, 10 * TIME) / DT)):
        loss = floor + CURVATURE / 8 * (theta**2 - 1) ** 2 + CURVATURE / 2 * across.square().sum(-1)
        size = (2 * strength * loss * DT).sqrt()
        kick = torch.stack([torch.randn(len(WELLS), CHAINS, dims, generator=g) for g in generators], 1)
        theta = theta - CURVATURE / 2 * theta * (theta**2 - 1) * DT + size * kick[..., 0]
        across = (across * (1 - CURVATURE * DT) + size[..., None] * kick[..., 1:]) * alive
        out = theta > OUT
        arrivals += out.sum(-1)
        theta = torch.where(out, -1.0, theta)
        across = torch.where(out[..., None], 0.0, across)
    return (CHAINS * setting.choose(TIME, 10 * TIME) / arrivals).T.double().numpy()


def _well(n: int, floor: float, strength: float) -> float:
    """Mean time of the power law; curvatures across are the same at minimum and saddle."""
    top, across = floor + CURVATURE / 8, np.full(n - 1, CURVATURE)
    lr = 1e-3  # only lr/B matters in units of time
    found = log_barrier_escape(
        floor, top, np.append(across, CURVATURE), np.append(across, -CURVATURE / 2), lr, 1,
        escape_curvature=strength / lr,
    )  # fmt: skip
    return found.expected_steps * lr


def escape_times(setting: Setting) -> Evidence:
    """The power law, with the exponential law of a linear barrier beside it."""
    rate = CURVATURE / math.sqrt(2) / (2 * math.pi)
    linear = [math.exp(CURVATURE / 8 / (strength * floor)) / rate for _, floor, strength in WELLS]
    curves = {"exponential of the height": np.array(linear)}
    return Evidence(np.array([_well(*w) for w in WELLS]), _escapes(setting), _names(WELLS), curves)


def quadratures(setting: Setting) -> Evidence:
    """The integral, for the wells of one dimension."""
    line, predicted = np.linspace(-4, 1, 2001), []
    wells = [w for w in WELLS if w[0] == 1]
    for _, floor, strength in wells:
        loss = floor + CURVATURE / 8 * (line**2 - 1) ** 2
        slope = CURVATURE / 2 * line * (line**2 - 1)
        predicted.append(passage_steps(line, slope, 2 * strength * loss, 1.0, -1.0, OUT))
    return Evidence(np.array(predicted), _escapes(setting)[:, : len(wells)], _names(tuple(wells)))


def _names(wells: tuple[tuple[int, float, float], ...]) -> tuple[str, ...]:
    return tuple(f"n={n} L*={floor:g} lr·h/B={strength:g}" for n, floor, strength in wells)


def draw_times(axes: Axes, result: Comparison) -> None:
    """On a logarithmic scale."""
    x = np.arange(len(result.cells))
    for label, values in result.curves.items():
        axes.plot(x, values, "x", ms=7, color=NEUTRAL, mew=1.5, label=label)
    axes.plot(x, result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    errorbars(axes, x, result)
    axes.set_xticks(x, [cell.replace(" lr", "\nlr") for cell in result.cells], fontsize=8)
    scale = "log" if result.curves else "linear"
    axes.set(ylabel=result.unit, yscale=scale, xlim=(-0.5, len(x) - 0.5))
    axes.legend()


# SGD on regression


def densities(setting: Setting) -> Evidence:
    """Fit φ in one dimension, where h = E x² = 1 and E x⁴ = 2, so that the noise is exactly 2L·h/B."""
    from scipy.optimize import brentq
    from scipy.special import psi

    chains, steps = 1500, setting.choose(1200, 6000)
    cases = DENSITY + BEYOND
    lr, batch = np.array([[a] for a, _ in cases]), np.array([[b] for _, b in cases])
    measured = []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        theta, total, kept = np.zeros((len(cases), chains)), np.zeros(len(cases)), 0
        for step in range(steps):
            # in a batch a binomial number of inputs are ±√2, the others zero
            h = 2 * rng.binomial(batch, 0.5, theta.shape) / batch
            theta = (1 - lr * h) * theta + lr * np.sqrt(h / batch) * rng.standard_normal(theta.shape)
            if step >= 200 and step % 5 == 0:
                total, kept = total + np.log1p(theta**2).mean(1), kept + 1
        # for a density (1 + θ²)^−φ the mean of log(1 + θ²) is ψ(φ) − ψ(φ − ½)
        measured.append([brentq(lambda p, m=m: psi(p) - psi(p - 0.5) - m, 0.5001, 1e4) for m in total / kept])
    predicted, found, inside = (1 + batch / lr)[:, 0], np.array(measured), len(DENSITY)
    curves = {"x": predicted[:inside], "beyond_x": predicted[inside:], "beyond": found[:, inside:].mean(0)}
    cells = tuple(f"lr·h={a:g} B={b}" for a, b in DENSITY)
    return Evidence(predicted[:inside], found[:, :inside], cells, curves)


def draw_density(axes: Axes, result: Comparison) -> None:
    """Measured against 1 + B/(lr·h)."""
    x, beyond = result.curves["x"], result.curves["beyond_x"]
    axes.axline((1, 1), slope=1, color=PREDICTED, lw=1.2, label="predicted")
    axes.plot(beyond, result.curves["beyond"], "s", ms=4.5, color=NEUTRAL, label="measured beyond lr·h ≪ 1")
    errorbars(axes, x, result)
    notes = [*zip(DENSITY, x, result.mean, strict=True), *zip(BEYOND, beyond, result.curves["beyond"], strict=True)]
    for (lr, batch), place, value in notes:
        offset = (-74, 3) if lr in {0.05, 0.2} else (6, -9)
        axes.annotate(f"lr·h={lr:g} B={batch}", (place, value), offset, textcoords="offset points", fontsize=7.5)
    axes.set(xlabel="1 + B/(lr·h)", ylabel="φ, fitted to the density", xlim=(1, 28), ylim=(1, 24))
    axes.legend()


def climbs(setting: Setting) -> Evidence:
    """Mean first time at which the loss is above c·L*, Gaussian inputs of variance one, batches of one."""
    measured = np.array([[_slope(n, seed, setting) for n in CLIMBS] for seed in setting.seeds])
    predicted = np.array([1 / CLIMB_LR + 1 - n / 2 for n in CLIMBS])
    return Evidence(predicted, measured, labels("n", CLIMBS))


def _slope(n: int, seed: int, setting: Setting) -> float:
    levels, chains = np.array(CLIMBS[n]), CLIMB_CHAINS * setting.choose(1, 5)
    generator = torch.Generator().manual_seed(seed)
    w, first = torch.zeros(chains, n), np.full((len(levels), chains), np.nan)
    highest, passed = torch.zeros(chains), 0
    for step in range(1, 400_000):
        x = torch.randn(chains, n, generator=generator)
        error = (x * w).sum(1) - torch.randn(chains, generator=generator)
        w = w - CLIMB_LR * error[:, None] * x
        highest = torch.maximum(highest, w.square().sum(1))
        if step % 10 == 0:
            first[np.isnan(first) & (1 + highest.numpy() > levels[:, None])] = step
            passed = int(np.isnan(first[-1]).sum())
            if not passed:
                break
    return float(np.polyfit(np.log(levels), np.log(first.mean(1)), 1)[0])


# Digits


def decoupling(setting: Setting) -> Evidence:
    """E‖∇ℓ‖² against what loss and curvature would give, along the training of a network on the parity of digits."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16).float(), torch.tensor(2.0 * (digit % 2) - 1).float()
    ratios = np.empty((len(setting.seeds), len(EPOCHS)))
    for row, seed in enumerate(setting.seeds):
        model = network((64, 32, 32, 1), nn.ReLU, seed)
        sgd = torch.optim.SGD(model.parameters(), lr=NET_LR)
        task = Task(
            model, lambda m, b: (m(b[0])[:, 0] - b[1]).square() / 2, lambda: [(x, y)],
            lr=NET_LR, weight_decay=0.0, batch_size=NET_BATCH, name="parity",
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(max(EPOCHS) + 1):
            if epoch in EPOCHS:
                ratios[row, EPOCHS.index(epoch)] = decoupling_ratio(task)
            for picked in torch.randperm(len(x), generator=generator).split(NET_BATCH):
                loss = task.loss(model, (x[picked], y[picked])).mean()
                sgd.zero_grad()
                loss.backward()
                sgd.step()
    return Evidence(np.ones(1), ratios[:, :1], ("at the start",), {"epochs": np.array(EPOCHS), "ratios": ratios})


def draw_decoupling(axes: Axes, result: Comparison) -> None:
    """The ratio along training."""
    axes.axhline(1, color=PREDICTED, lw=1.2, label="what the theory assumes")
    axes.plot(result.curves["epochs"], result.curves["ratios"].T, "o-", lw=0.8, ms=4.5, color=MEASURED)
    axes.plot([], [], "o-", color=MEASURED, label="measured, each seed")
    axes.set(xlabel="epoch", ylabel=result.unit)
    axes.legend()
