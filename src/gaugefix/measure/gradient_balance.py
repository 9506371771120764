"""Gradient balance of the layers of a homogeneous network, and the sizes that it predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, first_batches
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.task import Task

_CONNECTED = 1e-6


@dataclass(frozen=True, eq=False)
class GradientBalance(Record):
    """How evenly gradients and decay are spread over the layers.

    At stationarity z = ηE‖ĝ‖² − 2λ(1 − ηλ/2)‖θ‖² is the same for all layers. The layer with the largest z still grows
    relative to the others, by η times the difference of z per step (its squared norm).

    Attributes:
        groups: names.
        squares: ``(groups,)`` E‖ĝ‖² of the data gradient of a batch.
        sizes: ``(groups,)`` ‖θ‖² now.
        z: ``(groups,)``.
        spread: (max − min)/mean|z|; 0 at stationarity.
        predicted_sizes: ``(groups,)`` ‖θ‖² that these gradients would hold at stationarity, with the present sum; nan
            without weight decay, where the gradients themselves have to be equal.
        relaxation_steps: 1/(2ηλ(1 − ηλ/2)), in which the gap to these sizes falls by a factor e; inf without decay.
        n_batches: how many were used.
        valid: whether rescaling one group against another is a symmetry: ⟨θ, ĝ⟩ is the same for all, in every batch.
        reason: why not, or "".
    """

    groups: tuple[str, ...]
    squares: np.ndarray
    sizes: np.ndarray
    z: np.ndarray
    spread: float
    predicted_sizes: np.ndarray
    relaxation_steps: float
    n_batches: int
    valid: bool
    reason: str


def gradient_balance(
    task: Task, groups: Mapping[str, Sequence[str]] | None = None, *, n_batches: int = 64, seed: int = 0
) -> GradientBalance:
    """Whether the layers of a network are in balance, ηE‖ĝ_i‖² − 2λ(1 − ηλ/2)‖θ_i‖² equal for all of them.

    Holds for groups that a rescaling connects: the weight matrices of a ReLU network without biases, of a linear
    network. That is checked with every batch, and `valid` says so. Units one by one: `equipartition_residual`.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        groups: parameter names by group; by default every parameter of two or more dimensions is one.
        n_batches: how many batches the expectation takes.
        seed: of the data order.

    Returns:
        The balance. Cost: one gradient per batch.

    Raises:
        MeasurementError: if there are fewer than two groups, or one names no trainable parameter.

    Source: arXiv 2505.12387 (equipartition).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [-2.0]])
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = [p.fill_(1.0) for p in net.parameters()]
        >>> task = Task(net, lambda m, b: m(b)[:, 0] ** 2, lambda: x.split(1), lr=0.1, weight_decay=0.0, batch_size=1)
        >>> found = gradient_balance(task, n_batches=2)
        >>> found.spread, found.valid
        (0.0, True)
    """
    copy = exact_copy(task)
    params = trainable(copy.model)
    chosen = dict(groups) if groups is not None else {k: (k,) for k, p in params.items() if p.ndim >= 2}
    if len(chosen) < 2:
        raise MeasurementError(f"gradient_balance: at least two groups are needed, got {list(chosen)}.")
    for name in (k for members in chosen.values() for k in members):
        if name not in params:
            raise MeasurementError(f"gradient_balance: {name!r} is no trainable parameter of {task.name!r}.")
    names, squares, works = tuple(chosen), [], []
    for batch in first_batches(copy, n_batches, seed):
        _, gradient = batch_gradient(copy, batch, params)
        squares.append([sum(float(gradient[k].square().sum()) for k in chosen[g]) for g in names])
        works.append([sum(float((gradient[k] * params[k].detach()).sum()) for k in chosen[g]) for g in names])
    square = np.mean(squares, axis=0)
    sizes = np.array([sum(float(params[k].detach().square().sum()) for k in chosen[g]) for g in names])
    decay = 2 * task.weight_decay * (1 - task.lr * task.weight_decay / 2)
    z = task.lr * square - decay * sizes
    scale = float(np.abs(z).mean())
    gap = task.lr / decay * (square - square.mean()) + sizes.mean() - sizes if decay else np.full(len(z), math.nan)
    reason = _why_not(task, np.array(works), np.array(squares), sizes)
    return GradientBalance(
        names,
        square,
        sizes,
        z,
        float(np.ptp(z)) / scale if scale > 0 else 0.0,
        sizes + gap,
        1 / (task.lr * decay) if decay else math.inf,
        n_batches,
        not reason,
        reason,
    )


def _why_not(task: Task, works: np.ndarray, squares: np.ndarray, sizes: np.ndarray) -> str:
    scale = np.sqrt(squares * sizes).max(axis=1)
    apart = float((np.ptp(works, axis=1) / np.where(scale > 0, scale, 1.0)).max())
    if apart > _CONNECTED:
        return f"no rescaling connects these groups: ⟨θ, ĝ⟩ differs between them by {apart:.1e} of its bound"
    if task.optimizer != "sgd" or task.momentum:
        return "the balance is that of SGD without momentum"
    return ""
