"""What every benchmark shares: how time is taken, what a row is, how results are kept.

Times are the minimum over repeats of CPU time, because the other programs of a machine only ever add to it. What is
compared is measured in turns within one run, so that a change of clock rate meets both sides.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gaugefix.files import write_atomically

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
#: one file for each run of a long benchmark that is done; not committed
CELLS = ROOT / "build" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """One line of a table of results.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: "s", "MB", "%", "×" (a ratio), or "" for a plain number.
        target: the largest value that is good enough, if there is one.
        repeats: over how many the minimum was taken.
        note: what a reader must know to judge it.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    repeats: int = 1
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else bool(self.value <= self.target)


def cpu_time(function: Callable[[], object], *, repeats: int = 5) -> float:
    """Minimum CPU time of a call in seconds, all threads together, after one call to warm up."""
    return compare({"only": function}, repeats=repeats)["only"]


def compare(functions: Mapping[str, Callable[[], object]], *, repeats: int = 5, inner: int = 1) -> dict[str, float]:
    """Minimum CPU time of several functions, called in turns.

    Args:
        functions: by name.
        repeats: rounds over which the minimum is taken.
        inner: calls per measurement, for what takes less than a millisecond.

    Returns:
        Seconds per call, by name.
    """
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(inner):
                function()
            best[name] = min(best[name], (time.process_time() - start) / inner)
    return best


@dataclass(frozen=True)
class Process:
    """What a program of its own needed: seconds of CPU and of the clock, largest memory in MB, what it printed.

    On Linux the memory is at least that of the process that started the program.
    """

    cpu: float
    wall: float
    peak: float
    output: str


def fresh_process(code: str, *, repeats: int = 1, env: Mapping[str, str] | None = None) -> Process:
    """Run Python code in an interpreter of its own; the run with the least CPU time of several.

    Args:
        code: given to ``python -c``; the folder of the project is the working directory.
        repeats: how many runs.
        env: environment variables to add.

    Returns:
        The best run.
    """
    runs = [_one_process(code, {**os.environ, **(env or {})}) for _ in range(repeats)]
    return min(runs, key=lambda run: run.cpu)


def _one_process(code: str, env: Mapping[str, str]) -> Process:
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)  # the usage of this child alone
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"The program ended with {child.returncode}:\n{code}")
    to_mb = 1e6 if sys.platform == "darwin" else 1e3
    return Process(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / to_mb, output)


def missing(*modules: str) -> str:
    """Which peers a comparison has to do without, for a note.

    Args:
        modules: their names for ``import``.

    Returns:
        "not installed: …", or "" if all are there.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def kept_rows(script: str, part: str, measure: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of one part of a long script; a part that an earlier, interrupted run has finished is not run again.

    Args:
        script: its name, a folder in `CELLS`.
        part: unique within the script, a file there.
        measure: gives the rows.

    Returns:
        The rows.
    """
    path = CELLS / script / f"{part}.json"
    if path.is_file():
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    rows = list(measure())
    write_atomically(path, json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    return rows


def environment() -> dict[str, Any]:
    """What the figures depend on: machine, versions, threads."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("gaugefix", "torch", "numpy")},
    }


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def save(name: str, rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Write the rows of one script with the environment they were measured in.

    Args:
        name: of the script.
        rows: what it measured.
        folder: where to.

    Returns:
        The file.
    """
    content = {"environment": environment(), "rows": [{**asdict(row), "met": row.met} for row in rows]}
    return write_atomically(folder / f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
