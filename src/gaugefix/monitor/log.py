"""The log of a run as data: read from a JSONL file, or kept by a live view.

Layout of the file, one JSON object a line, numbers that are not finite are null:

=============  =========================================================================================================
``type``       other keys
=============  =========================================================================================================
``run``        ``schema_version``, ``gaugefix`` (version), ``step`` (the first one that follows), ``every``, ``dear``,
               ``level``, ``parameters``, ``charges`` (names), ``skipped``, ``classes`` (list of ``name``, ``title``,
               ``units``, ``kind``, ``activation``)
``row``        ``step``, ``values``: number by key
``event``      ``step``, ``kind``, ``where``, ``value``, ``message``, ``units``
``summary``    ``advice``: list of ``severity``, ``where``, ``finding``, ``evidence``, ``action``
=============  =========================================================================================================

A second ``run`` line means that the run was continued: what came before at its ``step`` or later does not count.
Readers ignore types and keys that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaugefix.errors import MeasurementError
from gaugefix.monitor.events import Event

#: version of the layout; the major number grows when a reader has to change
LOG_VERSION = "1.0"


@dataclass
class MonitorLog:
    """Everything that is known of a run.

    Attributes:
        run: the last ``run`` line.
        rows: ``(step, values)`` in the order of the file.
        events: in the order of the file.
        advice: of the summary, if the run has ended.
        broken: lines that could not be read, a last one without its end not counted.
    """

    run: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[int, dict[str, float | None]]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    advice: list[dict[str, Any]] | None = None
    broken: int = 0

    def add_row(self, step: int, values: dict[str, Any]) -> None:
        """Append a row; rows that a restart repeats take the place of the old ones."""
        while self.rows and self.rows[-1][0] >= step:
            self.rows.pop()
        self.rows.append((step, values))

    def latest(self) -> dict[str, float | None]:
        """The newest value of every number that was ever logged; dear ones are older than cheap ones."""
        out: dict[str, float | None] = {}
        for _, values in self.rows:
            out |= values
        return out

    def series(self, key: str) -> list[tuple[int, float]]:
        """Steps and values of one number, where it was logged and finite."""
        return [(step, value) for step, values in self.rows if (value := values.get(key)) is not None]

    def feed(self, lines: Iterable[str]) -> None:
        """Take in lines of a file; what is not a line of a log is counted as broken.

        Args:
            lines: whole lines.
        """
        for line in lines:
            if not line.strip():
                continue
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                self.broken += 1

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["type"]
        if kind == "run":
            self.run, self.advice = record, None
            start = int(record.get("step", 0))  # a restart from a checkpoint goes through some steps again
            self.rows = [row for row in self.rows if row[0] < start]
            self.events = [e for e in self.events if e.step < start]
        elif kind == "row":
            self.add_row(int(record["step"]), dict(record["values"]))
        elif kind == "event":
            value = record["value"]
            self.events.append(
                Event(
                    int(record["step"]), record["kind"], str(record["where"]),
                    float("nan") if value is None else float(value), str(record["message"]),
                    tuple(int(u) for u in record.get("units", ())),
                )
            )  # fmt: skip
        elif kind == "summary":
            self.advice = [dict(a) for a in record["advice"]]

    @property
    def empty(self) -> bool:
        """Whether nothing was understood."""
        return not (self.run or self.rows or self.events or self.advice)


class LogReader:
    """Follows a JSONL file that is being written: every call takes in the lines that were added.

    Args:
        path: the file.

    Raises:
        MeasurementError: if it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.log = MonitorLog()
        self._offset, self._rest = 0, b""
        self._read()

    def update(self) -> MonitorLog:
        """Read what is new; a line without its end waits for the next call. A file that shrank is read anew."""
        self._read()
        return self.log

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self.log, self._offset, self._rest = MonitorLog(), 0, b""
                file.seek(self._offset)
                data = self._rest + file.read()
                self._offset = file.tell()
        except OSError as error:
            raise MeasurementError(
                f"Cannot read {self.path}: {error.strerror or error}. A log is written by "
                "gaugefix.monitor.JsonlSink(path), given to Monitor(sinks=[…])."
            ) from error
        *lines, self._rest = data.split(b"\n")
        self.log.feed(line.decode("utf-8", errors="replace") for line in lines)


def read_log(path: str | Path) -> MonitorLog:
    """Read the log of a run.

    Args:
        path: a file that `JsonlSink` writes; it may still grow, and lines that a crash cut short are passed over.

    Returns:
        The log.

    Raises:
        MeasurementError: if there is no such file, or no line of it belongs to a log.
    """
    log = LogReader(path).log
    if log.empty:
        raise MeasurementError(
            f"{path} is not the log of a monitor: none of its {log.broken} complete lines could be read. "
            "A log is written by gaugefix.monitor.JsonlSink(path)."
        )
    return log
