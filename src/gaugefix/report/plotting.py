"""What the plots of the page share: plain Plotly specifications whose colours follow the theme.

Colours are written ``"var:--name"``; the page replaces them by its CSS variables. Names from the model are escaped by
whoever puts them into a label, because Plotly reads a subset of HTML there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Figure = dict[str, Any]
SERIES = tuple(f"var:--series-{i}" for i in range(1, 7))
SMALLEST = 1e-12  # what a log axis can show


def make_figure(label: str, traces: Sequence[Mapping[str, Any]], *, height: int = 340, **layout: Any) -> Figure:
    """A figure; ``label`` describes it to a screen reader."""
    return {"label": label, "height": height, "data": list(traces), "layout": layout}


def log_axis(title: str, values: Iterable[float | None]) -> dict[str, Any]:
    """A logarithmic axis with few labels: 1, 2, 5 over a few decades, only powers of ten over many."""
    shown = [math.log10(v) for v in values if v is not None and v > SMALLEST]
    decades = max(shown, default=0.0) - min(shown, default=0.0)
    step: float | str = max(1, round(decades / 5)) if decades > 2 else "D2" if decades > 0.7 else "D1"
    powers = {"tickformat": "", "exponentformat": "power"} if decades > 5 else {"tickformat": "~g"}
    return {"title": {"text": title}, "type": "log", "dtick": step, **powers}


def two_sides(
    classes: Sequence[Mapping[str, Any]], label: str, *, balanced: str, quantity: str, axes: tuple[str, str]
) -> Figure | None:
    """Outgoing against incoming of every unit, on log axes with the diagonal of balance.

    Args:
        classes: entries with ``name``, ``incoming`` and ``outgoing``, one number per unit.
        label: of the figure.
        balanced: name of the diagonal.
        quantity: put before the numbers of a unit when one points at it.
        axes: titles of the axis of the incoming and of the outgoing side.

    Returns:
        The figure; None if no unit has both sides.
    """
    traces: list[dict[str, Any]] = []
    seen: list[float] = []
    for k, item in enumerate(classes):
        pairs = zip(item["incoming"], item["outgoing"], strict=True)
        live = [(i, w, u) for i, (w, u) in enumerate(pairs) if w and u and min(w, u) > SMALLEST]
        if not live:
            continue
        name = escape(item["name"])
        seen += [v for _, w, u in live for v in (w, u)]
        traces.append({
            "name": name,
            "mode": "markers",
            "x": [w for _, w, _ in live],
            "y": [u for *_, u in live],
            "text": [f"{name}, unit {i}" for i, *_ in live],
            "hovertemplate": f"%{{text}}<br>{quantity}incoming %{{x:.3g}}, outgoing %{{y:.3g}}<extra></extra>",
            "marker": {"color": SERIES[k % len(SERIES)], "size": 9, "opacity": 0.75},
        })
    if not traces:
        return None
    ends = [min(seen), max(seen)]
    line = {"color": "var:--faint", "width": 1.5, "dash": "dot"}
    diagonal = {"name": balanced, "mode": "lines", "x": ends, "y": ends, "line": line, "hoverinfo": "skip"}
    return make_figure(
        label, [diagonal, *traces], xaxis=log_axis(axes[0], seen), yaxis=log_axis(axes[1], seen), showlegend=True
    )
