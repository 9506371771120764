"""Sinks write what they are given; the log reads it back, whole or cut short."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.monitor.models import batches, found, mlp, run, seeded

from gaugefix import Monitor
from gaugefix.errors import MeasurementError, ReportError
from gaugefix.monitor import (
    CsvSink,
    Event,
    JsonlSink,
    LiveSink,
    LogReader,
    MonitorLog,
    TensorBoardSink,
    TrackerSink,
    read_log,
)

EVENT = Event(4, "unit died", "0", 0.004, "unit 3 of 0 died; 7 of 8 are alive.", (3,))


def watched(*sinks: Any, every: int = 2, steps: int = 6) -> Monitor:
    """A short run in which a unit dies."""
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, found(model, 5), optimizer=optimizer, every=every, sinks=sinks)
    data = list(batches(steps, dtype=torch.float32))
    run(model, optimizer, monitor, data[:3])
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3], model[2].weight[:, 3] = 0, 0, 0  # type: ignore[index]
    run(model, optimizer, monitor, data[3:])
    return monitor


class TestJsonl:
    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        monitor = watched(JsonlSink(tmp_path / "new" / "run.jsonl"))
        advice = monitor.finish()
        log = read_log(tmp_path / "new" / "run.jsonl")
        assert [step for step, _ in log.rows] == [0, 2, 4]
        assert log.latest() == monitor.log.latest()
        assert log.events == list(monitor.events)
        assert log.events[0].units == (3,)
        assert log.advice == [a.to_dict() for a in advice]
        assert {k: v for k, v in log.run.items() if k not in {"type", "step", "skipped"}} == {
            k: v for k, v in monitor.log.run.items() if k != "skipped"
        }
        assert log.broken == 0

    def test_every_line_is_strict_json(self, tmp_path: Path) -> None:
        sink = JsonlSink(tmp_path / "run.jsonl")
        sink({"a": float("nan"), "b": float("inf"), "c": 1.0}, 3)

        def refuse(token: str) -> None:
            raise AssertionError(token)

        line = (tmp_path / "run.jsonl").read_text()
        assert json.loads(line, parse_constant=refuse) == {
            "type": "row", "step": 3, "values": {"a": None, "b": None, "c": 1.0},
        }  # fmt: skip

    def test_a_continued_run_replaces_what_it_repeats(self, tmp_path: Path) -> None:
        sink = JsonlSink(tmp_path / "run.jsonl")
        for start in (0, 2):
            sink.start({"step": start})
            for step in range(start, 5):
                sink({"from": float(start)}, step)
            sink.event(EVENT)
        log = read_log(tmp_path / "run.jsonl")
        assert [(step, row["from"]) for step, row in log.rows] == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 2)]
        assert log.events == [EVENT]

    def test_a_folder_that_cannot_be_made(self) -> None:
        with pytest.raises(ReportError, match="Choose another folder"):
            JsonlSink("/dev/null/run.jsonl")({"a": 1.0}, 0)


class TestLog:
    def test_a_growing_file_is_followed(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        JsonlSink(path)({"a": 1.0}, 0)
        reader = LogReader(path)
        line = json.dumps({"type": "row", "step": 1, "values": {"a": 2.0}}) + "\n"
        with path.open("a") as file:
            file.write(line[:20])
        assert [s for s, _ in reader.update().rows] == [0]
        with path.open("a") as file:
            file.write(line[20:])
        assert reader.update().series("a") == [(0, 1.0), (1, 2.0)]
        assert reader.log.broken == 0
        path.write_text(line)  # begun anew
        assert reader.update().series("a") == [(1, 2.0)]

    def test_broken_lines_are_counted_and_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        watched(JsonlSink(path))
        whole = read_log(path)
        lines = path.read_bytes().splitlines(keepends=True)
        rubbish = [b"\xff\xfe\n", b"[1]\n", b'{"type": "row"}\n', b"null\n", b'{"type": "event", "step": 1}\n', b"\n"]
        path.write_bytes(b"".join([*rubbish, *lines, b'{"type": "row", "st']))
        log = read_log(path)
        assert log.rows == whole.rows
        assert log.events == whole.events
        assert log.broken == 5

    def test_unknown_types_and_keys_are_for_later_versions(self) -> None:
        log = MonitorLog()
        log.feed(['{"type": "weather", "sun": 1}', '{"type": "row", "step": 0, "values": {"a": 1}, "more": 2}'])
        assert log.broken == 0
        assert log.rows == [(0, {"a": 1})]

    @given(st.lists(st.text(max_size=30), max_size=10))
    def test_no_text_breaks_the_reader(self, lines: list[str]) -> None:
        MonitorLog().feed(lines)

    @pytest.mark.parametrize("content", [None, "", "hello\nworld\n"])
    def test_what_is_no_log(self, tmp_path: Path, content: str | None) -> None:
        path = tmp_path / "run.jsonl"
        if content is not None:
            path.write_text(content)
        with pytest.raises(MeasurementError, match=r"JsonlSink\(path\)"):
            read_log(path)


class TestCsv:
    def test_columns_grow_and_files_continue(self, tmp_path: Path) -> None:
        path = tmp_path / "run.csv"
        CsvSink(path)({"a": 1.0}, 0)
        sink = CsvSink(path)  # after a restart
        sink({"a": 2.0, "b,c": 0.5}, 1)
        sink({"b,c": 1.5}, 2)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [
            {"step": "0", "a": "1.0", "b,c": ""},
            {"step": "1", "a": "2.0", "b,c": "0.5"},
            {"step": "2", "a": "", "b,c": "1.5"},
        ]


class TestTensorBoard:
    def test_scalars_and_events_arrive(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sink = TensorBoardSink(tmp_path)
        watched(sink).finish()
        sink.writer.close()
        seen = EventAccumulator(str(tmp_path))
        seen.Reload()
        live = [(e.step, e.value) for e in seen.Scalars("0/live")]
        assert live == [(0, 8), (2, 8), (4, 7)]
        assert "event/unit died/text_summary" in seen.Tags()["tensors"]

    def test_a_writer_of_the_user(self) -> None:
        class Writer:
            scalars: list[tuple[str, float, int]] = []  # noqa: RUF012

            def add_scalar(self, key: str, value: float, step: int) -> None:
                self.scalars.append((key, value, step))

        TensorBoardSink(Writer())({"a": 1.0, "b": float("nan")}, 7)
        assert Writer.scalars == [("a", 1.0, 7)]


class TestTrackers:
    def test_wandb_like_and_mlflow_like(self) -> None:
        got: list[Any] = []

        class Wandb:
            def log(self, values: dict[str, float], step: int | None = None) -> None:
                got.append(("log", values, step))

        class Mlflow:
            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
                got.append(("log_metrics", metrics, step))

            def log(self, *args: object) -> None:
                raise AssertionError("log_metrics is the better one")

        for tracker in (Wandb(), Mlflow()):
            TrackerSink(tracker, prefix="g/")({"a": 1.0, "b": float("nan")}, 3)
        assert got == [("log", {"g/a": 1.0}, 3), ("log_metrics", {"g/a": 1.0}, 3)]

    def test_an_object_without_a_log(self) -> None:
        with pytest.raises(ReportError, match="int has neither"):
            TrackerSink(3)


def test_a_function_is_a_sink_and_hears_no_events() -> None:
    rows: list[int] = []
    watched(lambda row, step: rows.append(step)).finish()
    assert rows == [0, 2, 4]


def test_the_live_view_follows_and_stays(tmp_path: Path) -> None:
    screen = io.StringIO()
    sink = LiveSink(Console(file=screen, width=100))
    watched(sink).finish()
    assert "7/8" in screen.getvalue()
    assert "unit 3 of 0 died" in screen.getvalue()
    assert "Summary" in screen.getvalue()


def test_no_tracker_is_imported() -> None:
    import subprocess

    code = (
        "import sys, gaugefix.monitor as m, torch; m.Monitor(torch.nn.Linear(2, 2), sinks=[m.JsonlSink('x')]);"
        "print([n for n in ('lightning', 'transformers', 'accelerate', 'tensorboard', 'wandb', 'mlflow')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
