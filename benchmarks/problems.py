"""The problems on which costs are compared: networks in which products of matrices dominate."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from gaugefix import Task

#: 0.27 M parameters, most of them in the first layer: the usual small classifier
CLASSIFIER = (784, 256, 256, 10)
#: a backward pass through every layer, none of which dominates
DEEP = (256,) * 8


def exact_task(widths: tuple[int, ...] = CLASSIFIER, *, n: int = 512, batch_size: int = 512) -> Task:
    """Cross-entropy of a float64 tanh MLP on random data.

    The data is float64 too, so that a measurement, which computes in float64, meets the precision of the gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, widths[0], generator=generator, dtype=torch.float64)
    y = torch.randint(widths[-1], (n,), generator=generator)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(
        nn.Sequential(*layers[:-1]).double(),
        loss,
        lambda: list(zip(x.split(batch_size), y.split(batch_size), strict=True)),
        lr=0.1,
        weight_decay=1e-3,
        batch_size=batch_size,
    )


def full_gradient(task: Task) -> None:
    """One gradient of the mean loss over all the data, the unit in which costs are given."""
    total = sum(task.loss(task.model, batch).sum() for batch in task.batches())
    torch.autograd.grad(total, list(task.model.parameters()))
