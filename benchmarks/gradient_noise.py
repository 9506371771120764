"""What the trace of the gradient noise costs in gradients, by architecture."""

from __future__ import annotations

from benchmarks.harness import Row, compare
from benchmarks.problems import convolutions, exact_task, full_gradient, language_model, transformer_block
from gaugefix import Task
from gaugefix.measure import gradient_noise

REPEATS = 15
FEW = 5


def rows() -> list[Row]:
    """Ratios over one gradient of the same loss on the same data in the same precision."""
    return [
        _row("Linear layers", exact_task(n=2048, batch_size=512), REPEATS),
        _row("convolutions", convolutions(), FEW),
        _row("attention block", transformer_block(), FEW),
        _row("language model of width 64", language_model(64), FEW),
        _row("language model of width 256", language_model(256), FEW),
    ]


def _row(name: str, task: Task, repeats: int) -> Row:
    times = compare({"gradient": lambda: full_gradient(task), "noise": lambda: gradient_noise(task)}, repeats=repeats)
    method = gradient_noise(task).method
    return Row(f"trace of the gradient noise, {name}", times["noise"] / times["gradient"], "×", 1.2, repeats, method)
