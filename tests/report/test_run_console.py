"""A run in the terminal and as a timeline: complete, escaped, sensible for empty and for hostile logs."""

from __future__ import annotations

import io
import json

import plotly.graph_objects as go
import pytest
from rich.console import Console

from gaugefix.monitor import Event, MonitorLog
from gaugefix.report import events_figure, run_view
from gaugefix.report.run_console import sparkline

HOSTILE = "<script>alert(1)</script>[red]"


def shown(log: MonitorLog, width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(run_view(log))
    return screen.getvalue()


def hostile() -> MonitorLog:
    run = {"parameters": 51, "classes": [{"name": HOSTILE, "title": HOSTILE, "units": 8}], "skipped": [HOSTILE]}
    rows = [(s, {"loss": 2.0 / (s + 1), f"{HOSTILE}/live": 8.0 - s / 100, f"{HOSTILE}/rank": None}) for s in (0, 100)]
    event = Event(100, "unit died", HOSTILE, 0.001, f"unit 3 of {HOSTILE} died.", (3,))
    return MonitorLog(run, rows, [event])  # type: ignore[arg-type]


def test_everything_is_shown() -> None:
    text = shown(hostile(), 120)
    for part in ("51", "7/8", "unit died", "alert(1)", "[red]", "Not watched", "█▁"):
        assert part in text
    assert "Summary" not in text


def test_an_empty_log_is_shown_too() -> None:
    assert "step" in shown(MonitorLog())


def test_it_fits_into_80_columns() -> None:
    assert max(len(line) for line in shown(hostile()).splitlines()) <= 80


def test_the_worst_layers_first_and_not_too_many() -> None:
    names = [f"layer{i}" for i in range(40)]
    run = {"classes": [{"name": n, "title": n, "units": 64} for n in names]}
    log = MonitorLog(run, [(0, {f"{n}/live": 64.0 - i for i, n in enumerate(names)})])
    text = shown(log)
    assert text.index("layer39") < text.index("layer38")
    assert "16 more" in text
    assert "layer0 " not in text


def test_a_finished_run_ends_with_its_summary() -> None:
    log = hostile()
    log.advice = [{"severity": "watch", "finding": "F.", "evidence": "E.", "action": "A."}]
    text = shown(log)
    assert "finished" in text
    assert text.index("F.") < text.index("E.") < text.index("→ A.")
    log.advice = []
    assert "Nothing to do" in shown(log)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [0.0, -1.0, 3.0], list(range(1, 200))])
def test_sparklines(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == (min(len(values), 32) if len(values) > 1 else 0)


class TestTimeline:
    def test_it_is_a_plotly_figure(self) -> None:
        log = hostile()
        log.events.append(Event(40, "balance reached", "network", 0.04, "balanced", ()))
        figure = events_figure(log)
        assert figure is not None
        go.Figure({"data": [{**t, "marker": {"symbol": t["marker"]["symbol"]}} for t in figure["data"]],
                   "layout": figure["layout"]})  # fmt: skip
        assert [t["x"] for t in figure["data"]] == [[100], [40]]
        assert [t["y"] for t in figure["data"]] == [[0], [1]]
        assert figure["height"] > 150

    def test_names_are_escaped(self) -> None:
        figure = events_figure(hostile())
        assert figure is not None
        assert "<script>" not in json.dumps({k: figure[k] for k in ("data", "layout")})

    def test_every_kind_has_a_mark_of_its_own(self) -> None:
        from typing import get_args

        from gaugefix.monitor.events import Kind
        from gaugefix.report.run_figures import _MARKS

        assert set(_MARKS) == set(get_args(Kind))
        assert len({symbol for symbol, _ in _MARKS.values()}) == len(_MARKS)

    def test_nothing_happened(self) -> None:
        assert events_figure(MonitorLog()) is None
