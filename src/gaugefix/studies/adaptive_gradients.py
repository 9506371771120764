"""The updates of Adam under pure noise are bounded and their variance is finite from the first step on.

Adam divides a gradient by the root of a mean square that contains this gradient. So an update cannot exceed a bound,
whatever the gradients, and its variance grows with time towards a finite value: a divergence at the first steps, on
which a popular argument for warm-up rests, belongs to 1/√v alone and not to the update. What is large at the start is
the size of the update, because momentum has not averaged yet. The ratio of both moments also measures how much of the
gradient is signal.

Every coordinate is a member of one array; the gradients are normal with variance one.

Source: Zhang Zhiyi, Liu Ziyin, "On the Distributional Properties of Adaptive Gradients", arXiv 2105.07222.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from gaugefix.measure import gradient_noise
from gaugefix.monitor import AdamStateMonitor
from gaugefix.studies.digits import network
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_against, draw_identity, errorbars
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.task import Task
from gaugefix.theory import adam_noise_mean_square, gaussian_update_moments, update_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETA2, TIMES = 0.99, (1, 2, 3, 5, 10, 30, 100, 300)
LAGGED = (6, 8, 11, 21)  # steps at which the variance of g/√v of the step before is finite
MOMENTUM_TIMES = (1, 2, 3, 5, 10, 20, 50, 100)
BETAS = ((0.0, 0.9), (0.0, 0.999), (0.9, 0.99), (0.9, 0.999), (0.5, 0.9))
BATCHES, STEPS, EVERY = (16, 64), 2500, 20


@study("2105.07222")
def adaptive_gradients() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "variance",
            "Without momentum the variance of |u| grows with time and stays bounded; nothing diverges at the start.",
            variances,
            Tolerance("three standard errors of 40,000 coordinates", absolute=0.008),
            draw_variances,
            unit="Var |u|",
        ),
        Claim(
            "lagged",
            "The gradient over the root of the mean square before it has Student's variance (t − 1)/(t − 3).",
            lagged,
            Tolerance("tails of a power law", relative=0.06),
            draw_against("step t", log=True),
            unit="variance of g/√v of the step before",
        ),
        Claim(
            "bound",
            "No gradients make an update larger than √(Σ a²/w), and some reach it.",
            bounds,
            Tolerance("rounding", relative=1e-9),
            draw_identity,
            unit="largest |u|",
        ),
        Claim(
            "momentum",
            "With momentum the first updates are 1/√((1 − β₁)/(1 + β₁)) = 4.4 times as large as later ones.",
            momentum,
            Tolerance("β₂ = 0.999 for β₂ → 1, and 40,000 coordinates", relative=0.03),
            draw_momentum,
            unit="E u²",
        ),
        Claim(
            "signal-to-noise",
            "Adam's two moments give the signal-to-noise ratio of the gradients of every parameter.",
            signal_to_noise,
            Tolerance("120 snapshots; a bias may have one entry", absolute=0.03, relative=0.15, per_seed=False),
            draw_snr,
            unit="signal-to-noise ratio",
        ),
    )


def _updates(beta1: float, beta2: float, steps: int, seed: int, count: int) -> Iterator[np.ndarray]:
    """u_t of Adam with ε = 0, step by step."""
    rng = np.random.default_rng(seed)
    m = v = np.zeros(count)
    for t in range(1, steps + 1):
        g = rng.standard_normal(count)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        yield m / (1 - beta1**t) / np.sqrt(v / (1 - beta2**t))


def variances(setting: Setting) -> Evidence:
    """Sample variance of |u| beside the exact one; and that of 1/√v, whose sample value only grows with the sample."""
    count, measured = setting.choose(40_000, 1_000_000), []
    for seed in setting.seeds:
        run = enumerate(_updates(0.0, BETA2, max(TIMES), seed, count), 1)
        measured.append([np.abs(u).var() for t, u in run if t in TIMES])
    rng = np.random.default_rng(99)
    inverse = [(1 / np.sqrt((rng.standard_normal((t, count)) ** 2).mean(0))).var() for t in TIMES[:5]]
    predicted = [gaussian_update_moments(t, BETA2).variance_abs for t in TIMES]
    curves = {"x": np.array(TIMES), "inverse": np.array(inverse)}
    return Evidence(np.array(predicted), np.array(measured), labels("t", TIMES), curves)


def draw_variances(axes: Axes, result: Comparison) -> None:
    """With the limit 1 − 2/π of equal weights."""
    x, inverse = result.curves["x"], result.curves["inverse"]
    axes.plot(x, result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    axes.axhline(1 - 2 / np.pi, color=PREDICTED, lw=1, ls=":", label="1 − 2/π")
    axes.plot(x[: len(inverse)], inverse, "x--", color=NEUTRAL, lw=1, ms=5, label="Var 1/√v: infinite for t ≤ 2")
    errorbars(axes, x, result)
    axes.set(xlabel="step", ylabel=result.unit, xscale="log", ylim=(-0.02, 0.75))
    axes.legend()


def lagged(setting: Setting) -> Evidence:
    """Equal weights, so that v is χ²/(t − 1) and the ratio is Student's t with t − 1 degrees of freedom."""
    count, measured = setting.choose(200_000, 2_000_000), []
    for seed in setting.seeds:
        rng, row = np.random.default_rng(seed), []
        for t in LAGGED:
            v = rng.standard_gamma((t - 1) / 2, count) * 2 / (t - 1)
            row.append((rng.standard_normal(count) ** 2 / v).mean())
        measured.append(row)
    times = np.array(LAGGED, dtype=float)
    return Evidence((times - 1) / (times - 3), np.array(measured), labels("t", LAGGED), {"x": times})


