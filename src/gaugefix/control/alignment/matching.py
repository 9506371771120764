"""Matching the units of two networks in one gauge: assignments, signs and rotations that raise their inner product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gaugefix.control.gauges.signs import SignGroup, best_signs, flip, odd_slices
from gaugefix.control.state import State, flat_positions
from gaugefix.symmetry import Slice
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation

_MAX_SIGNS = 3
_MAX_SWEEPS = 200


@dataclass(frozen=True, eq=False)
class Matcher:
    """The discrete and orthogonal part of a symmetry group, and the target to be matched.

    Attributes:
        target: all tensors of the network whose coordinates are wanted.
        permutations: of units, heads, channels.
        signs: sign flips.
        rotations: linear classes in balanced form, on which only rotations are left.
    """

    target: State
    permutations: Sequence[Permutation]
    signs: Sequence[Diagonal]
    rotations: Sequence[Rotation]
    _inside: dict[str, list[Rotation]] = field(default_factory=dict)
    _patterns: dict[str, list[list[tuple[Diagonal, int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find rotations inside the units of a class (those of a head), and sign flips of the same units."""
        for p in self.permutations:
            self._inside[p.name] = [r for r in self.rotations if self._is_inside(r, p)]
            own = [s for s in self.signs if self._same_units(s, p)][:_MAX_SIGNS]
            self._patterns[p.name] = [list(zip(own, c, strict=True)) for c in product((1, -1), repeat=len(own))]

    def objective(self, state: State) -> float:
        """⟨target, state⟩ over all tensors that some group moves."""
        names = {n for g in (*self.permutations, *self.signs, *self.rotations) for n in g.parameters}
        return sum(float((self.target[n] * state[n]).sum()) for n in names)

    def climb(
        self, state: State, generator: torch.Generator, *, fixed: frozenset[str] = frozenset()
    ) -> tuple[State, float, int]:
        """Sweep over the classes in random order until no step raises the inner product.

        Args:
            state: where to start.
            generator: of the orders.
            fixed: names of permutations that stay as they are.

        Returns:
            The state, the inner product and the number of sweeps.
        """
        best = self.objective(state)
        steps = [*(p for p in self.permutations if p.name not in fixed), *self.signs, *self.rotations]
        sweep = 0
        while sweep < _MAX_SWEEPS:
            sweep += 1
            start = best
            for k in [-1, *torch.randperm(len(steps), generator=generator).tolist()]:
                moved = self._step(state, steps[k]) if k >= 0 else self._flip_together(state)
                value = self.objective(moved)
                if value > best:
                    state, best = moved, value
            if best <= start + 1e-12 * abs(start):
                break
        return state, best, sweep

    def _flip_together(self, state: State) -> State:
        """All signs at once: they depend on each other, and the largest products with the target decide."""
        groups: list[SignGroup] = [*self.signs, *self.rotations]
        products = {n: self.target[n] * t for n, t in state.items()}
        for group, signs in zip(groups, best_signs(products, groups), strict=True):
            state = flip(state, group, signs)
        return state

    def _step(self, state: State, group: Permutation | Diagonal | Rotation) -> State:
        if isinstance(group, Permutation):
            return self._assign(state, group)
        if isinstance(group, Diagonal):
            return flip(state, group, torch.where(self._inner(state, group) < 0, -1.0, 1.0))
        units = group._class()
        overlap = torch.zeros(units.fibers, units.size, units.size, dtype=torch.float64)
        for s in units.slices:
            overlap += _blocks(self.target, s) @ _blocks(state, s).transpose(1, 2)
        u, _, vt = torch.linalg.svd(overlap)
        return group.apply(state, u @ vt)

    def _inner(self, state: State, group: Diagonal) -> Tensor:
        total = torch.zeros(group._fibers_units, dtype=torch.float64)
        for s in odd_slices(group):
            total += (_blocks(self.target, s) * _blocks(state, s)).sum(2)
        return total

    def _assign(self, state: State, group: Permutation) -> State:
        """The best assignment for one class, with the best signs and rotations of its units, the others as they are."""
        scores, chosen = self._scores(state, group)
        order = assign(-scores)
        state = group.apply(state, order)
        rows = torch.arange(order.shape[1])
        picked = torch.stack([chosen[a, rows, order[a]] for a in range(len(order))])
        for k in range(len(self._patterns[group.name][0])):
            signs = torch.tensor([[pattern[k][1] for pattern in self._patterns[group.name]]], dtype=torch.float64)
            state = flip(state, self._patterns[group.name][0][k][0], signs[0][picked])
        for r in self._inside[group.name]:
            state = self._step(state, r)
        return state

    def _scores(self, state: State, group: Permutation) -> tuple[Tensor, Tensor]:
        """Inner product of every pair of units, the best over their signs and rotations, and the best sign pattern."""
        units, inside = group._class(), self._inside[group.name]
        covered = _mask(inside, state)
        parts = []
        for s in units.slices:
            free = _blocks(covered, s)[:1, :1] < 0.5 if s.param in covered else None
            a, b = _blocks(self.target, s), _blocks(state, s)
            if free is not None:
                a, b = a * free, b * free
            parts.append(a @ b.transpose(1, 2))
        patterns = self._patterns[group.name]
        stacked = torch.stack(
            [sum((_sign(s, pattern) * m for s, m in zip(units.slices, parts, strict=True)), parts[0] * 0)
             for pattern in patterns]
        )  # fmt: skip
        scores, chosen = stacked.max(0)
        for r in inside:
            scores = scores + self._nuclear(state, r).reshape(scores.shape)
        return scores, chosen

    def _nuclear(self, state: State, r: Rotation) -> Tensor:
        """Σ singular values of the overlap of every pair of fibers: the inner product after the best rotation."""
        units = r._class()
        a = torch.cat([_blocks(self.target, s) for s in units.slices], dim=2)
        b = torch.cat([_blocks(state, s) for s in units.slices], dim=2)
        total: Tensor = torch.linalg.svdvals(torch.einsum("iax,jbx->ijab", a, b)).sum(-1)
        return total

    def _is_inside(self, r: Rotation, p: Permutation) -> bool:
        """Whether each fiber of a rotation lies in one unit of a permutation, in the same order."""
        inner, outer = r._class(), p._class()
        if outer.fibers != 1 or inner.fibers != outer.size:
            return False
        where: dict[str, np.ndarray] = {}
        for s in outer.slices:
            owner = where.setdefault(s.param, np.full(self.target[s.param].numel(), -1))
            owner[flat_positions(s, self.target[s.param])[0]] = np.arange(outer.size)[:, None]
        for s in inner.slices:
            at = flat_positions(s, self.target[s.param]).reshape(inner.fibers, -1)
            if s.param not in where or (where[s.param][at] != np.arange(inner.fibers)[:, None]).any():
                return False
        return True

    def _same_units(self, s: Diagonal, p: Permutation) -> bool:
        units = p._class()
        same = s.units is not None and s.units.name == units.name
        return same and s._fibers_units == (units.fibers, units.size)


