"""Grids of runs: order, resumption after a kill, failures, and the three ways to run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaugefix.errors import ReportError, SweepError
from gaugefix.sweep import sweep

GRID = {"lr": [0.1, 0.2], "width": [3, 5, 7]}


def run(lr: float, width: int, seed: int) -> dict[str, Any]:
    return {"loss": lr * width + 100 * seed, "curve": np.arange(2) + width}


def run_all(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lr, width, seed = (np.array([c[k] for c in cells]) for k in ("lr", "width", "seed"))
    return [{"loss": value} for value in lr * width + 100 * seed]


def expected(seeds: list[int]) -> np.ndarray:
    lr, width, seed = np.meshgrid(GRID["lr"], GRID["width"], seeds, indexing="ij")
    return lr * width + 100 * seed


def test_results_lie_on_the_grid() -> None:
    found = sweep(run, GRID, seeds=[0, 4])
    assert found.axes == {"lr": (0.1, 0.2), "width": (3, 5, 7), "seed": (0, 4)}
    assert np.array_equal(found.array("loss"), expected([0, 4]))
    assert found.array("curve").shape == (2, 3, 2, 2)


def test_joblib_gives_the_same() -> None:
    def local(lr: float, width: int, seed: int) -> dict[str, Any]:  # a worker cannot import this file
        return {"loss": lr * width + 100 * seed}

    found = sweep(local, GRID, seeds=[1], backend="joblib", jobs=2)
    assert np.array_equal(found.array("loss"), expected([1]))


def test_a_batched_run_gets_all_cells_at_once(tmp_path: Path) -> None:
    first = sweep(run_all, GRID, seeds=[1], backend="batched", out=tmp_path)
    assert np.array_equal(first.array("loss"), expected([1]))
    more = sweep(run_all, GRID, seeds=[1, 2], backend="batched", out=tmp_path)
    assert more.reused == 6
    assert np.array_equal(more.array("loss"), expected([1, 2]))


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(x: int, seed: int) -> dict[str, Any]:
        calls.append(x)
        return {"y": x}

    sweep(counted, {"x": [1, 2]}, seeds=[0], out=tmp_path)
    again = sweep(counted, {"x": [1, 2, 3]}, seeds=[0], out=tmp_path)
    assert calls == [1, 2, 3]
    assert again.reused == 2
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_another_function_does_not_take_over_its_cells(tmp_path: Path) -> None:
    sweep(run, GRID, seeds=[0], out=tmp_path)
    assert sweep(run_all, GRID, seeds=[0], out=tmp_path, backend="batched").reused == 0


@pytest.mark.long
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """The process is killed while cells are being written; every file that is there is whole and is taken over."""
    script = tmp_path / "slow_runs.py"
    script.write_text(
        "import sys, time\n"
        "from gaugefix.sweep import sweep\n"
        "def slow(x, seed):\n"
        "    time.sleep(0.02)\n"
        "    return {'y': x * x}\n"
        "if __name__ == '__main__':\n"
        "    found = sweep(slow, {'x': list(range(100))}, seeds=[0], out=sys.argv[1])\n"
        "    print(found.reused, found.array('y').sum())\n"
    )
    out = tmp_path / "cells"
    command = [sys.executable, str(script), str(out)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = list(out.glob("[!.]*.json"))
    assert 3 <= len(kept) < 100
    for path in kept:
        json.loads(path.read_text())
    reused, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(reused) == len(kept)
    assert int(total) == sum(x * x for x in range(100))


def test_failures_do_not_lose_the_others(tmp_path: Path) -> None:
    def shaky(x: int, seed: int) -> dict[str, Any]:
        return {"y": 1 / x}

    with pytest.raises(SweepError, match=r"1 of 3 runs failed; the other 2 are in .*\n.*'x': 0.*ZeroDivisionError"):
        sweep(shaky, {"x": [1, 0, 2]}, seeds=[0], out=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"x": []}, {}, "Axis 'x' has no values"),
        ({"seed": [1]}, {}, "argument seeds"),
        ({"x": [object()]}, {}, "must be numbers, text, lists or None"),
        ({"x": [1]}, {"backend": "threads"}, "backend must be one of sequential"),
    ],
)
def test_bad_arguments(grid: Any, options: Any, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        sweep(run, grid, **options)


def test_wrong_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="must return a mapping"):
        sweep(lambda x, seed: 3, {"x": [1]})  # type: ignore[arg-type,return-value]
    with pytest.raises(SweepError, match="got 3 cells and returned 1"):
        sweep(lambda cells: [{}], {"x": [1]}, backend="batched")  # type: ignore[arg-type,return-value]
    with pytest.raises(SweepError, match="No value 'acc'"):
        sweep(run, GRID).array("acc")
    with pytest.raises(ReportError, match="Cannot write"):
        sweep(run, GRID, out="/dev/null/cells")


def test_progress_counts_up() -> None:
    seen: list[tuple[int, int]] = []
    sweep(run, GRID, seeds=[0], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.ray
def test_ray_gives_the_same(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")

    def local(lr: float, width: int, seed: int) -> dict[str, Any]:
        return {"loss": lr * width + 100 * seed}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = sweep(local, GRID, seeds=[0, 1], backend="ray", jobs=2, out=tmp_path)
        assert np.array_equal(found.array("loss"), expected([0, 1]))
        assert sweep(local, GRID, seeds=[0, 1], backend="ray", jobs=2, out=tmp_path).reused == 12
    finally:
        ray.shutdown()
