"""Many runs of a two-layer linear network, the part of `noise_equilibrium` that ends in its stationary state."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED
from gaugefix.studies.framework import Comparison, Evidence, Setting
from gaugefix.studies.linear_networks import train_linear
from gaugefix.theory.deep_linear_hessian import layer_sum
from gaugefix.theory.deep_linear_sharpness import DeepLinearSharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
STD_X, STD_NOISE = (1.5, 1.0, 0.5), (1.5, 0.8, 0.4)  # of the linear network, d_x = d_y = 3
LRS, LINEAR_BATCH, LINEAR_STEPS, REPLICAS = (0.08, 0.04), 4, 26_000, 4
STARTS = ((0.3, 0.3), (0.2, 0.7))  # size of the initial entries of W and U


def _model() -> DeepLinearSharpness:
    """One fixed V with ‖V‖ = 1.5; the seeds draw initial weights and data."""
    signal = np.random.default_rng(0).standard_normal((3, 3))
    signal *= 1.5 / np.linalg.norm(signal)
    return DeepLinearSharpness(signal, np.diag(np.square(STD_X)), np.diag(np.square(STD_NOISE)), 2)


def _record(weights: list[Tensor]) -> Tensor:
    """Sharpness, ‖U‖² − ‖W‖² and ‖W Σ_x Wᵀ/Tr Σ_x − Uᵀ Σ_ε U/Tr Σ_ε‖, each ``(cells, seeds)``."""
    w, u = weights
    x, noise = (torch.tensor(s, dtype=F64).square() for s in (STD_X, STD_NOISE))
    sharpness = torch.from_numpy(layer_sum([w.numpy(), u.numpy()], np.diag(x.numpy()), np.eye(3)))
    charge = u.square().sum((-1, -2)) - w.square().sum((-1, -2))
    inside, outside = (w * x) @ w.mT / x.sum(), (u.mT * noise) @ u / noise.sum()
    apart = (inside - outside).norm(dim=(-1, -2))
    return torch.stack([sharpness, charge, apart]).mean(-1)


@cache
def _linear(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Records of SGD ``(times, 3, lrs, starts, seeds)``, and of gradient descent, where it starts and ends."""
    n, lrs = len(setting.seeds), torch.tensor(LRS, dtype=F64).repeat_interleave(len(STARTS)).reshape(-1, 1, 1, 1, 1)
    weights = []
    for k in range(2):
        draws = [np.random.default_rng(100 + s).standard_normal((2, REPLICAS, 3, 3))[k] for s in setting.seeds]
        one = torch.from_numpy(np.stack(draws))
        weights.append(torch.stack([start[k] * one for _ in LRS for start in STARTS]))
    signal = torch.from_numpy(_model().signal)
    roots = [torch.diag(torch.tensor(s, dtype=F64)) for s in (STD_X, STD_NOISE)]
    steps = setting.choose(LINEAR_STEPS, 4 * LINEAR_STEPS)
    _, sgd = train_linear(
        weights,
        signal,
        *roots,
        lr=lrs,
        batch=LINEAR_BATCH,
        steps=steps,
        seeds=setting.seeds,
        every=steps // 200,
        watch=_record,
    )
    descent, _ = train_linear(weights, signal, *roots, lr=0.002, batch=0, steps=5000, seeds=setting.seeds)
    both = torch.stack([_record(weights), _record(descent)]).reshape(2, 3, len(LRS), len(STARTS), n)
    return sgd.reshape(-1, 3, len(LRS), len(STARTS), n).numpy(), both.numpy()


