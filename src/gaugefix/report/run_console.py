"""The state of a run as tables for a terminal: what `gaugefix watch` and the live sink show."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gaugefix.monitor import LogReader, MonitorLog, read_log
from gaugefix.monitor.events import BAD
from gaugefix.report.format import number

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLE = {"act": "bold red", "watch": "bold yellow", "info": "bold cyan"}


def run_view(log: MonitorLog, *, classes: int = 24, events: int = 8) -> RenderableType:
    """What is known of a run now.

    Args:
        log: from `gaugefix.monitor.read_log` or a live monitor.
        classes: show at most so many, those with the fewest live units first.
        events: show at most so many, the latest.

    Returns:
        Something rich can print; names from the model are never read as markup.
    """
    parts = [_headline(log), *_classes(log, classes), *_events(log, events), *_skipped(log), *_advice(log)]
    return Group(*(Padding(p, (0, 0, 1, 0)) for p in parts))


def run_state(log: MonitorLog) -> dict[str, Any]:
    """The same as plain data: the run, its latest numbers, its events, and what they mean so far.

    Args:
        log: of the run.

    Returns:
        ``{"run", "step", "finished", "values", "events", "advice", "broken"}``.
    """
    from gaugefix.run_summary import summarize

    return {
        "run": {k: v for k, v in log.run.items() if k != "type"},
        "step": log.rows[-1][0] if log.rows else None,
        "finished": log.advice is not None,
        "values": log.latest(),
        "events": [e.to_dict() for e in log.events],
        "advice": log.advice if log.advice is not None else [a.to_dict() for a in summarize(log)],
        "broken": log.broken,
    }


def follow_run(path: str | Path, *, seconds: float, console: Console) -> MonitorLog:
    """Show a run until it ends or the user leaves with Ctrl-C.

    Args:
        path: of its log.
        seconds: between two looks at the file.
        console: where to show it.

    Returns:
        The log as it was last seen.

    Raises:
        MeasurementError: if there is no log at this path.
    """  # noqa: DOC502
    read_log(path)  # says what is wrong with it
    reader = LogReader(path)
    with Live(run_view(reader.log), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        with contextlib.suppress(KeyboardInterrupt):
            while reader.update().advice is None:
                live.update(run_view(reader.log), refresh=True)
                time.sleep(seconds)
        live.update(run_view(reader.log), refresh=True)
    return reader.log


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """A curve of block characters, on a logarithmic scale where all values are positive.

    Args:
        values: finite numbers.
        width: characters; more values than that are thinned out.

    Returns:
        Text; empty for fewer than two values.

    Example:
        >>> sparkline([1, 10, 100])
        '▁▅█'
    """
    if len(values) < 2:
        return ""
    kept = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)] if len(values) > width else values
    shown = [math.log(v) for v in kept] if min(kept) > 0 else list(kept)
    low, high = min(shown), max(shown)
    return "".join(_BLOCKS[math.floor((v - low) / (high - low) * 7 + 0.5) if high > low else 0] for v in shown)


def _headline(log: MonitorLog) -> RenderableType:
    text = Text("Run", style="bold")
    step = log.rows[-1][0] if log.rows else 0
    facts = [("step", f"{step:,}" + (", finished" if log.advice is not None else ""))]
    if log.run.get("parameters"):
        facts.append(("parameters", f"{log.run['parameters']:,}"))
    for label, key in (("loss", "loss"), ("weights", "weights/norm"), ("gradients", "gradients/norm")):
        series = [v for _, v in log.series(key)]
        if series:
            facts.append((label, f"{number(series[-1]):<10} {sparkline(series)}"))
    for label, value in facts:
        text.append(f"\n  {label:<12}", style="dim").append(value, style="not bold")
    if log.broken:
        text.append(f"\n  {log.broken} lines of the log could not be read", style="dim")
    return text


def _classes(log: MonitorLog, most: int) -> Iterator[RenderableType]:
    latest = log.latest()
    known = log.run.get("classes") or [
        {"name": k.removesuffix("/live"), "title": k.removesuffix("/live"), "units": int(v or 0)}
        for k, v in latest.items()
        if k.endswith("/live") and k != "units/live"
    ]
    rows: list[tuple[float, list[Any]]] = []
    for c in known:
        live = latest.get(f"{c['name']}/live")
        if live is None:
            continue
        share = live / max(int(c["units"]), 1)
        bar = Text("■" * round(10 * share), style="green").append("■" * (10 - round(10 * share)), style="red")
        numbers = [
            number(latest.get(f"{c['name']}/{key}"))
            for key in ("effective_units", "distinct", "rank", "imbalance", "mirror_distance")
        ]
        rows.append((share, [Text(str(c["title"])), f"{live:.0f}/{c['units']}", bar, *numbers]))
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(("layer", "live", "", "effective", "distinct", "rank", "imbalance", "mirror")):
        table.add_column(column, justify="left" if i in {0, 2} else "right", overflow="fold")
    rows.sort(key=lambda row: row[0])
    for _, cells in rows[:most]:
        table.add_row(*cells)
    more = [Text(f" and {len(rows) - most} more, with more live units", style="dim")] if len(rows) > most else []
    yield Group(Text("Units", style="bold"), table, *more)


def _events(log: MonitorLog, most: int) -> Iterator[RenderableType]:
    if not log.events:
        return
    text = Text(f"Events ({len(log.events)})", style="bold")
    for event in log.events[-most:]:
        style = "yellow" if event.kind in BAD else "cyan"
        text.append(f"\n  {event.step:>8,}  ", style="not bold dim").append(
            f"{event.kind}  ", style=f"not bold {style}"
        )
        text.append(event.message, style="not bold")
    yield text


def _skipped(log: MonitorLog) -> Iterator[RenderableType]:
    lines = log.run.get("skipped") or []
    if lines:
        text = Text("Not watched", style="bold")
        for line in lines:
            text.append(f"\n  {line}", style="not bold dim")
        yield text


def _advice(log: MonitorLog) -> Iterator[RenderableType]:
    if log.advice is None:
        return
    text = Text("Summary", style="bold")
    for a in log.advice:
        text.append(f"\n  {a['severity']:<6}", style=_STYLE.get(a["severity"], "bold")).append(f"{a['finding']}")
        text.append(f"\n        {a['evidence']}", style="not bold dim").append(f"\n        → {a['action']}", "not bold")
    if not log.advice:
        text.append("\n  Nothing to do: every unit that started alive is alive.", style="not bold")
    yield text
