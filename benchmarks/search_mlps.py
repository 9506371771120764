"""How long the search for symmetries takes on multilayer perceptrons, its numerical check included and without."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from benchmarks.harness import Row, compare
from gaugefix import find_symmetries

REPEATS = 5
WIDTHS = {"64-32-32-10": (64, 32, 32, 10), "784-1024-1024-10": (784, 1024, 1024, 10), "16 x 64": (64,) * 17}


def rows() -> list[Row]:
    """Two rows per network: with the check on random group elements, and the structure alone."""
    found = []
    for name, widths in WIDTHS.items():
        model, inputs = _mlp(widths), (torch.zeros(8, widths[0]),)
        times = compare(
            {
                "searched and verified": lambda m=model, x=inputs: find_symmetries(m, x),
                "searched": lambda m=model, x=inputs: find_symmetries(m, x, verify=False),
            },
            repeats=REPEATS,
        )
        found += [Row(f"ReLU MLP {name}, {what}", seconds, "s", repeats=REPEATS) for what, seconds in times.items()]
    return found


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
