"""What kind of point is this? A minimum, a saddle that noise expels SGD from, or one at which noise vanishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaugefix.measure.classes import exact_copy
from gaugefix.measure.curvature import o_hessian
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import Directions, TangentPath, as_mirror
from gaugefix.task import Task

_TYPE_2 = 1e-5


@dataclass(frozen=True)
class SaddleType(Record):
    """A point on a plane, seen along its normal directions.

    Attributes:
        kind: "minimum" (along these directions), "type I" (a saddle with gradient noise), "type II" (a saddle at which
            the gradient of every batch vanishes along them), or "not stationary".
        type2_residual: largest ‖Oᵀ∇ℓ_B‖/‖∇ℓ_B‖ over one pass.
        curvature: lowest eigenvalue of the Hessian in the normal directions, weight decay included.
        stationarity: relative force on the plane.
        distance: relative distance of the model to the plane before it was projected.
    """

    kind: Literal["minimum", "type I", "type II", "not stationary"]
    type2_residual: float
    curvature: float
    stationarity: float
    distance: float


def saddle_type(task: Task, directions: Directions, *, tolerance: float = 1e-2, seed: int = 0) -> SaddleType:
    """Classify the projection of a model onto a plane by what its normal directions hold.

    At a type-I saddle noise pushes SGD off. At a type-II saddle there is no noise to do so, and whether SGD leaves is
    decided by a Lyapunov exponent, `gaugefix.measure.lyapunov_exponent`.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        directions: a mirror, an invariant set such as `ZeroNeuron`, or a matrix of normal directions.
        tolerance: largest relative force on the plane at which the point counts as stationary.
        seed: of the data order.

    Returns:
        The kind. Cost: two gradients per batch of one pass, and the Hessian in the normal directions.

    Source: arXiv 2303.13093.

    Example:
        >>> import torch
        >>> class Product(torch.nn.Module):  # f = u·w at its origin
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.uw = torch.nn.Parameter(torch.zeros(2))
        >>> task = Task(Product(), lambda m, y: (m.uw.prod() - y) ** 2 / 2, lambda: iter(torch.tensor([[2.0], [-1.0]])),
        ...             lr=0.6, weight_decay=0.0, batch_size=1)
        >>> found = saddle_type(task, torch.eye(2))
        >>> found.kind, round(found.curvature, 3)
        ('type II', -0.5)
    """
    mirror = as_mirror(directions, task)
    run = TangentPath(task, mirror, frozen=True, seed=seed)
    for batch in task.batch_iter(seed):
        run.follow(run.params, batch, lr=task.lr, weight_decay=task.weight_decay)
    on_plane = exact_copy(task)
    for name, p in trainable(on_plane.model).items():
        p.data.copy_(run.params[name].detach())
    curvature = o_hessian(on_plane, mirror, n_lowest=1).lambda_min + task.weight_decay
    stationarity = run.stationarity()
    distance = mirror.distance({k: p.detach() for k, p in task.model.named_parameters()})
    kind: Literal["minimum", "type I", "type II", "not stationary"]
    if stationarity > tolerance:
        kind = "not stationary"
    elif curvature >= 0:
        kind = "minimum"
    else:
        kind = "type II" if run.type2_residual <= _TYPE_2 else "type I"
    return SaddleType(kind, run.type2_residual, curvature, stationarity, distance)
