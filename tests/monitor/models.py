"""Small models, losses and loops that the tests of the monitor share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaugefix import Monitor, Symmetries, find_symmetries


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module whose initial weights do not depend on, nor change, the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(widths: tuple[int, ...] = (5, 8, 3), activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
    """One block of self-attention with a fused projection and a linear read-out."""

    def __init__(self, d: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out, self.head = heads, nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        return self.head(x + self.out(mixed)).mean(1)


def batches(
    n: int, shape: tuple[int, ...] = (16, 5), seed: int = 1, dtype: torch.dtype = torch.float64
) -> Iterator[Any]:
    """Inputs and labels of 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        yield x, (x.reshape(len(x), -1)[:, :3]).argmax(1)


_FOUND: dict[tuple[str, torch.dtype, tuple[int, ...]], Symmetries] = {}


def found(model: nn.Module, *shape: int) -> Symmetries:
    """The symmetries of a model; searched once for every structure."""
    dtype = next(model.parameters()).dtype
    key = (repr(model), dtype, shape)
    if key not in _FOUND:
        _FOUND[key] = find_symmetries(model, (torch.zeros(2, *shape, dtype=dtype),), verify=False)
    return _FOUND[key]


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor | None, data: Any,
    *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """A plain loop; ``before`` and ``after`` run on either side of the monitor. The rows that were logged."""
    rows = []
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if before is not None:
            before()
        if monitor is not None and (row := monitor.step(optimizer)):
            rows.append(row)
        if after is not None:
            after()
        optimizer.step()
    return rows
