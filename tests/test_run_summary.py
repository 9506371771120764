"""The summary of a run, each diagnosis from a log made by hand and from a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.monitor.models import batches, found, mlp, run, seeded

from gaugefix import Monitor
from gaugefix.monitor import Event, MonitorLog
from gaugefix.run_summary import summarize


def event(kind: Any, value: float = 1.0, step: int = 100, where: str = "0") -> Event:
    return Event(step, kind, where, value, f"QK {kind}.")


def log(first: dict[str, float], last: dict[str, float], *events: Event) -> MonitorLog:
    run = {"classes": [{"name": "0", "title": "0", "units": 8}]}
    return MonitorLog(run, [(0, dict(first)), (100, dict(last))], list(events))


@pytest.mark.parametrize(
    ("made", "severity", "finding"),
    [
        (log({"0/live": 8}, {"0/live": 6}, event("unit died")), "watch", "2 of 8 units of 0 died during the run."),
        (log({"0/live": 6}, {"0/live": 6}), "watch", "2 of 8 units of 0 were dead from the start."),
        (log({"0/live": 8}, {"0/live": 0}, event("unit died")), "act", "Layer 0 has collapsed: all 8 units died."),
        (
            log({"0/distinct": 8}, {"0/distinct": 5, "0/duplicates": 3}, event("mirror restored")),
            "watch",
            "3 live units of 0 add nothing: copies of others.",
        ),
        (log({"0/live": 8}, {"0/live": 8}, event("rank fell", 5.0)), "watch", "0 lost rank."),
        (log({}, {}, event("charge law violated")), "watch", "The law of the balance did not hold for 0."),
        (log({}, {}, event("not finite")), "act", "Gradients or weights are not finite."),
        (
            log({}, {}, event("not finite"), event("finite again")),
            "info",
            "Gradients or weights were not finite for some steps.",
        ),
        (log({}, {}, event("balance reached")), "info", "0 reached balance."),
        (log({}, {}, event("parameters changed")), "watch", "The model got other parameters during the run."),
    ],
)
def test_diagnoses(made: MonitorLog, severity: str, finding: str) -> None:
    (advice,) = summarize(made)
    assert (advice.severity, advice.finding) == (severity, finding)
    assert "100" in advice.evidence or "Live units" in advice.evidence
    assert advice.action.endswith(".")


def test_balance_that_was_lost_again_is_no_news() -> None:
    assert summarize(log({}, {}, event("balance reached"), event("balance lost"))) == ()


def test_names_keep_their_capitals() -> None:
    (advice,) = summarize(log({"0/live": 8}, {"0/live": 8}, event("rank fell")))
    assert "QK rank fell" in advice.evidence


def test_the_most_urgent_first() -> None:
    made = log({"0/live": 8}, {"0/live": 6}, event("balance reached"), event("not finite"), event("unit died"))
    assert [a.severity for a in summarize(made)] == ["act", "watch", "info"]


def test_an_empty_log_has_nothing_to_say() -> None:
    assert summarize(MonitorLog()) == ()


def test_a_real_run() -> None:
    model = seeded(lambda: mlp((5, 16, 3))).double()
    with torch.no_grad():
        model[2].weight *= 5  # type: ignore[index, operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.08)
    monitor = Monitor(model, found(model, 5), optimizer=optimizer, every=20)
    run(model, optimizer, monitor, list(batches(1, (96, 5))) * 300)
    advice = monitor.finish()
    latest = monitor.log.latest()
    copies = latest["0/duplicates"]
    assert advice == monitor.summary()
    assert copies is not None
    assert copies > 1
    assert advice[0].finding == f"{copies:.0f} live units of 0 add nothing: copies of others."
    assert advice[1].finding == "0 reached balance."
