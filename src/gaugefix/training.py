"""The plain training loop that the built-in tasks, the checks of forecasts and the studies share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gaugefix.errors import TaskError
from gaugefix.task import Task

Callback = Callable[[int, float], None]


def make_optimizer(task: Task) -> torch.optim.Optimizer:
    """The torch optimizer with the settings of a task.

    Args:
        task: gives the parameters, lr, weight_decay and momentum.

    Returns:
        A fresh optimizer over the trainable parameters.
    """
    params = [p for p in task.model.parameters() if p.requires_grad]
    if task.optimizer == "sgd":
        return torch.optim.SGD(params, lr=task.lr, weight_decay=task.weight_decay, momentum=task.momentum)
    kind = torch.optim.Adam if task.optimizer == "adam" else torch.optim.AdamW
    return kind(params, lr=task.lr, weight_decay=task.weight_decay)


def train(
    task: Task,
    epochs: int | None = None,
    *,
    callback: Callback | None = None,
    before_step: Callable[[torch.optim.Optimizer], object] | None = None,
    seed: int = 0,
) -> list[float]:
    """Train ``task.model`` in place by the task's optimizer on the mean of its per-sample losses.

    Args:
        task: what to train; its model is left in training mode off (``eval``) if it came so.
        epochs: number of passes, default ``task.epochs``.
        callback: called with ``(pass, mean loss)`` after every pass.
        before_step: called with the optimizer when it has gradients and is about to step; ``Monitor(task).step`` fits.
        seed: seed of the first pass; pass k uses ``seed + k``.

    Returns:
        The mean data loss of every pass, without the weight-decay term.

    Raises:
        TaskError: if the loss stops being finite; the model keeps the last weights.
    """
    optimizer = make_optimizer(task)
    history = []
    was_training = task.model.training
    task.model.train()
    try:
        for epoch in range(task.epochs if epochs is None else epochs):
            total, count = 0.0, 0
            for batch in task.batch_iter(seed + epoch):
                losses = task.loss(task.model, batch)
                mean = losses.mean()
                optimizer.zero_grad(set_to_none=True)
                mean.backward()
                if before_step is not None:
                    before_step(optimizer)
                optimizer.step()
                total, count = total + mean.item() * len(losses), count + len(losses)
            history.append(total / count)
            if not torch.isfinite(torch.tensor(history[-1])):
                raise TaskError(
                    f"Task {task.name!r}: the training loss is {history[-1]} after pass {epoch + 1}. "
                    f"Lower the learning rate (now {task.lr:g})."
                )
            if callback is not None:
                callback(epoch, history[-1])
    finally:
        task.model.train(was_training)
        task.model.zero_grad(set_to_none=True)
    return history
