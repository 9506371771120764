"""T(n): the shift gauges as symmetries, and the numbers that make them act."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from scipy.linalg import null_space
from torch import Tensor

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Product, Record, Sum
from gaugefix.symmetry.shifts import Condition, ShiftFlow, Source
from gaugefix.symmetry.units import Params

#: unknowns up to which conditions that pass through weights are solved numerically
MAX_NUMERIC = 3000


@dataclass(eq=False)
class ShiftAction:
    """Evaluates shifts on actual parameters: constants of the sources in, changes of the parameters out."""

    flow: ShiftFlow
    producers: dict[Value, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the records by what they make."""
        for record in self.flow.classes.cells.lower.records:
            if not isinstance(record, Cut):
                self.producers[record.out.value] = record

    def run(
        self, params: Params, constants: dict[Source, Tensor], watch: list[Condition]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Carry constants forward.

        Args:
            params: all parameters.
            constants: for each source, the shift of the sum it is added to, in the shape of the parameter (size 1
                along dimensions on which it does not depend).
            watch: conditions whose left-hand side is wanted.

        Returns:
            Changes of the parameters by name, and the shift seen by each watched operand.
        """
        flow = self.flow
        own: dict[Value, Tensor] = {}
        for (value, _), c in constants.items():
            own[value] = own[value] + c if value in own else c
        shifts: dict[Value, Tensor] = dict(own)
        change: dict[str, Tensor] = {v.name: c for v, c in own.items()}
        absorbers = {id(r): s for s, r in flow.absorbing.items()}
        for record in flow.classes.cells.lower.records:
            absorber = absorbers.get(id(record))
            if isinstance(record, Sum):
                self._sum(record, shifts, own, change, None if absorber is None else absorber[0])
            elif isinstance(record, Cut):
                self._cut(record, shifts)
            elif isinstance(record, Product):
                self._product(record, shifts, params)
            elif isinstance(record, Norm) and record.bias is not None and record.bias.value in shifts:
                shifts[record.out.value] = relabel(shifts[record.bias.value], record.bias, record.out)
        return change, [_visible(shifts[c.operand.value], c) for c in watch if c.operand.value in shifts]

    def _sum(
        self, record: Sum, shifts: dict[Value, Tensor], own: dict[Value, Tensor], change: dict[str, Tensor],
        absorber: Value | None,
    ) -> None:  # fmt: skip
        arriving = [
            c * relabel(shifts[t.value], t, record.out)
            for t, c in zip(record.terms, record.coefficients, strict=True)
            if t.value in shifts and t.value is not absorber
        ]
        if absorber is None:
            if arriving:
                shifts[record.out.value] = sum(arriving[1:], arriving[0])
            return
        term, c = next((t, c) for t, c in zip(record.terms, record.coefficients, strict=True) if t.value is absorber)
        fixed = own.get(absorber)
        if arriving:
            taken = relabel(sum(arriving[1:], arriving[0]), record.out, term) / c
            change[absorber.name] = -taken if fixed is None else fixed - taken
        if fixed is not None:
            shifts[record.out.value] = c * relabel(fixed, term, record.out)

    def _cut(self, record: Cut, shifts: dict[Value, Tensor]) -> None:
        part, whole = record.out.value, record.whole
        if whole in shifts and part not in shifts:
            t = shifts[whole]
            shifts[part] = t if t.shape[record.dim] == 1 else t.narrow(record.dim, record.start, part.shape[record.dim])
        elif part in shifts and whole in self.flow.classes.data:
            t = shifts[part]
            shape = [
                max(a, b) for a, b in zip(t.shape, shifts[whole].shape if whole in shifts else t.shape, strict=True)
            ]
            shape[record.dim] = whole.shape[record.dim]
            full = shifts[whole].expand(shape).clone() if whole in shifts else t.new_zeros(shape)
            full.narrow(record.dim, record.start, part.shape[record.dim]).add_(t)
            shifts[whole] = full

    def _product(self, record: Product, shifts: dict[Value, Tensor], params: Params) -> None:
        at = [i for i, f in enumerate(record.factors) if f.value in shifts]
        others = [f for i, f in enumerate(record.factors) if i not in at]
        if len(at) != 1:
            return
        shifted = record.factors[at[0]]
        if any(o.value in self.flow.classes.data for o in others):
            contracted = [k for k in shifted.groups if k not in record.out.groups]
            if self.flow.passes_average(record, at[0]):
                kept = Operand(shifted.value, {k: d for k, d in shifted.groups.items() if k not in contracted})
                shifts[record.out.value] = record.scale * relabel(shifts[shifted.value], kept, record.out)
            return  # otherwise it is multiplied by data, and a softmax removes it further on
        tensors = [(shifts[shifted.value], shifted), *((self.value(o.value, params), o) for o in others)]
        shifts[record.out.value] = record.scale * einsum(tensors, record.out)

    def value(self, value: Value, params: Params) -> Tensor:
        """The number behind a value that is made of parameters only."""
        if value.kind == "param":
            return params[value.name]
        record = self.producers[value]
        if isinstance(record, Sum):
            parts = [
                c * relabel(self.value(t.value, params), t, record.out)
                for t, c in zip(record.terms, record.coefficients, strict=True)
            ]
            return sum(parts[1:], parts[0])
        assert isinstance(record, Product)
        return record.scale * einsum([(self.value(f.value, params), f) for f in record.factors], record.out)


def _visible(shift: Tensor, condition: Condition) -> Tensor:
    """The part of a shift that a condition forbids."""
    if condition.free is None or not condition.dims:
        return shift
    return shift - shift.mean(dim=sorted(condition.dims), keepdim=True)


def relabel(t: Tensor, source: Operand, target: Operand) -> Tensor:
    """A tensor laid out as ``source`` in the layout of ``target``; size 1 where it is constant."""
    flat, order = _flatten(t, source)
    shape: list[int] = [1] * target.value.ndim
    wanted = [label for label in target.groups if label in order]
    flat = flat[tuple(slice(None) if label in target.groups else 0 for label in order)]  # constant along the others
    kept = [label for label in order if label in target.groups]
    full = flat.permute([kept.index(label) for label in wanted])
    for i, label in enumerate(wanted):
        if full.shape[i] != 1:
            for d in target.groups[label]:
                shape[d] = target.value.shape[d]
    by_dim = [label for d in range(target.value.ndim) for label in wanted if target.groups[label][0] == d]
    return full.permute([wanted.index(label) for label in by_dim]).reshape(shape)


def _flatten(t: Tensor, operand: Operand) -> tuple[Tensor, list[Label]]:
    """One dimension for each label, in the order of the groups; dimensions without a label are of size 1 and go."""
    dims = [d for group in operand.groups.values() for d in group]
    rest = [d for d in range(t.ndim) if d not in dims]
    t = t.permute(*dims, *rest)
    t = t[(..., *([0] * len(rest)))] if rest else t
    sizes, at = [], 0
    for group in operand.groups.values():
        thin = all(t.shape[at + k] == 1 for k in range(len(group)))
        if not thin:
            t = t.expand(*t.shape[:at], *(operand.value.shape[d] for d in group), *t.shape[at + len(group) :])
        sizes.append(math.prod(t.shape[at : at + len(group)]))
        at += len(group)
    return t.reshape(sizes), list(operand.groups)


def einsum(tensors: list[tuple[Tensor, Operand]], out: Operand) -> Tensor:
    """The product of labelled tensors; a label on which one is constant broadcasts, or sums if contracted."""
    letters: dict[Label, int] = {}
    arguments: list[object] = []
    present: set[Label] = set()
    factor = 1.0
    sizes: dict[Label, int] = {}
    for _, operand in tensors:
        for label, dims in operand.groups.items():
            sizes[label] = math.prod(operand.value.shape[d] for d in dims)
    for t, operand in tensors:
        flat, order = _flatten(t, operand)
        keep = [i for i, label in enumerate(order) if flat.shape[i] != 1 or sizes[label] == 1]
        flat = flat[tuple(slice(None) if i in keep else 0 for i in range(flat.ndim))]
        names = [order[i] for i in keep]
        present |= set(names)
        arguments += [flat, [letters.setdefault(n, len(letters)) for n in names]]
    for label, size in sizes.items():
        if label not in out.groups and label not in present:
            factor *= size
    kept = [label for label in out.groups if label in present]
    result = factor * torch.einsum(*arguments, [letters[k] for k in kept])
    return _unflatten(result, Operand(out.value, {k: out.groups[k] for k in kept}))


def _unflatten(t: Tensor, target: Operand) -> Tensor:
    """One dimension per label back to the dimensions of the value."""
    shape: list[int] = [1] * target.value.ndim
    for label in target.groups:
        for d in target.groups[label]:
            shape[d] = target.value.shape[d]
    labels = list(target.groups)
    by_dim = [label for d in range(target.value.ndim) for label in labels if target.groups[label][0] == d]
    return t.permute([labels.index(label) for label in by_dim]).reshape(shape)


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

    @property
    def n_generators(self) -> int:
        """One for each number."""
        return self._length

    @property
    def _length(self) -> int:
        if self.conditions:
            assert self.action is not None
            return sum(_count(self.action, s) for s, _ in self.sources)
        return math.prod(leaf.size for leaf in self.leaves)

    def generator(self, params: Params, k: int) -> dict[str, Tensor]:
        """The k-th constant set to one; the action is linear in the constants, so this is exact."""
        unit = self.path(k, torch.ones((), dtype=torch.float64))
        moved = self.apply(params, unit)
        return {n: moved[n] - params[n] for n in self.parameters}

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
        assert self.action is not None
        element = element.to(next(iter(params.values())))
        if self.conditions:
            constants = self._projected(params, element)
        else:
            function = self._function(element)
            constants = {s: c * _place(self.action, s, function, self.leaves).to(element) for s, c in self.sources}
        change, _ = self.action.run(params, constants, [])
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
        matrix = condition_matrix(self.action, [s for s, _ in self.sources], self.conditions, params)
        basis = torch.from_numpy(null_space(matrix.detach().numpy(), rcond=1e-10)).to(element)
        return _split(self.action, [s for s, _ in self.sources], basis @ (basis.T @ element))


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
    value, cell = source
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
    block = block.reshape(block.shape[: len(flat_leaves)]).expand(sizes).reshape([len(i) for i in index])
    out = function.new_zeros(shape)
    out[np.ix_(*index)] = block
    return out


def _count(action: ShiftAction, source: Source) -> int:
    return math.prod(leaf.size for leaf in action.flow.sources[source])


def _split(action: ShiftAction, sources: list[Source], element: Tensor) -> dict[Source, Tensor]:
    out, at = {}, 0
    for s in sources:
        n = _count(action, s)
        leaves = tuple(action.flow.sources[s])
        function = element[at : at + n].reshape([leaf.size for leaf in leaves])
        out[s] = _place(action, s, function, leaves)
        at += n
    return out


def condition_matrix(
    action: ShiftAction, sources: list[Source], conditions: tuple[Condition, ...], params: Params
) -> Tensor:
    """The matrix of the conditions on the stacked constants of the sources, at θ."""
    n = sum(_count(action, s) for s in sources)
    first = next(iter(params.values()))

    def seen(element: Tensor) -> Tensor:
        _, watched = action.run(params, _split(action, sources, element), list(conditions))
        return torch.cat([w.reshape(-1) for w in watched]) if watched else element.new_zeros(0)

    zero = torch.zeros(n, dtype=first.dtype)
    columns = [seen(row) for row in torch.eye(n, dtype=first.dtype)]
    return torch.stack(columns, dim=1) if columns else seen(zero)[:, None]


def find_shifts(flow: ShiftFlow, names: dict[Axis, str]) -> tuple[list[Symmetry], list[str]]:
    """Every shift gauge of a lowered graph.

    Args:
        flow: how constants flow through it.
        names: readable names of the classes.

    Returns:
        The symmetries and notes on what was not solved.
    """
    action = ShiftAction(flow)
    symmetries: list[Symmetry] = []
    notes: list[str] = []
    for sources, conditions in _components(flow):
        if any(a.how != "copy" for c in conditions for a in c.form.values()):
            symmetry, note = _numeric(action, sources, conditions)
            symmetries += [symmetry] if symmetry is not None else []
            notes += [note] if note else []
        else:
            symmetries += _exact(action, sources, conditions, names)
    return symmetries, notes


def _components(flow: ShiftFlow) -> list[tuple[list[Source], list[Condition]]]:
    """Sources that share a condition, with their conditions; sources killed by a wild arrival are left out."""
    dead: set[Source] = set()
    for c in flow.conditions:
        dead |= {s for s, a in c.form.items() if a.how == "wild"}
    parent = {s: s for s in flow.sources if s not in dead}

    def find(s: Source) -> Source:
        while parent[s] != s:
            parent[s] = parent[parent[s]]
            s = parent[s]
        return s

    live = []
    for c in flow.conditions:
        alive = [s for s in c.form if s not in dead]
        if alive:
            live.append(Condition(c.operand, {s: c.form[s] for s in alive}, c.free, c.dims))
        for s in alive[1:]:
            parent[find(s)] = find(alive[0])
    groups: dict[Source, tuple[list[Source], list[Condition]]] = defaultdict(lambda: ([], []))
    for s in parent:
        groups[find(s)][0].append(s)
    for c in live:
        groups[find(next(iter(c.form)))][1].append(c)
    return list(groups.values())


def _exact(
    action: ShiftAction, sources: list[Source], conditions: list[Condition], names: dict[Axis, str]
) -> list[Symmetry]:
    """Copies only: one small null space for each sector."""
    flow = action.flow
    sectors = dict.fromkeys(
        frozenset(some)
        for s in sources
        for n in range(len(flow.sources[s]), -1, -1)
        for some in combinations(sorted(flow.sources[s], key=id), n)
    )
    solutions: dict[tuple[tuple[Source, float], ...], list[frozenset[Axis]]] = defaultdict(list)
    for sector in sectors:
        columns = [s for s in sources if sector <= flow.sources[s]]
        rows = [
            [c.form[s].coefficient if s in c.form else 0.0 for s in columns]
            for c in conditions
            if c.free is None or sector & c.free
        ]
        for vector in _sparse_null_space(np.array(rows, dtype=float).reshape(len(rows), len(columns))):
            key = tuple((s, float(x)) for s, x in zip(columns, vector, strict=True) if x)
            solutions[key].append(sector)
    out: list[Symmetry] = []
    for vector, allowed in solutions.items():
        leaves = tuple(sorted(frozenset().union(*allowed), key=lambda a: list(names).index(a) if a in names else 0))
        dim = sum(math.prod(leaf.size - 1 for leaf in sector) for sector in allowed)
        if dim:
            out.append(_shift(action, vector, leaves, tuple(allowed), dim))
    return out


def _shift(
    action: ShiftAction, vector: tuple[tuple[Source, float], ...], leaves: tuple[Axis, ...],
    sectors: tuple[frozenset[Axis], ...], dim: int, conditions: tuple[Condition, ...] = (),
) -> Shift:  # fmt: skip
    params = dict.fromkeys(s[0].name for s, _ in vector)
    return Shift(
        f"{', '.join(params)}: shift",
        f"T({dim})",
        dim,
        tuple(f"{p}[0]" for p in dict.fromkeys([*params, *_touched(action, vector)])),
        False,
        action=action,
        sources=vector,
        leaves=leaves,
        sectors=sectors,
        conditions=conditions,
    )


def _touched(action: ShiftAction, vector: tuple[tuple[Source, float], ...]) -> list[str]:
    """Biases that absorb the shift."""
    sources = {s for s, _ in vector}
    return [absorber[0].name for absorber, form in action.flow.absorbed.items() if sources & form.keys()]


def _sparse_null_space(matrix: np.ndarray) -> list[np.ndarray]:
    """A null-space basis with small integer-like entries, by row reduction."""
    m = matrix.astype(float).copy()
    rows, n = m.shape
    pivots: list[int] = []
    r = 0
    for c in range(n - 1, -1, -1):  # later sources absorb, earlier ones stay free
        if r >= rows:
            break
        k = r + int(np.argmax(np.abs(m[r:, c])))
        if abs(m[k, c]) < 1e-12:
            continue
        m[[r, k]] = m[[k, r]]
        m[r] /= m[r, c]
        for i in range(rows):
            if i != r:
                m[i] -= m[i, c] * m[r]
        pivots.append(c)
        r += 1
    basis = []
    for f in (c for c in range(n) if c not in pivots):
        v = np.zeros(n)
        v[f] = 1.0
        for i, c in enumerate(pivots):
            v[c] = -m[i, f]
        v[np.abs(v) < 1e-12] = 0
        basis.append(v)
    return basis


def _numeric(
    action: ShiftAction, sources: list[Source], conditions: list[Condition]
) -> tuple[Symmetry | None, str | None]:
    """Some arrival went through weights: the null space depends on θ; its generic dimension is computed."""
    n = sum(_count(action, s) for s in sources)
    names = ", ".join(dict.fromkeys(s[0].name for s in sources))
    if n > MAX_NUMERIC:
        return None, f"shifts of {names} ({n} numbers) pass through weights without a bias; not solved at this size"
    generator = torch.Generator().manual_seed(0)
    params = {
        name: torch.randn(v.shape, generator=generator, dtype=torch.float64)
        for name, v in action.flow.classes.cells.lower.graph.params.items()
    }
    matrix = condition_matrix(action, sources, tuple(conditions), params).numpy()
    dim = n - (int(np.linalg.matrix_rank(matrix)) if matrix.size else 0)
    if not dim:
        return None, None
    return _shift(action, tuple((s, 1.0) for s in sources), (), (), dim, tuple(conditions)), None