def _at_rest(setting: Setting, what: int) -> np.ndarray:
    """Mean over the last half, extrapolated linearly to learning rate zero, ``(seeds, starts)``."""
    records = _linear(setting)[0][:, what]
    large, small = records[len(records) // 2 :].mean(0)
    return np.asarray((2 * small - large).T)


def layer_charges(setting: Setting) -> Evidence:
    """From small and from large weights."""
    sgd, descent = _linear(setting)
    first, last = _model().weights(3)
    rest = (last**2).sum() - (first**2).sum()
    kept = descent[:, 1, -1]  # at the start and at the end, (2, starts, seeds)
    predicted = np.hstack([np.full(kept[0].T.shape, rest), kept[0].T])
    measured = np.hstack([_at_rest(setting, 1), kept[1].T])
    cells = tuple(f"{name}, W {w:g}, U {u:g}" for name in ("SGD", "GD") for w, u in STARTS)
    curves = {"sgd": np.concatenate([descent[:1, 1, -1, :, 0], sgd[:, 1, -1, :, 0]]).T, "rest": np.array([rest])}
    return Evidence(predicted, measured, cells, curves)


def draw_charges(axes: Axes, result: Comparison) -> None:
    """The charge of the first seed over time, from both starts."""
    for line, (w, u), color in zip(result.curves["sgd"], STARTS, (MEASURED, "#7aa5cf"), strict=True):
        axes.plot(np.linspace(0, 1, len(line)), line, color=color, lw=1.2, label=f"SGD, W ~ {w:g}, U ~ {u:g}")
    for value in result.measured[0, len(STARTS) :]:
        axes.axhline(value, color=NEUTRAL, ls=":")
    axes.plot([], [], ":", color=NEUTRAL, label="gradient descent")
    axes.axhline(result.curves["rest"][0], color=PREDICTED, label="predicted rest")
    axes.plot(
        1, result.measured[0, 0], "o", ms=5, color=MEASURED, label="SGD at rest, learning rate → 0", clip_on=False
    )
    axes.set(xlabel="share of the run, learning rate 0.04", ylabel=f"{result.unit}, first seed")
    axes.legend(loc="upper center", bbox_to_anchor=(0.62, 0.98), fontsize=7.5)


def final_sharpness(setting: Setting) -> Evidence:
    """Of SGD from both starts."""
    model, (sgd, descent) = _model(), _linear(setting)
    predicted = np.full(len(STARTS), model.trace)
    curves = {
        "sgd": sgd[len(sgd) // 2 :, 0].mean((0, -1)),
        "descent": descent[1, 0, -1].mean(-1),
        "least": np.array([model.trace_min]),
    }
    return Evidence(predicted, _at_rest(setting, 0), tuple(f"W {w:g}, U {u:g}" for w, u in STARTS), curves)


def draw_sharpness(axes: Axes, result: Comparison) -> None:
    """Sharpness over the learning rate, and its limit."""
    rates, curves = (*LRS, 0.0), result.curves
    for i, (start, color) in enumerate(zip(result.cells, (MEASURED, "#7aa5cf"), strict=True)):
        values = [*curves["sgd"][:, i], result.mean[i]]
        axes.plot(rates, values, "--", lw=1, color=color)
        axes.plot(rates[:-1], values[:-1], "os"[i], ms=7 - 3 * i, color=color, label=f"SGD, {start}")
        axes.errorbar(0, values[-1], result.stderr[i], fmt="os"[i], ms=7 - 3 * i, capsize=2.5, color=color)
        axes.axhline(curves["descent"][i], color=NEUTRAL, ls="-.", lw=0.9, label="gradient descent" if not i else None)
    axes.plot(
        0, result.predicted[0, 0], "o", ms=11, mfc="none", mec=PREDICTED, mew=1.4, label="predicted at learning rate 0"
    )
    axes.axhline(curves["least"][0], color=PREDICTED, ls=":", label="flattest minimum")
    axes.set(xlabel="learning rate", ylabel=result.unit)
    axes.legend(fontsize=7.5)


def alignment(setting: Setting) -> Evidence:
    """The difference of the two sides after SGD, relative to that after gradient descent from the same start."""
    sgd, descent = _linear(setting)
    ratio = sgd[len(sgd) // 2 :, 2, -1].mean(0) / descent[1, 2, -1]
    return Evidence(np.zeros(len(STARTS)), ratio.T, tuple(f"W {w:g}, U {u:g}" for w, u in STARTS))


def norm_ratio(setting: Setting) -> Evidence:
    """Four inputs, two outputs, unit noise."""
    steps = setting.choose(8000, 40_000)
    shapes = ((2, 4), (2, 2))
    weights = [
        torch.from_numpy(
            np.stack([0.5 * np.random.default_rng(s).standard_normal((2, 8, *shapes[k]))[k] for s in setting.seeds])
        )[None]
        for k in range(2)
    ]
    signal = torch.eye(2, 4, dtype=F64)

    def norms(pair: list[Tensor]) -> Tensor:
        return torch.stack([w.square().sum((-1, -2)).mean(-1)[0] for w in pair])

    eyes = torch.eye(4, dtype=F64), torch.eye(2, dtype=F64)
    _, found = train_linear(
        weights, signal, *eyes, lr=0.02, batch=1, steps=steps, seeds=setting.seeds, every=20, watch=norms
    )
    w, u = found[len(found) // 2 :].mean(0).numpy()
    return Evidence(np.array([0.5]), (u / w)[:, None], ("d_x = 4, d_y = 2",))
