"""Figures of studies: predicted is always a line or a ring, measured always a filled point with its error bar."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gaugefix.studies.framework import Comparison, Draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTED = "#d1495b"
MEASURED = "#1f4e79"
NEUTRAL = "#8a8f98"
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": NEUTRAL,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "gaugefix",  # equal input, equal file
    "svg.fonttype": "none",
}


def draw_study(
    comparisons: Sequence[Comparison], draws: Mapping[str, Draw | None], columns: int = 3, *, titles: bool = True
) -> Figure:
    """One panel per measured claim.

    Args:
        comparisons: claims that could not be measured get no panel.
        draws: how to draw each, by name; `draw_cells` where there is none.
        columns: panels in a row, at most.
        titles: whether every panel carries its statement.

    Returns:
        The figure.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [c for c in comparisons if c.measured.size]
    columns = min(columns, len(shown)) or 1
    rows = math.ceil(len(shown) / columns) or 1
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.3 * columns, 3.6 * rows), layout="constrained")
        for place, comparison in enumerate(shown):
            axes = figure.add_subplot(rows, columns, place + 1)
            draw = draws.get(comparison.name) or draw_cells
            draw(axes, comparison)
            if not titles:
                continue
            title = textwrap.fill(comparison.statement, 52)
            axes.set_title(title if comparison.passed else f"✗ {title}", color="black" if comparison.passed else "red")
    return figure


def draw_cells(axes: Axes, comparison: Comparison) -> None:
    """Every cell beside its label: a ring where it was predicted, a point where it was measured."""
    positions = np.arange(len(comparison.cells))
    errorbars(axes, positions, comparison)
    rings(axes, positions, comparison.predicted.mean(axis=0))
    axes.set_xticks(positions, comparison.cells, rotation=35 if max(map(len, comparison.cells)) > 4 else 0, ha="right")
    axes.set_ylabel(comparison.unit)
    axes.legend()


def draw_identity(axes: Axes, comparison: Comparison) -> None:
    """Measured against predicted, every seed a point, on the line of perfect agreement."""
    low = min(comparison.predicted.min(), comparison.measured.min())
    high = max(comparison.predicted.max(), comparison.measured.max())
    axes.axline((low, low), (high, high), color=PREDICTED, lw=1.2, label="measured = predicted")
    axes.plot(comparison.predicted.ravel(), comparison.measured.ravel(), "o", ms=4.5, color=MEASURED, label="each seed")
    axes.set(xlabel="predicted", ylabel=f"measured {comparison.unit}".rstrip())
    axes.legend()


def draw_against(label: str, *, log: bool = False, step: bool = False) -> Draw:
    """A panel against the curve ``x``: the curves ``grid`` and ``line`` are the prediction, else rings at the cells.

    Args:
        label: of the x axis.
        log: logarithmic x axis.
        step: the prediction is a staircase.

    Returns:
        A function for `Claim.draw`.
    """

    def draw(axes: Axes, comparison: Comparison) -> None:
        curves = comparison.curves
        if comparison.measured.min() < 0 < comparison.measured.max():
            axes.axhline(0, color=NEUTRAL, lw=0.8)
        if "grid" in curves:
            lines = np.atleast_2d(curves["line"])
            axes.plot(curves["grid"], lines.T, color=PREDICTED, lw=1.1, drawstyle="steps-post" if step else "default")
            axes.plot([], [], color=PREDICTED, lw=1.1, label="predicted")
        else:
            rings(axes, curves["x"], comparison.predicted.T)
        if "grid" in curves and len(lines) == 1:
            errorbars(axes, curves["x"], comparison)
        else:
            points(axes, curves["x"], comparison.measured.T)
        axes.set(xlabel=label, ylabel=comparison.unit, xscale="log" if log else "linear")
        axes.legend()

    return draw


def draw_within(low: float, high: float, line: float | None = None, label: str = "") -> Draw:
    """As `draw_cells` on a scale that is given, where the scale of the data would say nothing.

    Args:
        low: end of the vertical axis.
        high: other end.
        line: something to compare with.
        label: what that is.

    Returns:
        A function for `Claim.draw`.
    """

    def draw(axes: Axes, comparison: Comparison) -> None:
        if line is not None:
            axes.axhline(line, color=NEUTRAL, ls="-.", lw=0.9, label=label)
        draw_cells(axes, comparison)
        axes.set_ylim(low, high)

    return draw


def errorbars(axes: Axes, x: np.ndarray, comparison: Comparison) -> None:
    """Measured mean ± standard error over the seeds."""
    stderr = np.nan_to_num(comparison.stderr)
    label = f"measured, {comparison.n_seeds} seeds"
    axes.errorbar(x, comparison.mean, yerr=stderr, fmt="o", ms=4.5, capsize=2.5, color=MEASURED, label=label, zorder=3)


def points(axes: Axes, x: np.ndarray, measured: np.ndarray) -> None:
    """Measured values of every seed, ``(cells, seeds)``."""
    drawn = axes.plot(x, measured, "o", ms=4.5, color=MEASURED, zorder=3)
    drawn[0].set_label("measured, each seed")


def rings(axes: Axes, x: np.ndarray, predicted: np.ndarray) -> None:
    """Predicted values as open rings that a measured point can sit in, ``(cells,)`` or ``(cells, seeds)``."""
    drawn = axes.plot(x, predicted, "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, zorder=2)
    drawn[0].set_label("predicted")
