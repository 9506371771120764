"""An audit as tables for a terminal; the last thing printed is what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gaugefix.report.format import facts, number
from gaugefix.report.units import STATES, unit_states

_STYLE = {"act": "bold red", "watch": "bold yellow", "info": "bold cyan"}
_MARK = {"alive": "green", "fading": "yellow", "copy": "blue", "dead": "red"}


def console_report(data: Mapping[str, Any]) -> RenderableType:
    """The whole report.

    Args:
        data: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        Something rich can print; it fits into 80 columns. Names from the model are never read as markup.
    """
    parts = [
        _headline(data),
        *_symmetries(data),
        *_layers(data),
        *_forecast(data),
        *_stability(data),
        *_gaps(data),
        *_advice(data),
    ]
    return Group(*(Padding(p, (0, 0, 1, 0)) for p in parts))


def _headline(data: Mapping[str, Any]) -> RenderableType:
    text = Text(f"Audit of {data['task']['name']}", style="bold")
    for label, value in facts(data["task"]):
        text.append(f"\n  {label:<16}", style="dim").append(value, style="not bold")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _titled(title: str, body: RenderableType, note: str = "") -> RenderableType:
    """A table under its title; rich would wrap a title to the width of the table."""
    return Group(Text(title, style="bold"), body, *([Text(f" {note}", style="dim")] if note else []))


def _symmetries(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    found = data["symmetries"]
    if not found["symmetries"]:
        return
    table = _table("where", "group", "error")
    table.columns[1].justify = "left"
    for s in found["symmetries"]:
        table.add_row(Text(s["name"]), Text(s["group"]), "-" if s["error"] is None else f"{s['error']:.0e}")
    note = f"{found['flat_dim']} flat directions of {found['n_parameters']:,} parameters"
    if measured := data["extra"].get("flat_directions"):
        note += f"; counted without knowing them: {measured['flat']}"
    yield _titled("Symmetries: changes of the weights that leave the function as it is", table, note)


def _layers(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not data["collapse"]:
        return
    classes = {c["name"]: c for c in (data["forecast"] or {"classes": ()})["classes"]}
    table = _table("layer", "units", *STATES, "eff. rank", "")
    for unit in data["collapse"]["units"]:
        states = [u.state for u in unit_states(unit, classes.get(unit["name"]))]
        counts = [states.count(s) for s in STATES]
        cells = [Text(str(c), style=_MARK[s] if c else "dim") for s, c in zip(STATES, counts, strict=True)]
        bar = Text()
        for state, count in zip(STATES, counts, strict=True):
            bar.append("■" * round(12 * count / max(len(states), 1)), style=_MARK[state])
        table.add_row(Text(unit["name"]), str(len(states)), *cells, number(unit["effective_rank"]), bar)
    yield _titled("Units: what training has done to them", table)


def _forecast(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not data["forecast"]:
        return
    decay = number(data["forecast"]["weight_decay"])
    table = _table("layer", "κ", "κ/λ", "λ_c", "residual", "verdict")
    table.columns[-1].justify = "left"
    for c in data["forecast"]["classes"]:
        cells = (number(c[k]) for k in ("kappa", "headroom", "critical_weight_decay", "residual"))
        table.add_row(Text(c["name"]), *cells, Text(c["verdict"]))
    note = "κ: decay that stops a new unit.  λ_c: above it a dead layer stays dead."
    if len(data["forecast"]["classes"]) > 1:
        note += "\n With several hidden layers training dies well below λ_c, all layers at once."
    yield _titled(f"Forecast at weight decay λ = {decay}", table, note)


def _stability(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    mirrors = ((data["full"] or {}).get("lyapunov") or {"mirrors": ()})["mirrors"]
    if not mirrors:
        return
    table = _table("nearest mirror planes", "distance", "Λ per step", "± s.e.", "verdict")
    table.columns[-1].justify = "left"
    for m in mirrors:
        cells = (number(m["distance"]), number(m["value"]), number(m["stderr"], 2))
        table.add_row(Text(m["name"]), *cells, Text(m["verdict"]))
    yield _titled("Stability under noise", table, "Λ < 0: SGD falls onto the plane.")


def _gaps(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    for title, lines in (("Not measured", data["skipped"]), ("Read with care", data["notes"])):
        if lines:
            text = Text(title, style="bold")
            for line in lines:
                text.append(f"\n  {line}", style="not bold dim")
            yield text


def _advice(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    grid = Table(title="What to do next", title_justify="left", title_style="bold", box=None, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for a in data["advice"]:
        text = Text(a["finding"], style="bold")
        text.append(f"\n{a['evidence']}", style="not bold dim").append(f"\n→ {a['action']}", style="not bold")
        grid.add_row(Text(a["severity"], style=_STYLE[a["severity"]]), text)
    if not data["advice"]:
        grid.add_row(Text("ok", style="bold green"), Text("Nothing to do: every unit does work of its own."))
    yield grid
