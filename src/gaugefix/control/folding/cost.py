"""What a forward pass costs: operations, time, memory."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gaugefix.symmetry.graph import math_attention


def forward_flops(model: nn.Module, args: tuple[Any, ...]) -> int:
    """Floating point operations of one forward pass in matrix products and convolutions.

    Args:
        model: the module.
        args: example arguments.

    Returns:
        The count; a multiply-add counts twice.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer is one operation that is not counted
    try:
        with torch.no_grad(), math_attention(), FlopCounterMode(display=False) as counter:
            model(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def forward_seconds(models: list[nn.Module], args: tuple[Any, ...], *, repeats: int = 15) -> list[float]:
    """Median wall-clock time of one forward pass of each model, taken in turns so that load falls on all alike.

    Args:
        models: to be compared.
        args: example arguments.
        repeats: passes of each, after two to warm up.

    Returns:
        Seconds.
    """
    taken: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for k in range(repeats + 2):
            for model, times in zip(models, taken, strict=True):
                start = time.perf_counter()
                model(*args)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if k >= 2:
                    times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def size_of(model: nn.Module) -> tuple[int, int]:
    """Number of parameters, and bytes of parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters()), sum(t.numel() * t.element_size() for t in tensors)
