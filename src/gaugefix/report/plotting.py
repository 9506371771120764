"""What the plots of the page share: plain Plotly specifications whose colours follow the theme.

Colours are written ``"var:--name"``; the page replaces them by its CSS variables. Names from the model are escaped by
whoever puts them into a label, because Plotly reads a subset of HTML there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    step: float | str = max(1, round(decades / 5)) if decades > 3 else "D2" if decades > 0.7 else "D1"
    powers = {"tickformat": "", "exponentformat": "power"} if decades > 5 else {"tickformat": "~g"}
    return {"title": {"text": title}, "type": "log", "dtick": step, **powers}
