"""What a Hessian-vector product costs in gradients, repeated at one point and fresh."""

from __future__ import annotations

import torch

from benchmarks.harness import Row, compare
from benchmarks.problems import exact_task, full_gradient
from gaugefix.measure import HessianOperator, hvp

REPEATS = 7


def rows() -> list[Row]:
    """Two ratios over one gradient of the same loss on the same data in the same precision."""
    task = exact_task()
    operator = HessianOperator(task)
    vector = {k: torch.randn_like(p) for k, p in operator.params.items()}
    times = compare(
        {
            "gradient": lambda: full_gradient(task),
            "cached": lambda: operator @ vector,
            "fresh": lambda: hvp(task, vector),
        },
        repeats=REPEATS,
    )
    return [
        Row("Hessian-vector product, repeated at one point", times["cached"] / times["gradient"], "×", 1.5, REPEATS),
        Row("Hessian-vector product, fresh", times["fresh"] / times["gradient"], "×", 2.6, REPEATS),
    ]
