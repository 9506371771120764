"""Settling: take the minibatch noise out of a point before asking it what it will do next.

The iterate of SGD scatters around its slow path. The scatter is fast and averages out, yet at one instant it can
dominate the small forces that decide about growth and decay (the raw iterate has the wrong gradient and Hessian, as
arXiv 2102.05375 treats in general). A few full-batch steps remove the fast part and leave the slow one in place.
"""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gaugefix.measure.perexample import trainable
from gaugefix.task import Batch, Task


@dataclass(frozen=True)
class Settled:
    """A copy of a task after a few full-batch steps.

    Attributes:
        task: on a model of its own, with its batches held in memory.
        steps: full-batch steps taken.
        moved: relative change of the parameters, ‖Δθ‖/‖θ‖.
        reason: why it was not settled as asked, or "".
    """

    task: Task
    steps: int
    moved: float
    reason: str


def settle(copy: Task, *, steps: int = 100, max_samples: int = 4096, seed: int = 0) -> Settled:
    """Full-batch gradient descent with a task's lr and weight decay, on a further copy of the model.

    Args:
        copy: from `exact_copy`; it is not changed.
        steps: number of steps. 50 already remove most of the scatter on the built-in tasks.
        max_samples: stop collecting data after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The settled task. If the penalised loss does not fall (a learning rate that only noise or momentum makes
        bearable) the step is halved up to 10 times; a point that cannot be settled is returned as it was.
    """
    batches = list(first_samples(copy, max_samples, seed))
    held = dataclasses.replace(copy, batches=lambda: batches)
    if steps <= 0:
        return Settled(held, 0, 0.0, "")
    if copy.optimizer != "sgd":
        return Settled(held, 0, 0.0, f"not settled: {copy.optimizer} does not follow the gradient")
    lr = copy.lr
    for _ in range(10):
        model = copying.deepcopy(copy.model)
        trial = dataclasses.replace(held, model=model)
        before = _objective(trial, backward=False)
        for _ in range(steps):
            _objective(trial, backward=True)
            with torch.no_grad():
                for p in trainable(model).values():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=lr)
        after = _objective(trial, backward=False)
        model.zero_grad(set_to_none=True)
        if after <= before:
            reason = "" if lr == copy.lr else f"settled with lr {lr:.2g}: full-batch descent is unstable at {copy.lr:g}"
            return Settled(trial, steps, _distance(copy, trial), reason)
        lr /= 2
    return Settled(held, 0, 0.0, "not settled: full-batch descent does not lower the penalised loss")


def first_samples(task: Task, max_samples: int, seed: int = 0) -> Iterator[Batch]:
    """The batches of one pass up to the one that reaches a number of samples.

    Args:
        task: any task.
        max_samples: the number.
        seed: of the data order.

    Yields:
        Batches.
    """
    seen = 0
    for batch in task.batch_iter(seed):
        yield batch
        with torch.no_grad():
            seen += len(task.loss(task.model, batch))
        if seen >= max_samples:
            return


def _objective(task: Task, *, backward: bool) -> float:
    """Penalised loss over all batches; leaves its gradient in ``.grad`` if wanted."""
    params = list(trainable(task.model).values())
    with torch.set_grad_enabled(backward):
        losses = torch.cat([task.loss(task.model, batch) for batch in task.batch_iter()])
        penalty = torch.stack([p.square().sum() for p in params]).sum()
        value: Tensor = losses.mean() + task.weight_decay / 2 * penalty
    if backward:
        for p, g in zip(params, torch.autograd.grad(value, params, allow_unused=True), strict=True):
            p.grad = g
    return float(value.detach())


def _distance(a: Task, b: Task) -> float:
    pairs = list(zip(a.model.parameters(), b.model.parameters(), strict=True))
    change = sum(float((p - q).detach().square().sum()) for p, q in pairs)
    total = sum(float(p.detach().square().sum()) for p, _ in pairs)
    return (change / total) ** 0.5 if total > 0 else 0.0
