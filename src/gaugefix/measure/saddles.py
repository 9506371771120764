"""Which kind of critical point a mirror plane holds: can gradient noise push SGD off it, or does it only multiply?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from gaugefix.measure.classes import exact_copy
from gaugefix.measure.curvature import o_hessian
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import Directions, TangentPath, as_mirror, plain_sgd_only
from gaugefix.task import Task

_TYPE_2 = 1e-5


@dataclass(frozen=True)
class SaddleType(Record):
    """The critical point that a model has on a plane, after it was projected there.

    Attributes:
        name: of the plane.
        kind: "type I", where the noise has a part normal to the plane and kicks SGD off; "type II", where that part is
            zero for every batch, so that noise multiplies the distance and can hold SGD there (the Lyapunov exponent
            decides); "minimum" if no normal direction goes down; "not critical" if the point moves along the plane.
        type2_residual: largest ‖Oᵀ∇ℓ_B‖/‖∇ℓ_B‖ over the batches; rounding at type II.
        stationarity: relative force along the plane.
        lambda_min: lowest eigenvalue of the O-block of the penalised loss.
        residual: of that eigenvalue.
        distance: relative distance of the model to the plane before it was projected.
    """

    name: str
    kind: str
    type2_residual: float
    stationarity: float
    lambda_min: float
    residual: float
    distance: float


def saddle_type(
    task: Task, directions: Directions, *, tolerance: float = 1e-2, max_samples: int = 2048, seed: int = 0
) -> SaddleType:
    """Type of the critical point on the plane Oᵀθ = 0, from the gradients of single batches and the O-block.

    Args:
        task: gives model, loss, data and settings of SGD; nothing of it is changed.
        directions: a mirror from `Symmetry.mirrors`, or a matrix ``(P, k)`` whose columns span the normal space, over
            the stacked trainable parameters.
        tolerance: largest relative force ‖∇L + λθ‖ at which the point counts as critical.
        max_samples: for the O-block, stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The type. Cost: one Hessian-vector product per batch, and `o_hessian`.

    Raises:
        MeasurementError: if the optimiser is not SGD, or a gradient is not finite.

    Source: arXiv 2303.13093 (type-I and type-II saddles).

    Example:
        >>> import torch
        >>> class Product(torch.nn.Module):  # f = u·w, at its origin
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.uw = torch.nn.Parameter(torch.zeros(2))
        >>> task = Task(Product(), lambda m, y: (m.uw.prod() - y) ** 2 / 2, lambda: torch.tensor([[2.0], [-1.0]]),
        ...             lr=0.6, weight_decay=0.0, batch_size=1)
        >>> found = saddle_type(task, torch.eye(2))
        >>> found.kind, found.lambda_min  # −E y
        ('type II', -0.5)
    """  # noqa: DOC502
    plain_sgd_only(task, "The type of a saddle", momentum=True)
    mirror = as_mirror(directions, task)
    path = TangentPath(task, mirror, frozen=True, seed=seed)
    stationarity = path.stationarity()
    for _ in exact_copy(task).batch_iter(seed):
        path.step()
    model = copy.deepcopy(task.model)
    params = {k: p.detach() for k, p in model.named_parameters()}
    for k, projected in mirror.project(params).items():
        params[k].copy_(projected)
    block = o_hessian(replace(task, model=model), mirror, n_lowest=1, max_samples=max_samples, seed=seed)
    lowest = block.lambda_min + task.weight_decay
    if stationarity > tolerance:
        kind = "not critical"
    elif lowest > 0:
        kind = "minimum"
    else:
        kind = "type I" if path.type2_residual > _TYPE_2 else "type II"
    return SaddleType(mirror.name, kind, path.type2_residual, stationarity, lowest, block.residual, path.distance)
