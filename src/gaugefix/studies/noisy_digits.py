"""A ReLU network on digits with noisy labels, the part of `flatness_or_sharpness` that is not solvable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.digits import digits
from gaugefix.studies.figures import MEASURED, NEUTRAL
from gaugefix.studies.framework import Comparison, Evidence, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LR, BATCH, STEPS = 32, 0.15, 20, 9000
NOISES = (1.4, 0.07)  # standard deviations of the labels of classes 0–4 and 5–9


def digits_ratio(setting: Setting) -> Evidence:
    """One hidden layer without biases, targets one-hot plus noise drawn anew in every step."""
    half = np.repeat(NOISES, 5)
    noises = torch.from_numpy(np.stack([half, np.full(10, np.sqrt((half**2).mean()))]))  # unequal, equal
    data = [digits(seed)[:2] for seed in setting.seeds]
    x = torch.stack([d[0].double() for d in data])
    y = torch.nn.functional.one_hot(torch.stack([d[1] for d in data]), 10).double()
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    members = range(len(setting.seeds))

    def draw(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g, dtype=torch.float64) for g in generators])

    w, u = (draw(WIDTH, 64) / 8).expand(2, -1, -1, -1), (draw(10, WIDTH) / 6).expand(2, -1, -1, -1)
    steps = setting.choose(STEPS, 5 * STEPS)
    curve = []
    for step in range(steps + 1):
        if step % (steps // 30) == 0:
            hidden = x @ w.mT
            active = (hidden > 0).double()
            outer = (active * u.square().sum(-2)[..., None, :]).sum(-1) * x.square().sum(-1)
            curve.append((10 * hidden.relu().square().sum(-1) + outer).mean(-1))
        rows = [torch.randint(x.shape[1], (BATCH,), generator=g) for g in generators]
        inputs = torch.stack([x[i, rows[i]] for i in members])
        targets = torch.stack([y[i, rows[i]] for i in members]) + draw(BATCH, 10) * noises[:, None, None]
        hidden = inputs @ w.mT
        active = hidden.relu()
        error = (active @ u.mT - targets) / BATCH
        u, w = u - LR * error.mT @ active, w - LR * ((error @ u) * (hidden > 0)).mT @ inputs
    traces = torch.stack(curve).numpy()  # (times, unequal or equal, seeds)
    last = traces[-len(traces) // 4 :].mean(0)
    curves = {"steps": np.linspace(0, steps, len(traces)), "unequal": traces[:, 0].T, "equal": traces[:, 1].T}
    return Evidence(np.array([1.2]), (last[0] / last[1])[:, None], ("unequal / equal",), curves)


def draw_digits(axes: Axes, result: Comparison) -> None:
    """Sharpness over training."""
    for name, color in (("unequal", MEASURED), ("equal", NEUTRAL)):
        axes.plot(result.curves["steps"], result.curves[name].T, lw=1, color=color)
        axes.plot([], [], color=color, label=f"{name} label noise")
    axes.set(xlabel="step", ylabel="sharpness Tr ∇²L")
    axes.legend()
