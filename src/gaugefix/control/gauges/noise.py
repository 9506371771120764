"""The point of least gradient noise on the orbit: the noise equilibrium, found with gradients at each new point."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gaugefix.control.gauges.balance import Balanced, best_scale, side_energies, stacked
from gaugefix.control.gauges.matrices import geometric_mean_map, spd_power
from gaugefix.control.state import State, write_state
from gaugefix.errors import ControlError
from gaugefix.measure import exact_copy
from gaugefix.symmetry import Symmetry
from gaugefix.symmetry.groups import Diagonal, Rotation
from gaugefix.task import Task

_ROUNDS = 8
_GOAL = 1e-6
_STATISTICAL = 0.05


def balance_noise(
    task: Task, state: State, groups: Sequence[Symmetry], *, max_batches: int = 64, seed: int = 0
) -> Balanced:
    """Equal second moments of the minibatch gradient on the two sides of every group.

    Gradients are contravariant: where a slice is multiplied by e^(qc) its gradient is divided by it, so that
    E‖ĝ‖² along the orbit is Σ_q G_q e^(−2qc), and its minimum has a closed form for each group
    (arXiv 2402.07193, orbit theorem). Groups share parameters, so that the gradients are taken anew after a round.

    Args:
        task: gives loss and batches; not changed.
        state: where to start.
        groups: two-sided rescalings and general linear groups.
        max_batches: minibatches per round.
        seed: of the data order; the same in every round.

    Returns:
        The balanced point.

    Raises:
        ControlError: if a gradient is not finite.
    """  # noqa: DOC502
    if not groups:
        return Balanced(dict(state), 0.0, 0, True, 0)
    clone = exact_copy(replace(task, model=copy.deepcopy(task.model)))
    residual, unbounded, rounds = float("inf"), 0, 0
    best = (residual, state)
    for rounds in range(1, _ROUNDS + 1):
        write_state(clone.model, state)
        gradients = _gradients(clone, max_batches, seed)
        residual, unbounded, moved = _round(state, gradients, groups)
        if residual < best[0]:
            best = (residual, state)
        if residual < _GOAL or rounds == _ROUNDS:
            break
        state = moved
    return Balanced(best[1], best[0], rounds, best[0] < _STATISTICAL, unbounded)


def _gradients(task: Task, max_batches: int, seed: int) -> list[State]:
    """Gradients of the mean loss of minibatches, without weight decay."""
    params = {n: p for n, p in task.model.named_parameters()}
    for p in params.values():
        p.requires_grad_(True)
    out: list[State] = []
    for batch in task.batch_iter(seed):
        loss = task.loss(task.model, batch).mean()
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        if not all(bool(torch.isfinite(g).all()) for g in found):
            raise ControlError(f"rebalance_: a gradient of task {task.name!r} is not finite.")
        out.append({n: g.detach().double().cpu() for n, g in zip(params, found, strict=True)})
        if len(out) == max_batches:
            break
    return out


def _round(state: State, gradients: list[State], groups: Sequence[Symmetry]) -> tuple[float, int, State]:
    """One exact step per group; the gradients follow. The residual is that before the round."""
    residual, unbounded = 0.0, 0
    for group in groups:
        if isinstance(group, Diagonal):
            energies: dict[float, Tensor] = {}
            for g in gradients:
                for q, e in side_energies(g, group, {}).items():
                    energies[-q] = energies[-q] + e if -q in energies else e
            c, idle = best_scale(energies)
            c = group._centre(c)
            forces = torch.stack([q * e for q, e in energies.items()]).sum(0)
            total = torch.stack([abs(q) * e for q, e in energies.items()]).sum(0).clamp_min(1e-300)
            if group.mean_zero:
                residual = max(residual, float(group._centre(forces).abs().max() / total.max()))
            else:
                residual = max(residual, float(torch.where(idle, 0.0, forces.abs() / total).max()))
            unbounded += int(idle.sum())
            state = group.apply(state, c)
            gradients = [group.apply(g, -c) for g in gradients]
        elif isinstance(group, Rotation):
            left, maps = _matrix_step(gradients, group)
            residual = max(residual, left)
            state = group.apply(state, maps)
            dual = torch.linalg.inv(maps).transpose(1, 2)
            gradients = [group.apply(g, dual) for g in gradients]
    return residual, unbounded, state


def _matrix_step(gradients: list[State], group: Rotation) -> tuple[float, Tensor]:
    """A = S^½ with S K S = P, for the moments P of the gradients on the plus side and K on the other."""
    n = group._class().size
    moments = []
    for sign in (1, -1):
        parts = [stacked(g, group, sign, {}) for g in gradients]
        total = torch.stack([p @ p.transpose(1, 2) for p in parts]).sum(0)
        ridge = 1e-8 * total.diagonal(dim1=1, dim2=2).sum(1) / n
        moments.append(total + ridge[:, None, None].clamp_min(1e-300) * torch.eye(n, dtype=total.dtype))
    plus, minus = moments
    scale = (plus.norm(dim=(1, 2)) + minus.norm(dim=(1, 2))).clamp_min(1e-300)
    residual = float(((plus - minus).norm(dim=(1, 2)) / scale).max())
    maps = torch.stack([spd_power(geometric_mean_map(k, p), 0.5) for p, k in zip(plus, minus, strict=True)])
    return residual, maps
