"""SGD beside a saddle: it leaves below the critical learning rate and falls in above."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from style import BLUE, GREY, RED

from gaugefix.theory.multiplicative_noise import exponent_root, gaussian_regression_exponent

SLOPE, START, STEPS, RUNS = 0.12, 1e-12, 3000, 200
threshold = exponent_root(lambda lr: gaussian_regression_exponent(SLOPE, lr), 0.02, 0.4)
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.3), sharey=True)
for axes, ratio in zip(panels, (0.5, 1.6), strict=True):
    rng, lr = np.random.default_rng(0), ratio * threshold
    u = np.full(RUNS, START)
    path = [u]
    for _ in range(STEPS):
        x, xi = rng.standard_normal((2, RUNS))
        u = u - 2 * lr * x * (u * u * x - SLOPE * x - xi) * u
        path.append(u)
    distance = np.log10(np.abs(path))
    axes.plot(distance, color=BLUE, lw=0.5, alpha=0.15)
    steps = np.arange(STEPS + 1)
    line = np.log10(START) + gaussian_regression_exponent(SLOPE, lr) * steps / np.log(10)
    axes.plot(
        steps,
        np.where(line < 0, line, np.nan),
        color=RED,
        lw=2,
        label="predicted, $z_0\\, e^{\\Lambda t}$",
    )
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(title=f"learning rate {ratio:g} $\\eta_c$", xlabel="step", ylim=(-60, 4))
panels[0].set_ylabel("$\\log_{10}$ distance to the plane")
panels[0].legend(loc="lower left")