def bounds(setting: Setting) -> Evidence:
    """The largest update over gradients with spikes, Cauchy tails, growth, and the worst case."""
    steps, measured = 60, []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        noise = rng.standard_cauchy((steps, 2000))
        growing = rng.standard_normal((steps, 2000)) * np.exp(rng.uniform(-1, 1, 2000) * np.arange(steps)[:, None])
        measured.append([_largest(np.concatenate([noise, growing, _worst(*b, steps)], axis=1), *b) for b in BETAS])
    predicted = [update_bound(steps, *b) for b in BETAS]
    return Evidence(np.array(predicted), np.array(measured), tuple(f"β = {a:g}, {b:g}" for a, b in BETAS))


def _worst(beta1: float, beta2: float, steps: int) -> np.ndarray:
    """Gradients in proportion to the ratio of both weights, ``(steps, 1)``."""
    age = np.arange(steps)[::-1]
    return np.where(age == 0, 1.0, (beta1 / beta2) ** age if beta1 else 0.0)[:, None]


def _largest(gradients: np.ndarray, beta1: float, beta2: float) -> float:
    """|u| at the last step, maximum over the columns."""
    m = v = np.zeros(gradients.shape[1])
    for g in gradients:
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    t = len(gradients)
    return float((np.abs(m) / (1 - beta1**t) / np.sqrt(v / (1 - beta2**t))).max())


def momentum(setting: Setting) -> Evidence:
    """β₁ = 0.9."""
    count, measured = setting.choose(40_000, 1_000_000), []
    for seed in setting.seeds:
        run = enumerate(_updates(0.9, 0.999, max(MOMENTUM_TIMES), seed, count), 1)
        measured.append([(u**2).mean() for t, u in run if t in MOMENTUM_TIMES])
    predicted = [adam_noise_mean_square(t, 0.9) for t in MOMENTUM_TIMES]
    curves = {"x": np.array(MOMENTUM_TIMES)}
    return Evidence(np.array(predicted), np.array(measured), labels("t", MOMENTUM_TIMES), curves)


def draw_momentum(axes: Axes, result: Comparison) -> None:
    """On logarithmic scales."""
    x = result.curves["x"]
    axes.plot(x, result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    axes.axhline(0.1 / 1.9, color=PREDICTED, lw=1, ls=":", label="(1 − β₁)/(1 + β₁)")
    errorbars(axes, x, result)
    axes.set(xlabel="step", ylabel=result.unit, xscale="log", yscale="log")
    axes.legend()


def signal_to_noise(setting: Setting) -> Evidence:
    """A network on the parity of digits with Adam at a learning rate of zero, beside per-sample gradients."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16).float(), torch.tensor(2.0 * (digit % 2) - 1).float()
    measured, predicted = [], []
    for seed in setting.seeds:
        model = network((64, 32, 1), nn.Tanh, seed)
        truth = gradient_noise(_parity(model, x, y))
        rows: tuple[list[float], list[float]] = ([], [])
        for batch in BATCHES:
            adam = torch.optim.Adam(model.parameters(), lr=0.0)
            monitor, generator = AdamStateMonitor(adam, model), torch.Generator().manual_seed(seed)
            for step in range(1, setting.choose(STEPS, 4 * STEPS) + 1):
                picked = torch.randint(len(x), (batch,), generator=generator)
                loss = (model(x[picked])[:, 0] - y[picked]).square().mean() / 2
                adam.zero_grad()
                loss.backward()
                adam.step()
                if step % EVERY == 0 and step > 100:
                    monitor.update()
            rows[0].extend(group.mean_sq * batch / group.trace for group in truth.groups)
            rows[1].extend(row["snr"] for row in monitor.report())
        predicted.append(rows[0])
        measured.append(rows[1])
    cells = tuple(f"{group.name}, B = {batch}" for batch in BATCHES for group in truth.groups)
    return Evidence(np.array(predicted), np.array(measured), cells)


def _parity(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Task:
    return Task(
        model, lambda m, b: (m(b[0])[:, 0] - b[1]).square() / 2, lambda: [(x, y)],
        lr=0.1, weight_decay=0.0, batch_size=1, name="parity",
    )  # fmt: skip


def draw_snr(axes: Axes, result: Comparison) -> None:
    """Estimate against truth."""
    low, high = result.predicted.min() / 1.3, result.predicted.max() * 1.3
    axes.plot([low, high], [low, high], color=PREDICTED, lw=1.2, label="equal")
    axes.plot(result.predicted.ravel(), result.measured.ravel(), "o", ms=4.5, color=MEASURED, label="parameter × seed")
    axes.set(xlabel="from per-sample gradients", ylabel="from Adam's state", xscale="log", yscale="log")
    axes.legend()
