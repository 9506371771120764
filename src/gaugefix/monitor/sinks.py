"""Where rows and events go. A sink is any ``callable(row, step)``; with a method ``event`` it hears of events too.

Two more methods are called where they exist: ``start(run)`` before the first row with a description of the run, and
``finish(summary)`` at the end. Nothing is imported and no file is opened before the first row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaugefix.errors import ReportError
from gaugefix.files import write_atomically
from gaugefix.measure.records import plain
from gaugefix.monitor.events import Event
from gaugefix.monitor.log import MonitorLog

Row = dict[str, float]
Sink = Callable[[Row, int], None]


class JsonlSink:
    """One JSON object a line: see `gaugefix.monitor.log` for the layout; ``gaugefix watch`` reads it.

    Every line is written at once, so that a reader of a running or killed process sees whole lines. A file that is
    there is continued, as after a restart from a checkpoint.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def start(self, run: Mapping[str, Any]) -> None:
        """Write what the run is about."""
        self._write({"type": "run", **run})

    def __call__(self, row: Row, step: int) -> None:
        """Write a row."""
        self._write({"type": "row", "step": step, "values": row})

    def event(self, event: Event) -> None:
        """Write an event."""
        self._write({"type": "event", **event.to_dict()})

    def finish(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Write the summary."""
        self._write({"type": "summary", "advice": list(summary)})

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(dict(record)), allow_nan=False, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ReportError(f"Cannot write {self.path}: {error.strerror or error}. Choose another folder.") from error


class CsvSink:
    """One line a row, one column a number; what a row does not have is empty. Events are left out.

    Args:
        path: the file; continued if it is there. When a new number appears the file is rewritten with its column.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._columns: list[str] = []

    def __call__(self, row: Row, step: int) -> None:
        """Write a row."""
        if not self._columns and self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                self._columns = next(csv.reader(file), [])
        new = [key for key in ("step", *row) if key not in self._columns]
        if new:
            self._widen([*self._columns, *new])
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                self._writer(file).writerow({"step": step, **row})
        except OSError as error:
            raise ReportError(f"Cannot write {self.path}: {error.strerror or error}. Choose another folder.") from error

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")

    def _widen(self, columns: list[str]) -> None:
        rows = []
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        self._columns = columns
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())


class TensorBoardSink:
    """Scalars and event texts for TensorBoard.

    Args:
        where: a folder, or a ``SummaryWriter`` of your own.
    """

    def __init__(self, where: Any) -> None:
        self._folder = where if isinstance(where, str | Path) else None
        self._writer = None if self._folder is not None else where

    @property
    def writer(self) -> Any:
        """The ``SummaryWriter``, made when it is first needed."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        return self._writer

    def __call__(self, row: Row, step: int) -> None:
        """Write every number that is finite."""
        for key, value in row.items():
            if math.isfinite(value):
                self.writer.add_scalar(key, value, step)

    def event(self, event: Event) -> None:
        """Write a text."""
        self.writer.add_text(f"event/{event.kind}", event.message, event.step)

    def finish(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Write the summary and flush."""
        for advice in summary:
            text = f"**{advice['finding']}** {advice['evidence']} {advice['action']}"
            self.writer.add_text("summary", text)
        self.writer.flush()


class TrackerSink:
    """A run of W&B, MLflow, a Lightning logger, an Accelerator: anything with ``log_metrics`` or ``log``.

    Args:
        tracker: its ``log_metrics(values, step=…)`` or ``log(values, step=…)`` gets every row.
        prefix: put before every key.

    Raises:
        ReportError: if it has neither.

    Example:
        >>> class Run:
        ...     def log(self, values, step): print(step, values)
        >>> TrackerSink(Run(), prefix="gauge/")({"0/live": 64.0}, 100)
        100 {'gauge/0/live': 64.0}
    """

    def __init__(self, tracker: Any, *, prefix: str = "") -> None:
        log = getattr(tracker, "log_metrics", None) or getattr(tracker, "log", None)
        if not callable(log):
            raise ReportError(
                f"TrackerSink: {type(tracker).__name__} has neither log_metrics(values, step=) nor log(values, step=). "
                "Pass a function of (row, step) as the sink instead."
            )
        self._log, self._prefix = log, prefix

    def __call__(self, row: Row, step: int) -> None:
        """Pass a row on; numbers that are not finite are left out, some trackers refuse them."""
        self._log({f"{self._prefix}{k}": v for k, v in row.items() if math.isfinite(v)}, step=step)


class LiveSink:
    """A table in the terminal that follows the run.

    Args:
        console: a rich console; by default standard error.
    """

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._live: Any = None
        self._log = MonitorLog()

    def start(self, run: Mapping[str, Any]) -> None:
        """Remember what the run is about."""
        self._log.run = dict(run)

    def __call__(self, row: Row, step: int) -> None:
        """Show a row."""
        self._log.add_row(step, row)
        self._show()

    def event(self, event: Event) -> None:
        """Show an event."""
        self._log.events.append(event)

    def finish(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Show the summary and leave it on the screen."""
        self._log.advice = [dict(a) for a in summary]
        self._show()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live

        from gaugefix.report.run_console import run_view

        if self._live is None:
            console = self._console or Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
            self._live.start()
        self._live.update(run_view(self._log), refresh=True)
