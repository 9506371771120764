"""The search makes as many calls for every further layer as for the one before, in models too wide for null spaces."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from tests.cases import GPT2, Residual
from torch import nn

from gaugefix.symmetry.find import search
from gaugefix.symmetry.graph import trace


def calls(make: Callable[[int], nn.Module], x: torch.Tensor, depth: int) -> tuple[int, int]:
    """Operations of the graph, and function calls (Python's and built-in ones) of the search."""
    with torch.device("meta"):
        graph = trace(make(depth), (x.to("meta"),))
    n, count = len(graph.ops), 0

    def count_call(_frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        search(graph)
    finally:
        sys.setprofile(before)
    return n, count


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda depth: GPT2(64, 2, 200, depth, 300), torch.zeros(3, 4, dtype=torch.long)),
        (lambda depth: Residual(64, 200, depth, nn.RMSNorm, nn.GELU), torch.zeros(8, 3)),
    ],
    ids=["gpt2", "residual"],
)
def test_calls_grow_as_the_operations_do(make: Callable[[int], nn.Module], x: torch.Tensor) -> None:
    (n1, c1), (n2, c2), (n3, c3) = (calls(make, x, depth) for depth in (3, 6, 12))
    first, second = (c2 - c1) / (n2 - n1), (c3 - c2) / (n3 - n2)  # calls for a further operation
    assert second == pytest.approx(first, rel=0.03)
