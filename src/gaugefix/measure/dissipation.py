"""Entropy production along a run: the irreversibility φ of every step, smoothed, and its sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, first_batches, squared_norm
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Task


@dataclass(frozen=True, eq=False)
class EntropyProduction(Record):
    """φ_t = (η/4)‖ĝ_t‖² along a run of SGD.

    Attributes:
        phi: ``(steps,)`` of every step, ĝ the gradient of its batch with weight decay.
        smoothed: ``(steps,)`` exponential moving average, free of the bias of its start.
        cumulative: ``(steps,)`` Σφ, the dissipation so far.
        steps: how many.
        falling: whether the mean over the last quarter is below that over the first by more than two standard errors:
            the run is still on its way to where it dissipates less.
    """

    phi: np.ndarray = field(repr=False)
    smoothed: np.ndarray = field(repr=False)
    cumulative: np.ndarray = field(repr=False)
    steps: int
    falling: bool


def entropy_production_curve(
    task: Task, *, steps: int = 200, smoothing: float = 0.98, seed: int = 0
) -> EntropyProduction:
    """Follow the irreversibility (η/4)‖ĝ‖² of a run of SGD, on a copy.

    Args:
        task: gives model, loss, data and settings; its optimizer must be SGD without momentum.
        steps: length of the run.
        smoothing: weight of the past in the moving average, in [0, 1).
        seed: of the data order.

    Returns:
        The curve. Cost: one gradient per step.

    Raises:
        MeasurementError: if ``steps`` < 1, ``smoothing`` is out of range, or the optimizer is not plain SGD.

    Source: arXiv 2605.21933.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0], lambda: x.split(1),
        ...             lr=0.4, weight_decay=0.0, batch_size=1)
        >>> entropy_production_curve(task, steps=3).cumulative.tolist()  # 0.1·(1, 1 + 4, 1 + 4 + 1)
        [0.1, 0.5, 0.6]
    """
    plain_sgd_only(task, "The entropy production of a run")
    if steps < 1:
        raise MeasurementError(f"entropy_production_curve: steps must be at least 1, got {steps!r}.")
    if not 0 <= smoothing < 1:
        raise MeasurementError(f"entropy_production_curve: smoothing must be in [0, 1), got {smoothing!r}.")
    copy = exact_copy(task)
    params = trainable(copy.model)
    phi = []
    for batch in first_batches(copy, steps, seed):
        _, data = batch_gradient(copy, batch, params)
        gradient = {k: g + task.weight_decay * params[k].detach() for k, g in data.items()}
        phi.append(task.lr / 4 * squared_norm(gradient))
        with torch.no_grad():
            for k, p in params.items():
                p.sub_(gradient[k], alpha=task.lr)
    found, smoothed, mean = np.array(phi), np.empty(steps), 0.0
    for t, value in enumerate(phi):
        mean = smoothing * mean + (1 - smoothing) * value
        smoothed[t] = mean / (1 - smoothing ** (t + 1))
    return EntropyProduction(found, smoothed, np.cumsum(found), steps, _falling(found))


def _falling(phi: np.ndarray) -> bool:
    quarter = len(phi) // 4
    if quarter < 2:
        return False
    first, last = phi[:quarter], phi[-quarter:]
    stderr = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / quarter)
    return bool(last.mean() < first.mean() - 2 * stderr)
