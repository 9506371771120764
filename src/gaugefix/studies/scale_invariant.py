"""Many runs on weights of which only the direction matters, the part of `noise_equilibrium` about their norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gaugefix.studies.figures import PREDICTED
from gaugefix.studies.framework import Comparison, Evidence, Setting
from gaugefix.theory.scale_invariance import scale_equilibrium_norm, scale_norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIM, BATCH, NOISE, STEPS, RUNS = 20, 4, 0.5, 3000, 40
SCALES = ((0.1, 0.02), (0.05, 0.04), (0.2, 0.01), (0.1, 0.0))  # lr, λ


def scale_norms(setting: Setting) -> Evidence:
    """Fit xᵀθ/‖θ‖ to labels without a signal: E‖ĝ‖² is (1 + noise²)(d − 1)/(S‖θ‖²) wherever θ points."""
    steps = setting.choose(STEPS, 10 * STEPS)
    lr, decay = (torch.tensor(v, dtype=torch.float64)[:, None, None, None] for v in zip(*SCALES, strict=True))
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    theta = torch.zeros(len(SCALES), len(setting.seeds), RUNS, DIM, dtype=torch.float64)
    theta[..., 0] = 1
    curve = [theta[..., 0, 0]]
    total = torch.zeros(theta.shape[:2], dtype=torch.float64)
    for step in range(1, steps + 1):
        drawn = torch.stack([torch.randn(BATCH, RUNS, DIM + 1, generator=g, dtype=torch.float64) for g in generators])
        x, y = drawn[..., :-1], NOISE * drawn[..., -1]
        norm = theta.norm(dim=-1, keepdim=True)
        unit = theta / norm
        output = torch.einsum("csrd,sbrd->csbr", unit, x)
        error = (output - y) / BATCH
        pull = torch.einsum("csbr,sbrd->csrd", error, x) - (error * output).sum(2)[..., None] * unit
        theta = theta - lr * (pull / norm + decay * theta)
        fourth = theta.square().sum(-1).square().mean(-1)
        total += fourth * (step > steps // 2)
        if step % (steps // 50) == 0:
            curve.append(fourth)
    noise = (1 + NOISE**2) * (DIM - 1) / BATCH
    times = np.linspace(0, steps, len(curve))
    rest = [scale_equilibrium_norm(noise, lr=a, weight_decay=b) ** 4 for a, b in SCALES[:-1]]
    grown = scale_norm(1.0, noise, times, lr=SCALES[-1][0]) ** 4
    measured = torch.cat([total[:-1] / (steps - steps // 2), curve[-1][-1:]]).T.numpy()
    cells = (*(f"lr = {a:g}, λ = {b:g}" for a, b in SCALES[:-1]), "no decay, at the end")
    curves = {"steps": times, "measured": torch.stack(curve).mean(-1).T.numpy(), "grown": grown}
    return Evidence(np.array([*rest, grown[-1]]), measured, cells, curves)


def draw_scale(axes: Axes, result: Comparison) -> None:
    """‖θ‖⁴ over time: a straight line without decay, a plateau with it."""
    steps, curves = result.curves["steps"], result.curves
    shades = ("#1f4e79", "#4f81b0", "#8fb3d3")
    for i, (shade, label) in enumerate(zip(shades, result.cells, strict=False)):
        axes.plot(steps, curves["measured"][i], color=shade, lw=1.4, label=label)
        axes.axhline(result.predicted[0, i], color=PREDICTED, lw=1)
    axes.plot(steps, curves["measured"][-1], color="black", lw=1.4, label="no decay")
    axes.plot(steps, curves["grown"], "--", color=PREDICTED, lw=1.2, label="predicted")
    axes.set(xlabel="step", ylabel="‖θ‖⁴, mean over runs", ylim=(0, 2.2 * result.predicted[0, :-1].max()))
    axes.legend(fontsize=7.5)
