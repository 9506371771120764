"""Loss landscape of two neurons, f(x) = tanh(w1 x) + tanh(w2 x), with runs of gradient descent."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from style import RED

X = np.linspace(-2, 2, 81)
Y = np.tanh(3.0 * X) + np.tanh(0.4 * X)


def loss(w1: np.ndarray, w2: np.ndarray, decay: float) -> np.ndarray:
    """Mean squared error and weight decay, for arrays of weights."""
    out = np.tanh(w1[..., None] * X) + np.tanh(w2[..., None] * X)
    return ((out - Y) ** 2).mean(-1) + decay / 2 * (w1**2 + w2**2)


def descend(w: np.ndarray, decay: float, lr: float = 0.05, steps: int = 1500) -> np.ndarray:
    """Paths of gradient descent, ``(steps, runs, 2)``."""
    path = [w]
    for _ in range(steps):
        hidden = np.tanh(w[..., None] * X)
        error = hidden.sum(1, keepdims=True) - Y
        w = w - lr * (2 * (error * (1 - hidden**2) * X).mean(-1) + decay * w)
        path.append(w)
    return np.array(path)


def critical_decay() -> float:
    """Smallest weight decay at which the best point with w1 = w2 is stable across the mirror."""
    for decay in np.linspace(0.005, 1.0, 400):
        w = np.linspace(0.05, 4, 4000)
        best = w[loss(w, w, decay).argmin()]
        h = 1e-3
        values = loss(np.array([best + h, best, best - h]), np.array([best - h, best, best + h]), decay)
        if values[0] + values[2] > 2 * values[1]:
            return float(decay)
    raise RuntimeError("no critical weight decay below 1")


grid = np.linspace(-0.2, 3.6, 240)
w1, w2 = np.meshgrid(grid, grid)
starts = np.array([[0.2, 2.0], [0.6, 3.2], [1.2, 0.1], [3.3, 1.5], [2.6, 2.9], [0.1, 0.9], [3.4, 3.0], [1.7, 3.4]])
threshold = critical_decay()
figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.2), sharey=True)
for axes, ratio in zip(panels, (0.1, 1.5), strict=True):
    values = loss(w1, w2, ratio * threshold)
    axes.contourf(w1, w2, np.log(values), levels=26, cmap="Blues_r", alpha=0.75)
    axes.plot(grid, grid, color=RED, lw=1.6, ls=(0, (5, 3)))
    paths = descend(starts, ratio * threshold)
    axes.plot(paths[:, :, 0], paths[:, :, 1], color="#10243a", lw=1)
    axes.plot(*starts.T, "o", ms=3.5, color="white", mec="#10243a")
    axes.plot(*paths[-1].T, "o", ms=7, color=RED, mec="white", zorder=5)
    axes.set(title=f"weight decay {ratio:g} $\\lambda_c$", xlabel="weight of neuron 1", aspect="equal")
    axes.set(xlim=grid[[0, -1]], ylim=grid[[0, -1]])
panels[0].set_ylabel("weight of neuron 2")
panels[0].annotate("mirror", (2.95, 2.95), xytext=(2.35, 3.15), color=RED, rotation=45, fontsize=10)
