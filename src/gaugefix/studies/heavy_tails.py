"""The part of `gaugefix.studies.minibatch_noise` on rare large excursions: power-law tails, and inputs as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gaugefix.studies.figures import NEUTRAL, PREDICTED, errorbars
from gaugefix.studies.framework import Comparison, Evidence, Setting
from gaugefix.theory import gaussian_tail_index, label_noise_sgd, linear_sgd_stationary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHAINS = 150  # for every seed; in single precision, far finer than their scatter
TAILS = ((1.0, 1), (1.0, 2), (1.0, 4), (1.5, 8))  # a·lr and batch size
DIABETES = ((0.05, 4), (0.1, 4), (0.1, 1))  # lr and batch size


def tails(setting: Setting) -> Evidence:
    """Hill's estimate over many chains at several times, ``(seeds, cases)``."""
    chains, kept = setting.choose(40_000, 400_000), 6
    measured = np.empty((len(setting.seeds), len(TAILS)))
    for row, seed in enumerate(setting.seeds):
        rng = np.random.default_rng(seed)
        for column, (strength, batch) in enumerate(TAILS):
            w, samples = np.zeros(chains), []
            for step in range(1, 15 * (kept + 1) + 1):
                h = rng.standard_gamma(batch / 2, chains) * 2 / batch
                w = (1 - strength * h) * w + strength * np.sqrt(h / batch) * rng.standard_normal(chains)
                if step % 15 == 0 and step > 15:
                    samples.append(np.abs(w))
            ordered = np.sort(np.concatenate(samples))[::-1]
            top = len(ordered) * 3 // 1000
            measured[row, column] = 1 / np.log(ordered[:top] / ordered[top]).mean()
    laws = [gaussian_tail_index(1.0, strength, batch) for strength, batch in TAILS]
    curves = {
        "2S/(lr·a) − S": np.array([law.moment_match for law in laws]),
        "continuous time": np.array([law.continuous for law in laws]),
    }
    return Evidence(
        np.array([law.index for law in laws]), measured, tuple(f"lr·a={p:g} S={s}" for p, s in TAILS), curves
    )


def draw_alternatives(axes: Axes, result: Comparison) -> None:
    """Measured in the ring of the exact value, approximations beside them."""
    x = np.arange(len(result.cells))
    axes.plot(x, result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="exact")
    for marker, (label, values) in zip("_x", result.curves.items(), strict=False):
        axes.plot(x, values, marker, ms=9, color=NEUTRAL, mew=1.5, label=label)
    errorbars(axes, x, result)
    axes.set_xticks(x, result.cells, rotation=20, ha="right")
    axes.set(ylabel=result.unit, yscale="log")
    axes.legend()


def diabetes(setting: Setting) -> Evidence:
    """Excess loss over the least-squares minimum, from the centre of the stationary law."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    inputs, hessian = torch.tensor(x).float(), torch.tensor(x.T @ x / len(x)).float()
    measured, predicted, gaussian = [], [], []
    for lr, batch in DIABETES:
        law = linear_sgd_stationary(x, y, lr, batch)
        misfit = x @ law.solution - y
        predicted.append(law.excess_loss)
        gaussian.append(label_noise_sgd(np.linalg.eigvalsh(x.T @ x / len(x)), misfit.var(), lr, batch).excess_loss)
        residuals = torch.tensor(misfit).float()
        generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
        w, values = torch.zeros(len(setting.seeds), CHAINS, x.shape[1]), []
        for step in range(setting.choose(5000, 40_000)):
            picked = torch.stack([torch.randint(len(x), (CHAINS, batch), generator=g) for g in generators])
            rows = inputs[picked]
            error = (rows @ w[..., None])[..., 0] + residuals[picked]
            w = w - lr / batch * (error[..., None, :] @ rows)[..., 0, :]
            if step >= 2000 and step % 20 == 0:
                values.append(((w @ hessian) * w).sum(-1).mean(-1) / 2)
        measured.append(torch.stack(values).mean(0).numpy())
    cells = tuple(f"lr={lr:g} S={batch}" for lr, batch in DIABETES)
    return Evidence(np.array(predicted), np.array(measured).T, cells, {"Gaussian inputs": np.array(gaussian)})
