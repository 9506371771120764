"""Classes with a general linear group: what counts of them are the singular values of a product, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gaugefix.report.format import number
from gaugefix.report.plotting import SERIES, SMALLEST, Figure, log_axis, make_figure

#: more heads than this of one class are not drawn: the picture would say nothing
_MOST_FIBERS = 16


def gl_classes(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Queries and keys, values and outputs, adapters, pairs of linear layers: one row each.

    Args:
        data: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        Rows with ``name``, ``group``, ``kind``, ``fibers`` (heads), the ``rank`` of the products and ``max_rank``, what
        it is at most, their ``effective_rank``, the ``predicted_rank`` (None without one), ``largest`` singular value
        of the signal matrix, λ as ``weight_decay``, ``signal`` (those values, head by head), ``verdict``, ``reason``.
    """
    forecasts = {c["name"]: c for c in (data["forecast"] or {"classes": ()})["classes"]}
    collapsed = {u["name"]: u for u in (data["collapse"] or {"units": ()})["units"]}
    groups = {s["class"]: s["group"] for s in data["symmetries"]["symmetries"] if s["class"] and "GL(" in s["group"]}
    rows = []
    for name, group in groups.items():
        unit, item = collapsed.get(name), forecasts.get(name)
        if unit is None:
            continue
        spectra = [[v for v in fiber if v is not None] for fiber in item["fiber_spectra"]] if item else []
        spectra = [fiber for fiber in spectra if fiber]
        rows.append({
            "name": name,
            "group": group,
            "kind": unit["kind"],
            "fibers": unit["fibers"],
            "rank": unit["numerical_rank"],
            "max_rank": unit["max_rank"],
            "effective_rank": unit["effective_rank"],
            "predicted_rank": item["predicted_rank"] if item else None,
            "largest": max((v for fiber in spectra for v in fiber), default=None),
            "weight_decay": data["task"]["weight_decay"],
            "signal": spectra,
            "verdict": item["verdict"] if item else "no forecast",
            "reason": item["reason"] if item else "",
        })
    return rows


def gl_figure(rows: list[dict[str, Any]]) -> Figure | None:
    """Singular values of the signal matrix of every head against λ: modes above grow, at λ rest, below fade.

    Args:
        rows: from `gl_classes`.

    Returns:
        The figure, None if no class has a forecast.
    """
    shown = [r for r in rows if r["signal"]]
    if not shown:
        return None
    traces: list[dict[str, Any]] = []
    for k, row in enumerate(shown):
        for h, fiber in enumerate(row["signal"][:_MOST_FIBERS]):
            values = [(i + 1, v) for i, v in enumerate(fiber) if v > SMALLEST]
            of = f"{escape(row['name'])}, head {h}" if len(row["signal"]) > 1 else escape(row["name"])
            traces.append({
                "name": escape(row["name"]),
                "legendgroup": str(k),
                "showlegend": h == 0,
                "mode": "lines+markers",
                "x": [i for i, _ in values],
                "y": [v for _, v in values],
                "hovertemplate": f"{of}<br>mode %{{x}}: %{{y:.3g}}<extra></extra>",
                "line": {"color": SERIES[k % len(SERIES)], "width": 1},
                "marker": {"color": SERIES[k % len(SERIES)], "size": 7, "symbol": h % 8},
            })
    modes = max(i for t in traces for i in (*t["x"], 1))
    decay = shown[0]["weight_decay"]
    if decay > SMALLEST:
        traces.append({
            "name": f"λ = {number(decay)}",
            "mode": "lines",
            "x": [0.5, modes + 0.5],
            "y": [decay, decay],
            "line": {"color": "var:--ink", "width": 2, "dash": "dot"},
            "hoverinfo": "skip",
        })
    return make_figure(
        f"Singular values of the signal matrix of {len(shown)} classes with a general linear group, every head on its "
        f"own, against the weight decay {number(decay)}",
        traces,
        xaxis={"title": {"text": "mode"}, "range": [0.5, modes + 0.5], "dtick": max(1, round(modes / 10))},
        yaxis=log_axis("σ of −∂L/∂M", (v for t in traces for v in t["y"])),
        showlegend=True,
    )
