"""T(n): the shift gauges as symmetries, and the numbers that make them act."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.shift_action import ShiftAction
from gaugefix.symmetry.shift_forms import Condition, Source
from gaugefix.symmetry.stream_groups import LastPoint
from gaugefix.symmetry.units import Params


@dataclass(frozen=True, eq=False)
class Shift(Symmetry):
    """T(n): constants added to biases and taken back downstream. Elements: one vector of n numbers.

    Attributes:
        action: carries constants forward.
        sources: the parameters' cells that shift, each with a coefficient, all by the same constants.
        leaves: the indices on which the constants depend.
        sectors: the constants are functions of the leaves of one of these, of zero mean over each.
        conditions: non-empty if the constants must be projected on the null space of these, at θ.
    """

    action: ShiftAction | None = None
    sources: tuple[tuple[Source, float], ...] = ()
    leaves: tuple[Axis, ...] = ()
    sectors: tuple[frozenset[Axis], ...] = ()
    conditions: tuple[Condition, ...] = ()
    _last: LastPoint[Tensor] = field(default_factory=LastPoint, repr=False)

    @property
    def n_generators(self) -> int:
        """One for each number."""
        return self._length

    @property
    def _length(self) -> int:
        if self.conditions:
            assert self.action is not None
            return sum(number_of_constants(self.action, s) for s, _ in self.sources)
        return math.prod(leaf.size for leaf in self.leaves)

    def generator(self, params: Params, k: int) -> dict[str, Tensor]:
        """The k-th constant set to one, to first order."""
        moved = self._moved(params, self.path(k, torch.ones((), dtype=torch.float64)), tangent=True)
        return {n: moved[n] - params[n] for n in self.parameters}

    def generators(self, params: Params) -> dict[str, Tensor]:
        """Every constant set to one, in one batch."""
        moved = [n for n in self.parameters if n in params]

        def act(element: Tensor) -> tuple[Tensor, ...]:
            new = self._moved(params, element, tangent=True)
            return tuple(new[n] - params[n] for n in moved)

        units = torch.eye(self._length, dtype=next(iter(params.values())).dtype)
        return dict(zip(moved, torch.func.vmap(act)(units), strict=True))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Gaussian constants."""
        return torch.randn(self._length, generator=generator, dtype=torch.float64)

    def path(self, k: int, t: Tensor) -> Tensor:
        """The constant t at entry k."""
        if not 0 <= k < self._length:
            raise IndexError(f"{self.name}: generator {k} of {self._length}.")
        unit = torch.zeros(self._length, dtype=t.dtype)
        unit[k] = 1
        return t * unit

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Shift the sources and let the others absorb."""
        return self._moved(params, element)

    def _moved(self, params: Params, element: Tensor, *, tangent: bool = False) -> dict[str, Tensor]:
        assert self.action is not None
        element = element.to(next(iter(params.values())))
        if self.conditions:
            constants = self._projected(params, element)
        else:
            function = self._function(element)
            constants = {s: c * _place(self.action, s, function, self.leaves).to(element) for s, c in self.sources}
        change, _ = self.action.run(params, constants, [], tangent=tangent)
        out = dict(params)
        for name, delta in change.items():
            out[name] = out[name] + delta
        return out

    def _function(self, element: Tensor) -> Tensor:
        """The constants as a function of the leaves, restricted to the sectors that are allowed."""
        full = element.reshape([leaf.size for leaf in self.leaves])
        return sum(_project_sector(full, self.leaves, s) for s in self.sectors)  # type: ignore[return-value]

    def _projected(self, params: Params, element: Tensor) -> dict[Source, Tensor]:
        """The nearest constants in the null space of the conditions at θ."""
        assert self.action is not None
        action, sources = self.action, [s for s, _ in self.sources]
        basis = self._last(params, lambda: _free(condition_matrix(action, sources, self.conditions, params).detach()))
        basis = basis.to(element)
        return _split(self.action, [s for s, _ in self.sources], basis @ (basis.T @ element))


def _free(matrix: Tensor) -> Tensor:
    """Orthonormal columns spanning the null space of conditions."""
    values, right = torch.linalg.svd(matrix, full_matrices=True)[1:]
    free: Tensor = right[int((values > 1e-10 * values[:1]).sum()) :].T
    return free


def _project_sector(full: Tensor, leaves: tuple[Axis, ...], sector: frozenset[Axis]) -> Tensor:
    """The part of a function that depends on exactly the leaves of a sector."""
    for d, leaf in enumerate(leaves):
        mean = full.mean(dim=d, keepdim=True)
        full = full - mean if leaf in sector else mean.expand_as(full)
    return full


def _cell_index(action: ShiftAction, source: Source) -> tuple[list[np.ndarray], list[tuple[Axis, ...]]]:
    """Positions of a cell in every dimension of its parameter, and the leaves of each dimension."""
    value, cell = source
    wanted = action.flow.sources[source]
    layouts = action.flow.classes.cells.layout(value)
    index, leaves = [], []
    for parts, k in zip(layouts, cell, strict=True):
        inside = tuple(leaf for leaf in parts[k].leaves)
        keep = bool(set(inside) & wanted) or parts[k].size == 1
        index.append(parts[k].index.reshape(-1) if keep or len(parts) > 1 else np.arange(1))
        leaves.append(inside if keep else ())
    return index, leaves


def _place(action: ShiftAction, source: Source, function: Tensor, order: tuple[Axis, ...]) -> Tensor:
    """A function of some leaves as a shift of a parameter: its values on the cell, zero elsewhere."""
    value = source[0]
    layouts = action.flow.classes.cells.layout(value)
    index, leaves = _cell_index(action, source)
    shape = [
        value.shape[d] if len(i) > 1 or value.shape[d] == 1 or len(layouts[d]) > 1 else 1 for d, i in enumerate(index)
    ]
    flat_leaves = [leaf for group in leaves for leaf in group]
    expanded = function
    for leaf in flat_leaves:
        if leaf not in order:
            expanded = expanded.unsqueeze(-1)
    names = [*order, *(leaf for leaf in flat_leaves if leaf not in order)]
    sizes = [leaf.size for leaf in flat_leaves]
    block = expanded.permute(
        [names.index(leaf) for leaf in flat_leaves] + [i for i, n in enumerate(names) if n not in flat_leaves]
    )
    block = block.reshape(block.shape[: len(flat_leaves)]).expand(sizes)
    block = block.reshape([math.prod(leaf.size for leaf in group) for group in leaves]).expand([len(i) for i in index])
    out = function.new_zeros(shape)
    out[np.ix_(*index)] = block
    return out


def number_of_constants(action: ShiftAction, source: Source) -> int:
    """How many numbers a source adds: one for each entry of its cell."""
    return math.prod(leaf.size for leaf in action.flow.sources[source])


def _split(action: ShiftAction, sources: list[Source], element: Tensor) -> dict[Source, Tensor]:
    out, at = {}, 0
    for s in sources:
        n = number_of_constants(action, s)
        leaves = tuple(action.flow.sources[s])
        function = element[at : at + n].reshape([leaf.size for leaf in leaves])
        out[s] = _place(action, s, function, leaves)
        at += n
    return out


def condition_matrix(
    action: ShiftAction, sources: list[Source], conditions: tuple[Condition, ...], params: Params
) -> Tensor:
    """The matrix of the conditions on the stacked constants of the sources, at θ."""
    n = sum(number_of_constants(action, s) for s in sources)
    first = next(iter(params.values()))

    def seen(element: Tensor) -> Tensor:
        _, watched = action.run(params, _split(action, sources, element), list(conditions))
        return torch.cat([w.reshape(-1) for w in watched]) if watched else element.new_zeros(0)

    zero = torch.zeros(n, dtype=first.dtype)
    columns = [seen(row) for row in torch.eye(n, dtype=first.dtype)]
    return torch.stack(columns, dim=1) if columns else seen(zero)[:, None]
