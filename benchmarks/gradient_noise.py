"""What the trace of the gradient noise costs in gradients."""

from __future__ import annotations

from benchmarks.harness import Row, compare
from benchmarks.problems import exact_task, full_gradient
from gaugefix.measure import gradient_noise

REPEATS = 15


def rows() -> list[Row]:
    """One ratio over one gradient of the same loss on the same data in the same precision."""
    task = exact_task(n=2048, batch_size=512)
    times = compare({"gradient": lambda: full_gradient(task), "noise": lambda: gradient_noise(task)}, repeats=REPEATS)
    return [Row("trace of the gradient noise, Linear layers", times["noise"] / times["gradient"], "×", 1.2, REPEATS)]
