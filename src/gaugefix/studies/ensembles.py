"""Many small runs as one tensor: every cell and every seed of an experiment is a member of one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import StudyError

Ensemble = dict[str, Tensor]
MemberLosses = Callable[[Ensemble], Tensor]


def descend(
    losses: MemberLosses, members: Mapping[str, Tensor], *, lr: float, weight_decay: Tensor, steps: int
) -> Ensemble:
    """Full-batch gradient descent of all members at once.

    Args:
        losses: maps the parameters to one loss for each member, ``(*batch,)``.
        members: parameters ``(*batch, *shape)``.
        lr: learning rate.
        weight_decay: λ, broadcast against ``(*batch,)``.
        steps: how many.

    Returns:
        New parameters, detached.
    """
    params = {name: value.detach() for name, value in members.items()}
    with torch.no_grad():
        batch = losses(params).ndim
    decay = {k: weight_decay.reshape(*weight_decay.shape, *[1] * (v.ndim - batch)) for k, v in params.items()}
    for _ in range(steps):
        leaves = {k: v.requires_grad_() for k, v in params.items()}
        gradients = torch.autograd.grad(losses(leaves).sum(), list(leaves.values()))
        with torch.no_grad():
            params = {k: v - lr * (g + decay[k] * v) for (k, v), g in zip(leaves.items(), gradients, strict=True)}
    return params


def map_members(
    change: Callable[[Ensemble, tuple[int, ...]], Ensemble], members: Mapping[str, Tensor], batch: tuple[int, ...]
) -> Ensemble:
    """Apply a function to every member on its own, where what it does cannot be batched.

    Args:
        change: ``change(member, index)`` returns the new parameters of the member at this index of the batch.
        members: parameters ``(*batch, *shape)``; may be empty, to build an ensemble.
        batch: leading dimensions that index the members.

    Returns:
        New parameters ``(*batch, *shape)``.
    """
    changed = [change({k: v[index] for k, v in members.items()}, index) for index in np.ndindex(*batch)]
    return {k: torch.stack([m[k] for m in changed]).reshape(*batch, *changed[0][k].shape) for k in changed[0]}


def polish(
    loss: MemberLosses, params: Mapping[str, Tensor], *, weight_decay: float = 0.0, tolerance: float = 1e-11
) -> Ensemble:
    """Newton steps from near a stationary point of one member to machine precision.

    Args:
        loss: scalar function of the parameters.
        params: of one member, close to the point (after `descend`).
        weight_decay: λ; the point is one of the loss plus (λ/2)‖θ‖².
        tolerance: largest entry of the gradient that counts as zero.

    Returns:
        New parameters.

    Raises:
        StudyError: if the gradient is not below the tolerance after ten steps.

    Cost: one dense Hessian per step; for up to a few hundred parameters.
    """
    shapes = {name: value.shape for name, value in params.items()}

    def unflatten(theta: Tensor) -> Ensemble:
        parts = theta.split([shape.numel() for shape in shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def objective(theta: Tensor) -> Tensor:
        return loss(unflatten(theta)) + weight_decay / 2 * theta.square().sum()

    theta = torch.cat([value.detach().reshape(-1) for value in params.values()])
    for _ in range(10):
        gradient = torch.func.grad(objective)(theta)
        if float(gradient.abs().max()) < tolerance:
            return unflatten(theta)
        theta = theta - torch.linalg.solve(torch.func.hessian(objective)(theta), gradient)
    raise StudyError(f"No stationary point near the start: the gradient is still {gradient.abs().max():.1e}.")
