"""What a Hessian-vector product costs in gradients, repeated at one point and fresh."""

from __future__ import annotations

import torch

from benchmarks.harness import Row, compare
from benchmarks.problems import CLASSIFIER, DEEP, convolutions, exact_task, full_gradient
from gaugefix import Task
from gaugefix.measure import HessianOperator, hvp

REPEATS = 9


def rows() -> list[Row]:
    """Ratios over one gradient of the same loss on the same data in the same precision."""
    deep = (
        "in a network of equal layers a product has 6 matrix products per layer where a gradient has 3, "
        "fresh 8 or 9, whatever the order of differentiation"
    )
    return [
        *_ratios("784-256-256-10", exact_task(CLASSIFIER), (1.5, 2.6)),
        *_ratios("7 layers of 256", exact_task(DEEP), (None, None), deep),
        *_ratios(
            "convolutions", convolutions(512), (None, None), "two layers of equal weight, the first without input"
        ),
    ]


def _ratios(name: str, task: Task, targets: tuple[float | None, float | None], note: str = "") -> list[Row]:
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
        Row(f"Hessian-vector product, {name}, {what}", seconds / unit, "×", target, REPEATS, note)
        for (what, seconds), target in zip(times.items(), targets, strict=True)
    ]
