"""The harness: figures are what the clock of the process says, files say where they were measured."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder of the benchmarks is not installed

from benchmarks.__main__ import main
from benchmarks.harness import ROOT, Row, compare, fresh_process, kept_rows, missing, save


def test_every_function_is_called_in_turns_and_warmed_up() -> None:
    calls: list[str] = []
    times = compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert all(0 <= seconds < 1 for seconds in times.values())


def test_waiting_is_not_work() -> None:
    assert compare({"sleep": lambda: time.sleep(0.05)}, repeats=1)["sleep"] < 0.05


def test_a_fresh_process_is_measured_alone() -> None:
    run = fresh_process("print('hello'); x = bytearray(200_000_000)")
    assert run.output == "hello\n"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts what was there before the exec
    assert 200 < run.peak < max(400, 1.1 * own)
    assert run.cpu > 0
    with pytest.raises(RuntimeError, match="ended with 3"):
        fresh_process("raise SystemExit(3)")


def test_absent_peers_are_named() -> None:
    assert missing("json", "torch") == ""
    assert missing("json", "no_such_peer", "nor_this_one") == "not installed: no_such_peer, nor_this_one"


def test_results_say_where_they_were_measured(tmp_path: Path) -> None:
    written = save("one", [Row("fast", 1.0, "s", target=2.0), Row("slow", 3.0, "s", target=2.0)], tmp_path)
    data = json.loads(written.read_text())
    assert {"python", "torch", "cores", "threads", "date", "processor"} <= data["environment"].keys()
    assert [row["met"] for row in data["rows"]] == [True, False]


def test_an_unknown_name_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "import_time" in capsys.readouterr().err


def test_every_committed_result_belongs_to_a_script() -> None:
    results = ROOT / "benchmarks" / "results"
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert {path.stem for path in results.glob("*.json")} <= scripts


def test_a_part_that_is_done_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.CELLS", tmp_path)
    calls: list[int] = []

    def measure() -> list[Row]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return [Row("ü", 1.5, "×", 2.0, 3, "note")]

    with pytest.raises(KeyboardInterrupt):
        kept_rows("script", "part", measure)
    first = kept_rows("script", "part", measure)
    assert kept_rows("script", "part", measure) == first
    assert len(calls) == 2
    assert first[0].met is True
