"""The plots of an audit; see `gaugefix.report.plotting` for what they have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from gaugefix.report.format import number
from gaugefix.report.full_figures import full_figures
from gaugefix.report.gl_spectra import gl_classes, gl_figure
from gaugefix.report.plotting import SERIES, SMALLEST, Figure, log_axis, make_figure, two_sides
from gaugefix.report.run_figures import run_events_figure


def figures(data: Mapping[str, Any]) -> dict[str, Figure]:
    """All plots for which there are numbers.

    Args:
        data: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        ``{id: {"label", "height", "data", "layout"}}``; ``label`` describes the plot to a screen reader.
    """
    made: dict[str, Figure | None] = {
        "forecast": _forecast(data["forecast"]) if data["forecast"] else None,
        "spectrum": _spectrum(data["collapse"]["units"]) if data["collapse"] else None,
        "balance": _balance(data["charges"]["units"]) if data["charges"] else None,
        "noise": _noise(data["noise"]["groups"]) if data["noise"] else None,
        "training": _training(data["training"]),
        "events": run_events_figure(data["run"]),
        "gl-spectra": gl_figure(gl_classes(data)),
        **(full_figures(data["full"]) if data["full"] else {}),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _forecast(forecast: Mapping[str, Any]) -> Figure | None:
    """Layers as rows, weight decay as the axis: drives, birth threshold, critical value, and where the run is."""
    classes = forecast["classes"]
    traces = [t for row, c in enumerate(classes) for t in _forecast_row(row, c)]
    if not traces:
        return None
    decay = forecast["weight_decay"]
    top = len(classes) - 0.4
    line = {"type": "line", "x0": decay, "x1": decay, "y0": -0.6, "y1": top, "line": {"color": "var:--ink", "width": 2}}
    note = {
        "x": math.log10(decay) if decay else 0,
        "y": -0.58,
        "text": f"λ = {number(decay)}",
        "xshift": 5,
        "showarrow": False,
    }
    return make_figure(
        "Drives of the live units, birth threshold and return threshold of every layer, "
        f"on an axis of weight decay; the run used {number(decay)}",
        traces,
        height=170 + 90 * len(classes),
        xaxis=log_axis("weight decay", (x for t in traces for x in t["x"])),
        yaxis={
            "tickvals": list(range(len(classes))),
            "ticktext": [escape(c["name"]) for c in classes],
            "range": [len(classes) - 0.4, -0.6],
            "zeroline": False,
            "showgrid": False,
        },
        shapes=[line] if decay else [],
        annotations=[{**note, "xanchor": "left", "yanchor": "top"}] if decay else [],
    )


def _forecast_row(row: int, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    name = escape(item["name"])
    live = [(i, d) for i, d in enumerate(item["drives"]) if d is not None and d > SMALLEST]
    if live:
        yield {
            "name": "drive of a live unit",
            "legendgroup": "drive",
            "showlegend": row == 0,
            "mode": "markers",
            "x": [d for _, d in live],
            "y": [row + 0.22 * math.sin(2.4 * i) for i, _ in live],  # spread so that equal drives stay visible
            "text": [f"{name}, unit {i}" for i, _ in live],
            "hovertemplate": "%{text}<br>drive %{x:.4g}<extra></extra>",
            "marker": {
                "color": ["var:--fading" if i in item["dying"] else "var:--alive" for i, _ in live],
                "size": 8,
                "opacity": 0.6,
            },
        }
    for key, label, symbol, color in (
        ("kappa", "birth threshold κ", "diamond", "var:--accent"),
        ("critical_weight_decay", "λ<sub>c</sub>: above it a dead layer stays dead", "x", "var:--dead"),
    ):
        value = item[key]
        if value is not None and value > SMALLEST:
            yield {
                "name": label,
                "legendgroup": key,
                "showlegend": row == 0,
                "mode": "markers",
                "x": [value],
                "y": [row],
                "hovertemplate": f"{name}<br>{label} %{{x:.4g}}<extra></extra>",
                "marker": {"color": color, "size": 12, "symbol": symbol, "line": {"color": "var:--paper", "width": 1}},
            }


def _spectrum(units: Sequence[Mapping[str, Any]]) -> Figure | None:
    traces = []
    for k, unit in enumerate(units):
        top = max((s or 0.0 for s in unit["spectrum"]), default=0.0)
        if top <= 0:
            continue
        kept = [(i + 1, s / top) for i, s in enumerate(unit["spectrum"]) if s is not None and s / top > SMALLEST]
        name = escape(unit["name"])
        traces.append({
            "name": name,
            "mode": "lines+markers",
            "x": [i for i, _ in kept],
            "y": [s for _, s in kept],
            "hovertemplate": f"{name}<br>σ %{{x}}: %{{y:.3g}}<extra></extra>",
            "line": {"color": SERIES[k % len(SERIES)], "width": 2},
            "marker": {"size": 5},
        })
    if not traces:
        return None
    return make_figure(
        "Singular values of every layer, relative to the largest",
        traces,
        xaxis={"title": {"text": "singular value, from the largest"}, "rangemode": "tozero"},
        yaxis=log_axis("relative size", (y for t in traces for y in t["y"])),
        showlegend=True,
    )


def _balance(units: Sequence[Mapping[str, Any]]) -> Figure | None:
    return two_sides(
        units,
        "Outgoing against incoming squared norm of every unit; balanced units lie on the diagonal",
        balanced="balanced",
        quantity="",
        axes=("incoming ‖w‖²", "outgoing ‖u‖²"),
    )


def _noise(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    known = [g for g in groups if g["snr"] is not None and g["snr"] > SMALLEST]
    if not known:
        return None
    names = [escape(g["name"]) for g in known]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [g["snr"] for g in known],
        "y": list(range(len(known))),
        "text": names,
        "textposition": "none",
        "hovertemplate": "%{text}<br>signal / noise %{x:.3g}<extra></extra>",
        "marker": {"color": "var:--series-1"},
    }
    line = {"type": "line", "x0": 1, "x1": 1, "y0": -0.6, "y1": len(known) - 0.4, "line": {"color": "var:--faint"}}
    return make_figure(
        "Signal-to-noise ratio of one minibatch for every parameter",
        [bars],
        height=130 + 30 * len(known),
        xaxis=log_axis("signal / noise of one minibatch", [1.0, *bars["x"]]),
        yaxis={"tickvals": bars["y"], "ticktext": names, "autorange": "reversed", "showgrid": False},
        shapes=[line],
        bargap=0.4,
    )


def _training(losses: Sequence[float | None]) -> Figure | None:
    if len(losses) < 2:
        return None
    curve = {
        "mode": "lines",
        "x": list(range(1, len(losses) + 1)),
        "y": list(losses),
        "hovertemplate": "pass %{x}: loss %{y:.4g}<extra></extra>",
        "line": {"color": "var:--accent", "width": 2},
    }
    return make_figure(
        f"Training loss over {len(losses)} passes, from {number(losses[0])} to {number(losses[-1])}",
        [curve],
        height=280,
        xaxis={"title": {"text": "pass over the data"}},
        yaxis=log_axis("mean loss", losses),
    )
