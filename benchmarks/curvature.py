"""What a Hessian-vector product costs in gradients, repeated at one point and fresh."""

from __future__ import annotations

import torch

from benchmarks.harness import Row, compare
from benchmarks.problems import CLASSIFIER, DEEP, exact_task, full_gradient
from gaugefix.measure import HessianOperator, hvp

REPEATS = 9


def rows() -> list[Row]:
    """Ratios over one gradient of the same loss on the same data in the same precision."""
    return [*_ratios("784-256-256-10", CLASSIFIER, (1.5, 2.6)), *_ratios("7 layers of 256", DEEP, (None, None))]


def _ratios(name: str, widths: tuple[int, ...], targets: tuple[float | None, float | None]) -> list[Row]:
    task = exact_task(widths)
    operator = HessianOperator(task)
    vector = {k: torch.randn_like(p) for k, p in operator.params.items()}
    times = compare(
        {
            "gradient": lambda: full_gradient(task),
            "repeated at one point": lambda: operator @ vector,
            "fresh": lambda: hvp(task, vector),
        },
        repeats=REPEATS,
    )
    unit = times.pop("gradient")
    return [
        Row(f"Hessian-vector product, {name}, {what}", seconds / unit, "×", target, REPEATS)
        for (what, seconds), target in zip(times.items(), targets, strict=True)
    ]
