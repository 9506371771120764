"""What a monitor saw during training, for the report of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gaugefix.errors import MeasurementError
from gaugefix.measure import Record
from gaugefix.monitor import Event, read_log


@dataclass(frozen=True)
class RunEvents(Record):
    """The events of a run.

    Attributes:
        log: name of the file.
        steps: the last step of the log.
        titles: of the classes of units, by the names that events use.
        events: in the order of the run.
        broken: lines of the log that could not be read.
    """

    log: str
    steps: int
    titles: dict[str, str]
    events: tuple[Event, ...]
    broken: int


def read_events(path: str | Path) -> RunEvents:
    """The events of a monitor log.

    Args:
        path: JSONL file that `gaugefix.monitor.JsonlSink` writes.

    Returns:
        The events.

    Raises:
        MeasurementError: if there is no such file, it is no log, or it has neither a step nor an event.
    """
    log = read_log(path)
    steps = [step for step, _ in log.rows] + [e.step for e in log.events]
    if not steps:
        raise MeasurementError(
            f"{path} is the log of a monitor but has no step yet. Give the log of a run that has taken at least one "
            "logging step, or audit without a log."
        )
    titles = {str(c["name"]): str(c.get("title", c["name"])) for c in log.run.get("classes", ())}
    return RunEvents(Path(path).name, max(steps), titles, tuple(log.events), log.broken)
