"""The plots that only a full audit has: exponents with error bars, alignment of every layer, noise of units."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gaugefix.report.format import number
from gaugefix.report.plotting import Figure, make_figure, two_sides

#: relation -> what it compares
RELATIONS = {
    "rga_out": "H·G out",
    "rwa_out": "H·WWᵀ out",
    "gwa_out": "G·WWᵀ out",
    "rga_in": "H·G in",
    "rwa_in": "H·WᵀW in",
    "gwa_in": "G·WᵀW in",
}
_VERDICT_COLOR = {"collapses": "var:--dead", "escapes": "var:--alive", "undecided": "var:--faint"}


def full_figures(full: Mapping[str, Any]) -> dict[str, Figure | None]:
    """Plots of the entry ``full`` of an audit.

    Args:
        full: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        Figures by name; None where there are no numbers.
    """
    return {
        "lyapunov": _lyapunov(full["lyapunov"]["mirrors"]) if full["lyapunov"] else None,
        "alignment": _alignment(full["alignment"]["layers"]) if full["alignment"] else None,
        "unit-noise": _unit_noise(full["unit_noise"]) if full["unit_noise"] else None,
    }


def _lyapunov(mirrors: list[Mapping[str, Any]]) -> Figure | None:
    """One row per plane: Λ with two standard errors, left of zero it attracts."""
    known = [m for m in mirrors if m["value"] is not None]
    if not known:
        return None
    points = {
        "mode": "markers",
        "x": [m["value"] for m in known],
        "y": list(range(len(known))),
        "error_x": {"type": "data", "array": [2 * (m["stderr"] or 0.0) for m in known], "color": "var:--faint"},
        "text": [f"{escape(m['name'])}<br>{m['verdict']}" for m in known],
        "hovertemplate": "%{text}<br>Λ = %{x:.3g} per step<extra></extra>",
        "marker": {"color": [_VERDICT_COLOR.get(m["verdict"], "var:--faint") for m in known], "size": 10},
    }
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": -0.6, "y1": len(known) - 0.4, "line": {"color": "var:--ink"}}
    return make_figure(
        "Lyapunov exponents of the nearest mirror planes with two standard errors; below zero SGD falls onto the plane",
        [points],
        height=120 + 44 * len(known),
        xaxis={"title": {"text": "Λ per step ± 2 s.e."}, "exponentformat": "power"},
        yaxis={
            "tickvals": points["y"],
            "ticktext": [escape(m["name"]) for m in known],
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
        shapes=[zero],
    )


def _alignment(layers: list[Mapping[str, Any]]) -> Figure | None:
    """Layers against relations, each cell a correlation between −1 and 1."""
    if not layers:
        return None
    values = [[layer[k] for k in RELATIONS] for layer in layers]
    names = [escape(layer["name"]) or "(the model)" for layer in layers]
    heat = {
        "type": "heatmap",
        "z": values,
        "x": list(RELATIONS.values()),
        "y": list(range(len(names))),
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, "var:--dead"], [0.5, "var:--paper"], [1, "var:--accent"]],
        "text": [[number(v, 2) for v in row] for row in values],
        "texttemplate": "%{text}",
        "customdata": [[number(layer["null"].get(k), 2) for k in RELATIONS] for layer in layers],
        "hovertemplate": "%{x}: %{z:.3f}<br>chance level %{customdata}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [-1, 0, 1]},
        "xgap": 2,
        "ygap": 2,
    }
    return make_figure(
        "Alignment of activations, gradients and weights of every linear layer, from −1 to 1",
        [heat],
        height=110 + 34 * len(names),
        xaxis={"showgrid": False, "side": "top", "ticks": ""},
        yaxis={
            "tickvals": heat["y"],
            "ticktext": names,
            "autorange": "reversed",
            "showgrid": False,
            "ticks": "",
            "zeroline": False,
        },
    )


def _unit_noise(classes: list[Mapping[str, Any]]) -> Figure | None:
    """Noise of the outgoing against the incoming weights: on the diagonal a unit is in noise balance."""
    return two_sides(
        classes,
        "Gradient noise of the outgoing against the incoming weights of every unit",
        balanced="noise balance",
        quantity="Tr C ",
        axes=("Tr C of the incoming weights", "Tr C of the outgoing weights"),
    )
