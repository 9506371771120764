"""Along the normal of a mirror the loss is even: a pitchfork with a sharp threshold in the weight decay."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from style import BLUE, GREY, RED

z = np.linspace(-1.6, 1.6, 400)
ratios = (0.0, 0.5, 1.0, 1.5)


def loss(z: np.ndarray, decay: float) -> np.ndarray:
    """A double well with λ_min(H_O) = −1, plus (λ/2)z²."""
    return -(z**2) / 2 + z**4 / 4 + decay / 2 * z**2


figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
for ratio, shade in zip(ratios, plt.cm.Blues(np.linspace(0.4, 0.95, len(ratios))), strict=True):
    minimum = np.sqrt(max(1 - ratio, 0.0))
    left.plot(z, loss(z, ratio), color=shade, lw=1.8, label=f"$\\lambda$ = {ratio:g} $\\lambda_c$")
    left.plot(
        [-minimum, minimum], loss(np.array([-minimum, minimum]), ratio), "o", ms=6, color=RED, mec="white", zorder=4
    )
left.axvline(0, color=RED, lw=1.2, ls=(0, (5, 3)))
left.set(ylim=(-0.32, 0.75), xlabel="z, distance from the mirror plane", ylabel="loss along the normal")
left.legend(loc="upper center", ncols=2, fontsize=9)

decay = np.linspace(0, 2, 400)
height = np.sqrt(np.maximum(1 - decay, 0))
right.plot(decay, height, color=BLUE, lw=1.8)
right.plot(decay, -height, color=BLUE, lw=1.8)
right.plot([0, 1], [0, 0], color=GREY, lw=1.2, ls=":")
right.axvline(1, color=RED, lw=1)
right.annotate("$\\lambda_c$", (1.03, 0.85), color=RED)
right.annotate("two different units", (0.05, 0.1), color=BLUE)
right.annotate("one", (1.42, 0.1), color=BLUE)
right.set(xlabel="weight decay / $\\lambda_c$", ylabel="z at the minimum")
