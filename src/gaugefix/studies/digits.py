"""The digits of scikit-learn for studies that train a network: the data of the built-in task, in one piece."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from gaugefix.task import load_task


def digits(seed: int) -> tuple[Tensor, Tensor, Callable[[nn.Module], float]]:
    """Training inputs ``(1440, 64)`` and labels, shuffled by the seed, and the test accuracy of a model."""
    task = load_task("digits-mlp", seed=seed)
    x, y = (torch.cat(parts) for parts in zip(*task.batch_iter(seed), strict=True))
    metric = task.metric
    assert metric is not None
    return x, y, lambda model: metric(model)["test accuracy"]


def network(widths: tuple[int, ...], activation: type[nn.Module], seed: int) -> nn.Sequential:
    """Linear layers with an activation between them, initialised as torch does with this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def train_on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    *,
    steps: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """SGD with batches of 64 drawn with replacement; cross-entropy plus a penalty."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
