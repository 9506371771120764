"""How long ``gaugefix audit digits-mlp`` takes, from a cold interpreter to the written report."""

from __future__ import annotations

import tempfile

from benchmarks.harness import Row, fresh_process

REPEATS = 2


def rows() -> list[Row]:
    """Clock and CPU of the whole command, and its largest memory."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import sys; sys.argv = ['gaugefix', 'audit', 'digits-mlp', '-q', '--out', {folder!r}]\n"
        run = fresh_process(code + "from gaugefix.cli import main; main()", repeats=REPEATS)
    return [
        Row("gaugefix audit digits-mlp, by the clock", run.wall, "s", target=60, repeats=REPEATS),
        Row("gaugefix audit digits-mlp, CPU", run.cpu, "s", repeats=REPEATS),
        Row("gaugefix audit digits-mlp, largest memory", run.peak, "MB", repeats=REPEATS),
    ]
