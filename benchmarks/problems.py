"""The problem on which costs are compared: an MLP large enough that products of matrices dominate."""

from __future__ import annotations

import torch
from torch import nn

from gaugefix import Task


def exact_task(n: int = 2048, width: int = 512) -> Task:
    """Cross-entropy of a float64 MLP on random data in batches of 512.

    The data is float64 too, so that a measurement, which computes in float64, meets the precision of the gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (n,), generator=generator)
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(
        nn.Sequential(*layers).double(),
        loss,
        lambda: list(zip(x.split(512), y.split(512), strict=True)),
        lr=0.1,
        weight_decay=1e-3,
        batch_size=512,
    )


def full_gradient(task: Task) -> None:
    """One gradient of the mean loss over all the data, the unit in which costs are given."""
    params = list(task.model.parameters())
    total = sum(task.loss(task.model, batch).sum() for batch in task.batches())
    torch.autograd.grad(total, params)
