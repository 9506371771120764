"""The loss along the straight line between two networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from gaugefix.control.state import state_of, write_state
from gaugefix.errors import ControlError
from gaugefix.measure import Record
from gaugefix.task import Batch, Task


@dataclass(frozen=True, eq=False)
class Barrier(Record):
    """Loss on the segment (1 − t)θ_a + tθ_b.

    Attributes:
        t: ``(points,)`` from 0 to 1.
        loss: ``(points,)`` mean loss at each.
        barrier: largest excess of the loss over the straight line between its ends; 0 if there is none.
        at: the t where it is.
        n_samples: number of samples.
    """

    t: np.ndarray
    loss: np.ndarray
    barrier: float
    at: float
    n_samples: int


def barrier(
    model_a: nn.Module, model_b: nn.Module, task: Task, *, points: int = 11, max_batches: int = 16, seed: int = 0
) -> Barrier:
    """The loss barrier between two networks, max_t L(θ_t) − (1 − t)L(θ_a) − tL(θ_b), θ_t = (1 − t)θ_a + tθ_b.

    Align the second network first (`align`): without that the barrier measures the difference of coordinates rather
    than that of functions. Running statistics are interpolated with the parameters; evaluation mode.

    Args:
        model_a: one end.
        model_b: the other end, same architecture.
        task: gives loss and batches; its own model is not used.
        points: on the line, ends included.
        max_batches: of each evaluation.
        seed: of the data order.

    Returns:
        The curve. Cost: ``points`` passes over the batches.

    Raises:
        ControlError: if ``points`` < 3, or the models differ in parameters.

    Example:
        >>> from gaugefix import load_task
        >>> task = load_task("digits-mlp")
        >>> barrier(task.model, task.model, task, max_batches=1).barrier
        0.0
    """
    if not isinstance(points, int) or points < 3:
        raise ControlError(f"barrier: points must be an integer >= 3, got {points!r}.")
    a, b = state_of(model_a), state_of(model_b)
    if {n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()}:
        raise ControlError("barrier: the models differ in the names or shapes of their parameters.")
    between = copy.deepcopy(model_a).eval()
    ts = np.linspace(0, 1, points)
    losses, count = [], 0
    for t in ts.tolist():
        write_state(between, {n: (1 - t) * a[n] + t * b[n] for n in a})
        total, count = _mean_loss(between, task, islice(task.batch_iter(seed), max_batches))
        losses.append(total)
    loss = np.array(losses)
    excess = loss - ((1 - ts) * loss[0] + ts * loss[-1])
    k = int(excess.argmax())
    return Barrier(ts, loss, max(float(excess[k]), 0.0), float(ts[k]), count)


def _mean_loss(model: nn.Module, task: Task, batches: Iterator[Batch]) -> tuple[float, int]:
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            losses = task.loss(model, batch)
            total, count = total + float(losses.double().sum()), count + len(losses)
    return total / count, count
