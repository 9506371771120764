"""What the three kinds of collapse do to a layer."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from style import GREY, RED

INPUTS, HIDDEN, OUTPUTS = [(0, y) for y in (0.5, 1.5, 2.5)], [(1, y) for y in (0, 1, 2, 3)], [(2, 1), (2, 2)]


def network(axes: plt.Axes, colours: list[str], sizes: list[float], faded: set[int]) -> None:
    """Draw one small network; hidden unit i has a colour, a size, and weights that may have gone."""
    for i, (x, y) in enumerate(HIDDEN):
        for other in INPUTS + OUTPUTS:
            gone = i in faded
            colour = GREY if gone else colours[i]
            axes.plot([x, other[0]], [y, other[1]], color=colour, lw=1.1, alpha=0.12 if gone else 0.55, zorder=1)
        face, edge = ("white", GREY) if i in faded else (colours[i], "white")
        axes.scatter([x], [y], s=sizes[i], color=face, edgecolor=edge, linewidth=1.2, zorder=3)
    axes.scatter(*np.array(INPUTS + OUTPUTS).T, s=70, color="#c9cdd4", zorder=3)
    axes.set(xlim=(-0.25, 2.25), ylim=(-0.6, 3.6))
    axes.axis("off")


four = ["#1f4e79", "#2a7f62", "#b8860b", "#7b4b94"]
figure, panels = plt.subplots(1, 4, figsize=(8.6, 2.7))
network(panels[0], four, [230] * 4, set())
panels[0].set_title("four units")
network(panels[1], four, [230, 230, 90, 230], {2})
panels[1].set_title("one dead")
network(panels[2], [four[0], four[1], four[1], four[3]], [230] * 4, set())
panels[2].annotate("", (1.0, 1.82), (1.0, 1.18), arrowprops={"arrowstyle": "<->", "color": RED, "lw": 1.6}, zorder=5)
panels[2].set_title("two equal")
network(panels[3], four, [230] * 4, set())
panels[3].plot([1, 1], [0, 3], color=RED, lw=2.2, zorder=2)
panels[3].annotate("n·h = 0", (1.08, -0.5), color=RED, fontsize=9.5)
panels[3].set_title("rank lower by one")
