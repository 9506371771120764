"""The part of `gaugefix.studies.minibatch_noise` on wide networks: why the learning rate goes with 1/width.

A two-layer tanh network starts at a minimum: its labels are its own outputs, with fresh noise at every step. In the
standard parametrisation the trace of its Hessian grows with the width, and with it the excess loss of linear regression
on the gradients ∂f/∂θ, of which there are as many as weights. Under strong noise the network drifts to where it is
flatter, so that the curvatures are taken along the run.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import NEUTRAL, PREDICTED, errorbars
from gaugefix.studies.framework import Comparison, Evidence, Setting
from gaugefix.task import load_task
from gaugefix.theory import label_noise_sgd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS, LR, BATCH, SAMPLES = (50, 100, 200, 400, 800), 0.02, 4, 300
WARM_UP, STEPS, EVERY = 400, 800, 10
RULES = {"one lr": 0, "lr ∝ 1/width": 1}  # the power of the width in the learning rate

Network = tuple[Tensor, Tensor, Tensor, Tensor]  # w, b, u, c of all seeds


def _inputs(setting: Setting) -> Tensor:
    """Pixels of digits (of MNIST in the full setting) in one unit, ``(seeds, samples, pixels)``."""
    name = setting.choose("digits-mlp", "mnist-mlp")
    found = []
    for seed in setting.seeds:
        batches = load_task(name, seed=seed).batch_iter(seed)
        rows = torch.cat([x.flatten(1) for (x, _), _ in zip(batches, range(1 + SAMPLES // 32), strict=False)])
        rows = rows[:SAMPLES] - rows[:SAMPLES].mean(0)
        found.append(rows * 8 / rows.square().sum(1).mean().sqrt())
    return torch.stack(found)


def _forward(x: Tensor, net: Network) -> tuple[Tensor, Tensor]:
    """Hidden units and output."""
    w, b, u, c = net
    hidden = torch.baddbmm(b[:, None], x, w.mT).tanh()
    return hidden, (hidden @ u[..., None])[..., 0] + c[:, None]


def _curvatures(x: Tensor, net: Network) -> np.ndarray:
    """Eigenvalues of the Hessian at a minimum, from the kernel of the gradients of the output; ``(seeds, samples)``."""
    hidden, _ = _forward(x, net)
    slopes = net[2][:, None] * (1 - hidden * hidden)
    kernel = hidden @ hidden.mT + 1 + (x @ x.mT + 1) * (slopes @ slopes.mT)
    return np.asarray(torch.linalg.eigvalsh(kernel.double() / x.shape[1]).numpy())


@cache
def _run(setting: Setting, width: int, lr: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean excess loss predicted and measured, and the variance of the loss in time, one entry per seed."""
    x, generators = _inputs(setting), [torch.Generator().manual_seed(s) for s in setting.seeds]

    def uniform(fan_in: int, *shape: int) -> Tensor:
        return torch.stack([(2 * torch.rand(shape, generator=g) - 1) / fan_in**0.5 for g in generators])

    pixels, steps, rows = x.shape[2], setting.choose(STEPS, 4 * STEPS), torch.arange(len(x))[:, None]
    w, b, u, c = uniform(pixels, width, pixels), uniform(pixels, width), uniform(width, width), uniform(width, 1)[:, 0]
    target = _forward(x, (w, b, u, c))[1]
    excess, expected = [], []
    for step in range(WARM_UP + steps):
        picked = torch.stack([torch.randint(SAMPLES, (BATCH,), generator=g) for g in generators])
        noise = torch.stack([torch.randn(BATCH, generator=g) for g in generators])
        inputs = x[rows, picked]
        hidden, output = _forward(inputs, (w, b, u, c))
        error = (output - target[rows, picked] - noise) * lr / BATCH
        back = error[..., None] * u[:, None] * (1 - hidden * hidden)
        w, b = w - back.mT @ inputs, b - back.sum(1)
        u, c = u - (hidden.mT @ error[..., None])[..., 0], c - error.sum(1)
        if step >= WARM_UP and step % EVERY == 0:
            excess.append((_forward(x, (w, b, u, c))[1] - target).square().mean(1) / 2)
        if step >= WARM_UP and step % (steps // 4) == 0:
            laws = [label_noise_sgd(a[a > 0], 1.0, lr, BATCH) for a in _curvatures(x, (w, b, u, c))]
            expected.append([law.excess_loss for law in laws])
    losses = torch.stack(excess).double().numpy()
    return np.mean(expected, 0), losses.mean(0), losses.var(0)


def _all_widths(setting: Setting) -> np.ndarray:
    """``(3, rules, widths, seeds)``."""
    found = [[_run(setting, n, LR * (WIDTHS[0] / n) ** power) for n in WIDTHS] for power in RULES.values()]
    return np.moveaxis(np.array(found), 2, 0)


def width_losses(setting: Setting) -> Evidence:
    """For each width with both learning rates."""
    predicted, measured, _ = _all_widths(setting)
    cells = tuple(f"{rule}, width {width}" for rule in RULES for width in WIDTHS)
    count = len(setting.seeds)
    return Evidence(predicted.reshape(-1, count).T, measured.reshape(-1, count).T, cells, {"x": np.array(WIDTHS)})


def draw_widths(axes: Axes, result: Comparison) -> None:
    """Both rules against the width."""
    x, predicted = result.curves["x"], result.predicted.mean(0).reshape(2, -1)
    for line, style, label in zip(predicted, ("-", "--"), RULES, strict=True):
        axes.plot(x, line, style, color=PREDICTED, lw=1.2, label=f"predicted, {label}")
    errorbars(axes, np.tile(x, 2), result)
    axes.set(xlabel="width", ylabel=result.unit, xscale="log", yscale="log")
    axes.set_xticks(result.curves["x"], [f"{n:g}" for n in result.curves["x"]], minor=False)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.legend()


def width_variances(setting: Setting) -> Evidence:
    """Of the loss in time: at the largest width over the smallest, at one learning rate over lr ∝ 1/width."""
    variances = _all_widths(setting)[2]  # (rules, widths, seeds)
    growth = variances[:, -1] / variances[:, 0]
    curves = {"x": np.array(WIDTHS), "variances": variances.mean(-1)}
    return Evidence(np.array([10.0]), (growth[0] / growth[1])[:, None], (f"width {WIDTHS[-1]}",), curves)


def draw_width_variances(axes: Axes, result: Comparison) -> None:
    """The variance of the loss against the width."""
    fixed, scaled = result.curves["variances"]
    axes.plot(result.curves["x"], fixed, "o-", color=PREDICTED, ms=4, lw=1.1, label="one learning rate")
    axes.plot(result.curves["x"], scaled, "s--", color=NEUTRAL, ms=4, lw=1.1, label="lr ∝ 1/width")
    axes.set(xlabel="width", ylabel="variance of the loss", xscale="log", yscale="log")
    axes.set_xticks(result.curves["x"], [f"{n:g}" for n in result.curves["x"]], minor=False)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.legend()
