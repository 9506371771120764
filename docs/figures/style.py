"""Colours and axes of the pictures in the documentation."""

from __future__ import annotations

import matplotlib.pyplot as plt

BLUE, RED, GREY, GREEN = "#1f4e79", "#d1495b", "#8a8f98", "#2a7f62"

plt.rcParams.update({
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
})
