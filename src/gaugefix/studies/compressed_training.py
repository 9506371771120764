"""The part of `gaugefix.studies.moment_compression` on scaling laws: test loss against the number of rows trained on.

A network of two tanh units is fitted to noisy values of another, by least squares to the end. Its excess test loss
falls as d^(−α) with the number of rows; trained on 16√d of the d rows, with weights that keep their moments, it is the
same, so that in terms of the rows that are trained on the exponent is 2α.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gaugefix.control import compress_points
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED
from gaugefix.studies.framework import Comparison, Evidence, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEACHER = np.array([4.0, 2.0, 2.0, -1.0, 1.0, -1.5])  # slopes, biases, outgoing weights
NOISE, DEGREE, POWER = 0.5, 6, 0.5  # of the labels; of the moments; 16·d^POWER rows are kept
KINDS = ("all rows", "compressed", "random rows")


def scaling_laws(setting: Setting) -> Evidence:
    """Exponents of the excess test loss, in the number of rows that are trained on; each from its own data sets."""
    sizes = 512 * 2 ** np.arange(setting.choose(quick=5, full=8))
    kept = np.round(16 * sizes**POWER)
    losses = np.array([[_losses(int(d), int(n), seed, setting) for d, n in zip(sizes, kept, strict=True)]
                       for seed in setting.seeds])  # fmt: skip
    whole = np.array([_exponent(sizes, row[:, 0]) for row in losses])
    few = np.array([_exponent(kept, row[:, 1]) for row in losses])
    curves = {"rows": np.array([sizes, kept, kept]), "losses": losses.mean(0).T}
    return Evidence(whole[:, None] / POWER, few[:, None], ("16√d of d rows",), curves)


def _exponent(rows: np.ndarray, losses: np.ndarray) -> float:
    return float(-np.polyfit(np.log(rows), np.log(losses), 1)[0])


def _losses(d: int, n: int, seed: int, setting: Setting) -> np.ndarray:
    """Mean excess test loss after training on d rows, on n compressed ones and on n random ones."""
    found = []
    for trial in range(setting.choose(quick=4, full=12)):
        rng = np.random.default_rng((seed, trial, d))
        x = rng.uniform(-1, 1, d)
        y = _network(TEACHER, x)[0] + NOISE * np.sqrt(3) * rng.uniform(-1, 1, d)
        rows, weights = compress_points(np.column_stack([x, y]), DEGREE, n)
        some = rng.permutation(d)[:n]
        found.append([
            _fitted(x, y, np.ones(d)),
            _fitted(x[rows], y[rows], weights),
            _fitted(x[some], y[some], np.ones(n)),
        ])
    return np.asarray(np.mean(found, axis=0))


def _network(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and their derivatives."""
    slopes, biases, out = theta.reshape(3, -1)
    hidden = np.tanh(np.outer(x, slopes) + biases)
    back = (1 - hidden * hidden) * out
    return hidden @ out, np.hstack([back * x[:, None], back, hidden])


def _fitted(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Excess test loss of the network with the least squared error, found from the weights of the teacher."""
    from scipy.optimize import least_squares

    root = np.sqrt(weights / weights.sum())

    def misfit(theta: np.ndarray) -> np.ndarray:
        return np.asarray(root * (_network(theta, x)[0] - y))

    def slopes(theta: np.ndarray) -> np.ndarray:
        return np.asarray(root[:, None] * _network(theta, x)[1])

    fit = least_squares(misfit, TEACHER, slopes, method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12)
    grid = np.linspace(-1, 1, 401)
    return float(((_network(fit.x, grid)[0] - _network(TEACHER, grid)[0]) ** 2).mean())


def draw_scaling(axes: Axes, result: Comparison) -> None:
    """Loss against rows, for all rows, compressed ones and random ones."""
    rows, losses = result.curves["rows"], result.curves["losses"]
    for n, loss, style, color, label in zip(
        rows, losses, ("o-", "o-", "s--"), (PREDICTED, MEASURED, NEUTRAL), KINDS, strict=True
    ):
        axes.plot(n, loss, style, color=color, ms=4, lw=1.1, label=label)
    axes.set(xlabel="rows trained on", ylabel="excess test loss", xscale="log", yscale="log")
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.legend()