def assign(cost: Tensor) -> Tensor:
    """The assignment of least cost in every fiber (Hungarian method): row i gets column ``out[a, i]``.

    Args:
        cost: ``(fibers, n, n)``.

    Returns:
        ``(fibers, n)``.
    """
    return torch.stack([torch.from_numpy(linear_sum_assignment(c.numpy())[1]) for c in cost])


def signature_start(target: State, state: State, permutations: Sequence[Permutation]) -> State:
    """Match every class by what no other permutation and no sign can change: the sorted magnitudes in each slice.

    Args:
        target: all tensors of the network whose coordinates are wanted.
        state: of the other one.
        permutations: the classes.

    Returns:
        The permuted state. Of a permuted copy it is the original, whatever the coupling between the classes.
    """
    orders = []
    for p in permutations:
        cost: Tensor | float = 0.0
        for s in p._class().slices:
            a, b = (_blocks(t, s).abs().sort(dim=2).values for t in (target, state))
            cost = cost + torch.cdist(a, b).square()
        assert isinstance(cost, Tensor)
        orders.append(assign(cost))
    for p, order in zip(permutations, orders, strict=True):
        state = p.apply(state, order)
    return state


def random_start(state: State, permutations: Sequence[Permutation], generator: torch.Generator) -> State:
    """Every class in a random order."""
    for p in permutations:
        state = p.apply(state, p.sample(generator))
    return state


def _blocks(tensors: State, s: Slice) -> Tensor:
    """``(fibers, units, entries)``."""
    return s.take(tensors[s.param]).reshape(*s.index.shape[:2], -1)


def _mask(rotations: Sequence[Rotation], state: State) -> State:
    """1 where an entry belongs to some rotation."""
    out: State = {}
    for r in rotations:
        for s in r._class().slices:
            mark = out.get(s.param, torch.zeros_like(state[s.param]))
            out[s.param] = s.put(mark, torch.ones_like(s.take(mark)))
    return out


def _sign(s: Slice, pattern: Sequence[tuple[Diagonal, int]]) -> int:
    """The sign that a slice gets in a pattern of flips."""
    total = 1
    for group, sign in pattern:
        if any(o.param == s.param and o.dim == s.dim and np.array_equal(o.index, s.index) for o in odd_slices(group)):
            total *= sign
    return total
