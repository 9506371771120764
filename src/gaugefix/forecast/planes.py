"""Forecast of a mirror plane by the block of the Hessian normal to it."""

from __future__ import annotations

import numpy as np

from gaugefix.forecast.results import MirrorForecast
from gaugefix.measure import HessianOperator, exact_copy, o_hessian
from gaugefix.symmetry import DenseMirror, Mirror
from gaugefix.task import Task
from gaugefix.theory import critical_decay, growth_rates

#: largest force along the plane, relative to the decay, at which the point counts as stationary
_STATIONARY = 0.1


def critical_weight_decay(
    task: Task, mirror: Mirror | DenseMirror, *, max_samples: int = 2048, seed: int = 0
) -> MirrorForecast:
    """Weight decay above which a mirror plane is locally stable, λ_c = max(0, −λ_min(H_O)) (arXiv 2309.16932).

    The theorem is about the stationary point of the penalised loss on the plane. The block is taken at the projection
    of the model onto the plane; ``stationarity`` says how far that is from such a point.

    Args:
        task: gives model, loss, data and optimiser; nothing of it is changed.
        mirror: from `Symmetry.mirrors`.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The threshold in both conventions. Cost: k HVPs for k normal coordinates, Lanczos above 500.
    """
    copy = exact_copy(task)
    params = dict(copy.model.named_parameters())
    detached = {k: p.detach().clone() for k, p in params.items()}
    projected = mirror.project(detached)
    for k, p in params.items():
        p.data.copy_(projected[k])
    operator = HessianOperator(copy, max_samples=max_samples, seed=seed)
    block = o_hessian(copy, mirror, operator=operator)
    decay = task.weight_decay
    pull = operator.gradient()
    force = sum(float((g + decay * projected[k]).square().sum()) for k, g in pull.items()) ** 0.5
    scale = decay * sum(float(projected[k].square().sum()) for k in pull) ** 0.5
    stationarity = force / scale if scale > 0 else float("inf")
    rates = np.sort(growth_rates(block.eigenvalues, lr=task.lr, weight_decay=decay))[::-1]
    critical = critical_decay(block.eigenvalues)
    reason = _mirror_limits(task, stationarity)
    return MirrorForecast(
        mirror.name,
        critical,
        critical / 2,
        block.lambda_min,
        rates,
        decay > critical,
        mirror.distance(detached),
        stationarity,
        block.residual,
        not reason,
        reason,
    )


def _mirror_limits(task: Task, stationarity: float) -> str:
    if task.optimizer != "sgd":
        return f"{task.optimizer} is not gradient descent on the penalised loss"
    if stationarity > _STATIONARY:
        return f"not at a stationary point on the plane: the residual force is {stationarity:.2g} of the decay"
    return ""
