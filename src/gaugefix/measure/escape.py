"""How long will SGD stay here? Loss, slope and gradient noise along a path between two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.noise_operator import NoiseOperator
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Task
from gaugefix.theory import passage_steps

_FLAT = 1e-12


@dataclass(frozen=True, eq=False)
class EscapePath(Record):
    """What SGD meets on the straight line from one set of weights to another.

    Attributes:
        s: ``(m,)`` places on the line in units of length, 0 at the start.
        loss: ``(m,)`` L with weight decay.
        data_loss: ``(m,)`` L without.
        slope: ``(m,)`` derivative of ``loss``.
        noise: ``(m,)`` variance of the minibatch gradient along the line.
        barrier: highest loss on the line minus the loss at the start.
        top: index of that point.
        expected_steps: mean number of steps from the start to the top and as far again beyond it, as far as the line
            goes; nan if not valid.
        valid: whether there is a barrier and noise all along.
        reason: why not, or "".
    """

    s: Float[np.ndarray, " m"]
    loss: Float[np.ndarray, " m"]
    data_loss: Float[np.ndarray, " m"]
    slope: Float[np.ndarray, " m"]
    noise: Float[np.ndarray, " m"]
    barrier: float
    top: int
    expected_steps: float
    valid: bool
    reason: str


def escape_along_path(
    task: Task,
    target: Mapping[str, Tensor],
    *,
    n_points: int = 21,
    behind: float = 0.25,
    max_samples: int = 2048,
    seed: int = 0,
) -> EscapePath:
    """Mean time in which SGD gets from the present weights over the barrier on the straight line to other weights.

    Loss, slope and directional noise are measured on the line and go into `gaugefix.theory.passage_steps`, so that
    neither the form of the loss nor that of the noise is assumed. The line is one way out: its barrier is an upper
    bound, and motion across it is left out.

    Args:
        task: gives model, loss, data and settings of SGD; its present weights are the start, best a minimum.
        target: the other weights by name, such as another checkpoint's ``state_dict()``.
        n_points: places on the line.
        behind: how far the line goes back beyond the start, as a fraction of its length.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The path. Cost: 3 forward passes over the data per point.

    Raises:
        MeasurementError: if the optimiser is not SGD without momentum, or ``target`` is missing a parameter or equals
            the present weights.

    Source: arXiv 2105.09557 (P7).

    Example:
        >>> class Well(torch.nn.Module):  # a minimum at w = 1 and one at −1
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.ones(1))
        >>> noise = torch.tensor([-1.0, 1.0])
        >>> task = Task(Well(), lambda m, b: (m.w**2 - 1) ** 2 / 4 + b * m.w, lambda: [noise],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> found = escape_along_path(task, {"w": -torch.ones(1)})
        >>> found.valid, round(found.barrier, 3), found.noise.round(3).tolist()[0]
        (True, 0.25, 0.5)
    """
    plain_sgd_only(task, "escape_along_path")
    copy = exact_copy(task)
    start = {k: p.detach().clone() for k, p in trainable(copy.model).items()}
    missing = [k for k in start if k not in target]
    if missing:
        raise MeasurementError(f"escape_along_path: the target has no {missing[0]!r}.")
    line = {k: target[k].detach().to(p) - p for k, p in start.items()}
    length = sum(float(v.square().sum()) for v in line.values()) ** 0.5
    if not length > 0:
        raise MeasurementError("escape_along_path: the target equals the present weights.")
    unit = {k: v / length for k, v in line.items()}
    first = -int(np.ceil(behind * (n_points - 1)))
    s = np.arange(first, n_points) / (n_points - 1) * length
    rows = np.array([_at(copy, start, unit, float(x), max_samples, seed) for x in s])
    loss, data_loss, slope, noise = rows.T
    origin = -first
    top = origin + int(np.argmax(loss[origin:]))
    barrier = float(loss[top] - loss[origin])
    reason = ""
    if top in {origin, len(s) - 1} or barrier <= 0:
        reason = "no barrier on the line: the loss is highest at one of its ends"
    elif noise.min() <= _FLAT * noise.max():
        reason = "the noise vanishes on the line: a saddle at which it does holds SGD for other reasons (lyapunov)"
    end = float(s[min(2 * top - origin, len(s) - 1)])
    steps = float("nan") if reason else passage_steps(s, slope, noise, task.lr, 0.0, end)
    return EscapePath(s, loss, data_loss, slope, noise, barrier, top, steps, not reason, reason)


def _at(
    task: Task, start: dict[str, Tensor], unit: dict[str, Tensor], s: float, max_samples: int, seed: int
) -> tuple[float, float, float, float]:
    """Loss, data loss, slope and noise at one place."""
    point = {k: p + s * unit[k] for k, p in start.items()}
    with torch.no_grad():
        for k, p in trainable(task.model).items():
            p.copy_(point[k])
    operator = NoiseOperator(task, max_samples=max_samples, seed=seed)
    slopes = operator.slopes(unit).double()
    data = float(operator.losses().mean())
    decay = task.weight_decay
    penalty = decay / 2 * sum(float(p.square().sum()) for p in point.values())
    pull = decay * sum(float((p * unit[k]).sum()) for k, p in point.items())
    noise = float(slopes.var(correction=0)) / task.batch_size
    return data + penalty, data, float(slopes.mean()) + pull, noise
