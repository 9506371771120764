"""The point of least norm on the orbit of the rescalings and general linear groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gaugefix.control.gauges.matrices import balanced_pair, nearest_turn
from gaugefix.control.state import State, flat_positions
from gaugefix.symmetry import Symmetry
from gaugefix.symmetry.groups import Diagonal, Rotation

Weights = Mapping[str, float]
_ROUNDING = 1e-14


@dataclass(frozen=True, eq=False)
class Balanced:
    """A state of least weighted norm.

    Attributes:
        state: the point.
        residual: largest relative difference of the two sides that is left, 0 at the minimum.
        sweeps: passes over the groups.
        converged: whether the residual is below 1e-10.
        unbounded: units or directions with one side at zero, for which no balanced point exists; they are left alone.
        elements: what was applied, by name of the group: log-scales, or matrices (nan where a fiber lost directions).
    """

    state: State
    residual: float
    sweeps: int
    converged: bool
    unbounded: int
    elements: dict[str, Tensor] = field(default_factory=dict)


def why_not_balanced(symmetry: Symmetry, state: State) -> str:
    """Why a group has no balanced point, or "".

    Args:
        symmetry: any symmetry.
        state: for shapes.

    Returns:
        A reason for people.
    """
    if isinstance(symmetry, Diagonal):
        if symmetry.kind != "scale":
            return "a sign flip moves no norm"
        signs = {np.sign(q) for _, q in symmetry.charges}
        return "" if signs >= {-1.0, 1.0} else "scale invariance: every norm gives the same function, none is balanced"
    if isinstance(symmetry, Rotation):
        if symmetry.orthogonal:
            return "orthogonal: it keeps every norm"
        if {-1, 1} - set(symmetry.polarity):
            return "one side only: nothing to balance against"
        seen: dict[str, set[int]] = {}
        for s in symmetry._class().slices:
            entries = set(flat_positions(s, state[s.param]).ravel().tolist())
            if entries & seen.setdefault(s.param, set()):
                return f"it acts on two sides of {s.param}"
            seen[s.param] |= entries
        return ""
    return f"{type(symmetry).__name__} has no two sides"


def balance_norms(
    state: State, groups: Sequence[Symmetry], weights: Weights | None = None, *, max_sweeps: int = 500,
    principal: bool = False,
) -> Balanced:  # fmt: skip
    """Minimise Σ_p w_p ‖θ_p‖² over the orbit of rescalings and general linear groups, by exact minimisation per group.

    The problem is convex along the orbit, so that the minimum is unique up to permutations, signs and rotations
    (Kempf and Ness 1979), whatever the starting point.

    Args:
        state: all tensors by name.
        groups: those with `why_not_balanced` = "".
        weights: w_p by name; default 1.
        max_sweeps: upper limit.
        principal: leave every general linear class in its principal axes instead of as close as possible to where it
            was.

    Returns:
        The balanced point.
    """
    if not groups:
        return Balanced(dict(state), 0.0, 0, True, 0)
    residual, unbounded, sweep = 0.0, 0, 0
    elements: dict[str, Tensor] = {}
    while sweep < max_sweeps:
        sweep += 1
        residual, unbounded = 0.0, 0
        for group in groups:
            if isinstance(group, Diagonal):
                state, c, left, idle = _rescale(state, group, weights or {})
                elements[group.name] = elements[group.name] + c if group.name in elements else c
            else:
                assert isinstance(group, Rotation)
                before = stacked(state, group, 1, weights or {})
                state, _, left, idle = rotate_fibers(state, group, weights or {}, principal=principal)
                maps = _maps(before, stacked(state, group, 1, weights or {}))
                elements[group.name] = maps @ elements[group.name] if group.name in elements else maps
            residual, unbounded = max(residual, left), unbounded + idle
        if residual < 1e-13:
            break
    return Balanced(state, residual, sweep, residual < 1e-10, unbounded, elements)


def side_energies(tensors: Mapping[str, Tensor], group: Diagonal, weights: Weights) -> dict[float, Tensor]:
    """Weighted squared norm of every unit's slices, by charge: ``(fibers, n)`` each."""
    energies: dict[float, Tensor] = {}
    for s, q in group.charges:
        block = s.take(tensors[s.param])
        energy = weights.get(s.param, 1.0) * block.square().reshape(*block.shape[:2], -1).sum(-1)
        energies[q] = energies[q] + energy if q in energies else energy
    return energies


