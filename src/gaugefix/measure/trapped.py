"""Has the run converged, or is it held at a saddle or a maximum by its own noise?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from gaugefix.errors import MeasurementError
from gaugefix.measure.extremes import hessian_extremes
from gaugefix.measure.noise_operator import NoiseOperator
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Task
from gaugefix.theory import escape_exponent

_TYPE_2 = 1e-3


@dataclass(frozen=True)
class TrappedPoint(Record):
    """What minibatch noise does along one direction at a point.

    Attributes:
        curvature: vᵀHv of the mean loss, weight decay included; negative at a saddle or maximum.
        value: Λ = E log|1 − lr·(h_B + λ)|; negative: SGD is held, whatever the sign of the curvature.
        stderr: its standard error.
        verdict: "collapses" (held), "escapes" or "undecided".
        trapped: whether SGD is held at a point that is no minimum.
        critical_lr: learning rate from which on it is held; 0 at a minimum, inf if there is none.
        critical_batch: batch size above which it is no longer held, to second order.
        noise_distance: distance at which the noise of the curvature equals that of the gradient; the exponent decides
            only where a deviation is larger.
        valid: whether the gradients of single samples vanish along v, relative to the size of the weights.
        reason: why not, or "".
    """

    curvature: float
    value: float
    stderr: float
    verdict: str
    trapped: bool
    critical_lr: float
    critical_batch: float
    noise_distance: float
    valid: bool
    reason: str


def directional_curvature(
    task: Task | NoiseOperator, direction: Mapping[str, Tensor], *, max_samples: int = 2048, seed: int = 0
) -> Float[np.ndarray, " n"]:
    """Second derivative of every sample's loss along a direction, vᵀH_iv.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        direction: tangent vector by parameter name (missing ones are zero), not normalised.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        ``(n,)``, without weight decay. Cost: 4 forward passes.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0] ** 2, lambda: [x],
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> directional_curvature(task, {"weight": torch.ones(1, 1)})
        array([ 2., 18.])
    """
    operator = task if isinstance(task, NoiseOperator) else NoiseOperator(task, max_samples=max_samples, seed=seed)
    like = next(iter(operator.params.values()))
    zero, one = like.new_zeros(()), like.new_ones(())

    def slope(t: Tensor) -> Tensor:
        return jvp(lambda u: operator.losses_along(direction, u), (t,), (one,))[1]  # type: ignore[no-any-return]

    return np.asarray(jvp(slope, (zero,), (one,))[1].detach().double().cpu().numpy())


def trapped_point_test(
    task: Task,
    direction: Mapping[str, Tensor] | None = None,
    *,
    batches: int = 4000,
    max_samples: int = 2048,
    seed: int = 0,
) -> TrappedPoint:
    """Is SGD held here by noise? The exponent of the most negative direction of curvature.

    A tiny gradient and weights at rest do not tell a minimum from a saddle at which a large learning rate and a small
    batch hold SGD. The exponent does, along one direction: it is exact where the Hessians of batches commute, otherwise
    see `gaugefix.measure.lyapunov_exponent`.

    Args:
        task: gives model, loss, data and settings of SGD; nothing of it is changed.
        direction: along which; by default the eigenvector of the lowest eigenvalue of the Hessian.
        batches: number of minibatches, drawn with replacement from the samples' curvatures.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the draws.

    Returns:
        The verdict; lower the learning rate or raise the batch size where ``trapped``. Cost: a few tens of
        Hessian-vector products and 6 forward passes.

    Raises:
        MeasurementError: if the optimiser is not SGD, or the direction is zero.

    Source: arXiv 2107.11774, 2303.13093 (L1).

    Example:
        >>> import torch
        >>> class Maximum(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(1))
        >>> x = torch.tensor([0.9, -1.0])
        >>> task = Task(Maximum(), lambda m, b: b * m.w**2 / 2 + m.w**4 / 4, lambda: [x],
        ...             lr=0.5, weight_decay=0.0, batch_size=1)
        >>> found = trapped_point_test(task)
        >>> round(found.curvature, 3), found.trapped, round(found.critical_lr, 2)
        (-0.05, True, 0.11)
    """
    plain_sgd_only(task, "trapped_point_test", momentum=True)
    if direction is None:
        direction = hessian_extremes(task, which="SA", max_samples=max_samples, seed=seed).tangents()[0]
    norm = sum(float(v.double().square().sum()) for v in direction.values()) ** 0.5
    if not norm > 0:
        raise MeasurementError("trapped_point_test: the direction is zero.")
    unit = {k: v / norm for k, v in direction.items()}
    operator = NoiseOperator(task, max_samples=max_samples, seed=seed)
    each, slopes = directional_curvature(operator, unit), operator.slopes(unit).double().cpu().numpy()
    rng = np.random.default_rng(seed)
    # every sample equally often: a mean curvature near zero must not drown in the scatter of the draws
    passes = math.ceil(batches * task.batch_size / len(each))
    drawn = rng.permutation(np.tile(np.arange(len(each)), passes))[: batches * task.batch_size].reshape(batches, -1)
    found = escape_exponent(each[drawn].mean(1), task.lr, task.weight_decay, task.momentum, seed=seed)
    single = escape_exponent(each, task.lr, task.weight_decay)
    scale = math.sqrt(float((each**2).mean()))
    distance = math.sqrt(float((slopes**2).mean())) / scale if scale > 0 else math.inf
    size = sum(float(p.double().square().sum()) for p in operator.params.values()) ** 0.5
    curvature = float(each.mean()) + task.weight_decay
    valid = distance <= _TYPE_2 * max(size, 1.0)
    reason = (
        ""
        if valid
        else (
            f"the gradients of single samples do not vanish along this direction: within {distance:.2g} of the point "
            "their noise expels SGD, and the exponent does not decide"
        )
    )
    return TrappedPoint(
        curvature=curvature,
        value=found.value,
        stderr=found.stderr,
        verdict=found.verdict if valid else "undecided",
        trapped=valid and curvature < 0 and found.verdict == "collapses",
        critical_lr=float(found.lr_window[0]),
        critical_batch=single.critical_batch,
        noise_distance=distance,
        valid=valid,
        reason=reason,
    )
