"""How much ``import gaugefix`` adds to ``import torch``."""

from __future__ import annotations

from benchmarks.harness import Row, fresh_process

REPEATS = 10
NOTE = "includes one collection of the garbage collector, which walks over torch's objects: 0.05 s"
CODE = """
import time, torch
start = time.process_time()
import gaugefix
print(time.process_time() - start)
"""


def rows() -> list[Row]:
    """One row: CPU time of the import after torch, in a fresh interpreter."""
    added = min(float(fresh_process(CODE).output) for _ in range(REPEATS))
    return [Row("import gaugefix, beyond torch", added, "s", target=0.2, repeats=REPEATS, note=NOTE)]