def best_scale(energies: Mapping[float, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-scales c that minimise Σ_q E_q e^(2qc) for every unit, and the mask of units for which there is none.

    Args:
        energies: E_q by charge q.

    Returns:
        c, 0 where one side vanishes, and that mask.
    """
    like = next(iter(energies.values()))

    def sides(c: Tensor) -> list[tuple[Tensor, Tensor]]:
        out = []
        for sign in (1.0, -1.0):
            parts = [(abs(q), e * torch.exp(2 * q * c)) for q, e in energies.items() if q * sign > 0]
            total = torch.stack([q * e for q, e in parts]).sum(0)
            slope = torch.stack([2 * q * q * e for q, e in parts]).sum(0)
            out.append((total, slope))
        return out

    (plus, _), (minus, _) = sides(torch.zeros_like(like))
    idle = (plus <= 0) | (minus <= 0)
    c = torch.zeros_like(like)
    for _ in range(60):  # Newton for log(plus) = log(minus), whose slope is bounded from both sides
        (plus, slope_plus), (minus, slope_minus) = sides(c)
        gap = torch.where(idle, 0.0, torch.log(plus) - torch.log(minus))
        step = gap / torch.where(idle, 1.0, slope_plus / plus + slope_minus / minus)
        c = c - step
        if float(step.abs().max()) < 1e-15:
            break
    return c, idle


def _rescale(state: State, group: Diagonal, weights: Weights) -> tuple[State, Tensor, float, int]:
    energies = side_energies(state, group, weights)
    c, idle = best_scale(energies)
    c = group._centre(c)
    forces = torch.stack([q * e for q, e in energies.items()]).sum(0)
    total = torch.stack([abs(q) * e for q, e in energies.items()]).sum(0)
    if group.mean_zero:
        residual = float(group._centre(forces).abs().max() / total.max().clamp_min(1e-300))
    else:
        residual = float(torch.where(idle, 0.0, forces.abs() / total.clamp_min(1e-300)).max())
    if residual < _ROUNDING:
        return state, torch.zeros_like(c), residual, int(idle.sum())
    before = _energy(state, group, weights)
    for _ in range(30):  # units may share entries (a square weight on its own axis): then a full step overshoots
        moved = group.apply(state, c)
        if _energy(moved, group, weights) <= before * (1 + 1e-15):
            return moved, c, residual, int(idle.sum())
        c = c / 2
    return state, torch.zeros_like(c), residual, int(idle.sum())


def _maps(before: Tensor, after: Tensor) -> Tensor:
    """The matrices with after = A·before, ``(fibers, n, n)``; nan where ``before`` or ``after`` is singular."""
    maps = after @ torch.linalg.pinv(before)
    whole = torch.linalg.matrix_rank(maps) == maps.shape[1]
    return torch.where(whole[:, None, None], maps, torch.nan)


def _energy(state: State, group: Diagonal, weights: Weights) -> float:
    return sum(weights.get(n, 1.0) * float(state[n].square().sum()) for n in group.parameters)


def stacked(tensors: Mapping[str, Tensor], group: Rotation, sign: int, weights: Weights) -> Tensor:
    """All slices of one polarity side by side, ``(fibers, n, entries)``, each times the root of its weight."""
    units = group._class()
    parts = [
        weights.get(s.param, 1.0) ** 0.5 * s.take(tensors[s.param]).reshape(units.fibers, units.size, -1)
        for s, polarity in zip(units.slices, group.polarity, strict=True)
        if polarity == sign
    ]
    return torch.cat(parts, dim=2)


def unstacked(state: State, group: Rotation, sign: int, matrix: Tensor, weights: Weights) -> State:
    """Undo `stacked`: write the parts back."""
    out, at = dict(state), 0
    for s, polarity in zip(group._class().slices, group.polarity, strict=True):
        if polarity == sign:
            block = s.take(out[s.param])
            width = block[0, 0].numel()
            part = matrix[:, :, at : at + width] / weights.get(s.param, 1.0) ** 0.5
            out[s.param], at = s.put(out[s.param], part.reshape(block.shape)), at + width
    return out


def rotate_fibers(
    state: State, group: Rotation, weights: Weights, *, principal: bool
) -> tuple[State, Tensor, float, int]:
    """Put every fiber of a general linear class at its balanced point.

    A fiber whose product has less than full rank has none on its orbit. In principal axes it goes to the limit, where
    the idle directions are zero on both sides; otherwise they must stay trainable, and only the overall scale of the
    two sides is balanced.

    Args:
        state: all tensors.
        group: the class.
        weights: of the parameters.
        principal: in principal axes, or turned as little as possible.

    Returns:
        The new state, the singular values of the products ``(fibers, n)``, the largest relative difference of the two
        sides before, and the number of directions without a balanced point.
    """
    plus, minus = (stacked(state, group, sign, weights) for sign in (1, -1))
    news, worst, idle = [], 0.0, 0
    for a, b in zip(plus, minus, strict=True):
        new_a, new_b, values = balanced_pair(a, b)
        missing = int((values == 0).sum())
        if principal:
            news.append((new_a, new_b, values))
            worst = max(worst, _difference(a @ a.T, b @ b.T))
        elif missing:
            norms = float(a.norm()), float(b.norm())
            c = (norms[1] / norms[0]) ** 0.5 if min(norms) > 0 else 1.0
            news.append((c * a, b / c, values))
            worst = max(
                worst, abs(norms[0] ** 2 - norms[1] ** 2) / sum(x * x for x in norms) if min(norms) > 0 else 0.0
            )
            idle += missing
        else:
            turn = nearest_turn(a, new_a)
            news.append((turn @ new_a, turn @ new_b, values))
            worst = max(worst, _difference(a @ a.T, b @ b.T))
    if worst > _ROUNDING or principal:
        state = unstacked(state, group, 1, torch.stack([n[0] for n in news]), weights)
        state = unstacked(state, group, -1, torch.stack([n[1] for n in news]), weights)
    return state, torch.stack([n[2] for n in news]), worst, idle


def _difference(p: Tensor, q: Tensor) -> float:
    return float((p - q).norm() / (p.norm() + q.norm()).clamp_min(1e-300))
