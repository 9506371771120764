"""Plots of a run, in the form of `gaugefix.report.figures`: plain Plotly specifications with colours of the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gaugefix.monitor import Event, MonitorLog

#: symbol, colour and what the legend says of every kind of event
_MARKS: dict[str, tuple[str, str]] = {
    "unit died": ("x", "var:--dead"),
    "unit revived": ("circle", "var:--alive"),
    "mirror restored": ("diamond", "var:--series-1"),
    "mirror broken": ("diamond-open", "var:--series-1"),
    "rank fell": ("triangle-down", "var:--series-3"),
    "rank rose": ("triangle-up", "var:--series-3"),
    "balance reached": ("square", "var:--accent"),
    "balance lost": ("square-open", "var:--accent"),
    "charge law violated": ("star", "var:--fading"),
    "charge law restored": ("star-open", "var:--fading"),
    "not finite": ("cross", "var:--dead"),
    "finite again": ("cross-open", "var:--alive"),
    "parameters changed": ("hexagon", "var:--ink"),
}


def events_figure(log: MonitorLog) -> dict[str, Any] | None:
    """Everything that happened during a run on one axis of steps, one row per layer.

    Args:
        log: from `gaugefix.monitor.read_log`, or `gaugefix.Monitor.log`.

    Returns:
        ``{"label", "height", "data", "layout"}`` as `gaugefix.report.figures.figures` gives them, names escaped; None
        if nothing happened.

    Example:
        >>> from gaugefix.monitor import Event
        >>> dead = Event(100, "unit died", "0", 0.004, "unit 3 of 0 died; 7 of 8 are alive.", (3,))
        >>> events_figure(MonitorLog(events=[dead]))["data"][0]["x"]
        [100]
    """
    if not log.events:
        return None
    titles = {c["name"]: str(c["title"]) for c in log.run.get("classes", ())}
    places = list(dict.fromkeys(e.where for e in log.events))
    traces = []
    for kind in dict.fromkeys(e.kind for e in log.events):
        symbol, color = _MARKS.get(kind, ("circle", "var:--ink"))
        found = [e for e in log.events if e.kind == kind]
        traces.append({
            "name": escape(kind),
            "mode": "markers",
            "x": [e.step for e in found],
            "y": [places.index(e.where) for e in found],
            "text": [escape(e.message) for e in found],
            "hovertemplate": "step %{x}<br>%{text}<extra></extra>",
            "marker": {"color": color, "size": 11, "symbol": symbol},
        })
    last = log.rows[-1][0] if log.rows else max(e.step for e in log.events)
    names = [escape(titles.get(place, place)) for place in places]
    return {
        "label": f"{len(log.events)} events over {last} steps, in {len(places)} places: {', '.join(places[:6])}",
        "height": 150 + 42 * len(places),
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "step"}, "range": [-0.02 * last, 1.02 * max(last, 1)]},
            "yaxis": {
                "tickvals": list(range(len(places))),
                "ticktext": names,
                "range": [len(places) - 0.5, -0.5],
                "zeroline": False,
            },
            "showlegend": True,
        },
    }


def run_events_figure(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The timeline of the entry ``run`` of an audit.

    Args:
        run: from `gaugefix.audit.Audit.to_dict`; None without a log.

    Returns:
        As `events_figure`.
    """
    if run is None:
        return None
    events = [
        Event(**{**e, "value": float("nan") if e["value"] is None else e["value"], "units": tuple(e["units"])})
        for e in run["events"]
    ]
    classes = [{"name": name, "title": title} for name, title in run["titles"].items()]
    return events_figure(MonitorLog({"classes": classes}, [(run["steps"], {})], events))
