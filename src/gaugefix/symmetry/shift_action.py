"""The numbers behind shift gauges: constants carried through labelled tensors at actual parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Pointwise, Product, Record, Sum
from gaugefix.symmetry.shift_forms import Condition, Source
from gaugefix.symmetry.shifts import ShiftFlow
from gaugefix.symmetry.units import Params


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
        self, params: Params, constants: dict[Source, Tensor], watch: list[Condition], *, tangent: bool = False
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Carry constants forward.

        Args:
            params: all parameters.
            constants: for each source, the shift of the sum it is added to, in the shape of the parameter (size 1
                along dimensions on which it does not depend).
            watch: conditions whose left-hand side is wanted.
            tangent: to first order in the constants.

        Returns:
            Changes of the parameters by name, and the shift seen by each watched operand.
        """
        flow = self.flow
        own: dict[Value, Tensor] = {}
        for (value, _), c in constants.items():
            own[value] = own[value] + c if value in own else c
        shifts: dict[Value, Tensor] = {v: c for v, c in own.items() if v.kind == "param"}
        change: dict[str, Tensor] = {v.name: c for v, c in own.items() if v.kind == "param"}
        taken: dict[Product, Tensor] = {}
        absorbers = {id(r): s for s, r in flow.absorbing.items()}
        for record in flow.classes.cells.lower.records:
            absorber = absorbers.get(id(record))
            if isinstance(record, Sum):
                self._sum(record, shifts, own, change, None if absorber is None else absorber[0])
            elif isinstance(record, Cut):
                self._cut(record, shifts)
            elif isinstance(record, Product):
                self._product(record, shifts, params)
                if record in flow.biased:
                    self._bias(record, shifts, own, taken, absorbs=absorber is not None)
            elif isinstance(record, Pointwise) and record.translates and record.x.value in shifts:
                shifts[record.out.value] = relabel(shifts[record.x.value], record.x, record.out)
            elif isinstance(record, Norm) and record.bias is not None and record.bias.value in shifts:
                shifts[record.out.value] = relabel(shifts[record.bias.value], record.bias, record.out)
        for record, constant in ({} if watch else taken).items():
            # what takes up a constant depends on the biases before it, which have moved
            moved = params if tangent else {n: p + change[n] if n in change else p for n, p in params.items()}
            assert self.flow.take_up is not None
            name, delta = self.flow.take_up(record, constant, moved)
            change[name] = delta
        for reading in flow.tied.values():  # what a table that also reads adds to the outputs
            if reading.table in own and reading.bias is not None and not watch:
                bias = reading.absorbed(params, own[reading.table])
                change[reading.bias] = change.get(reading.bias, 0) - bias
        seen = [
            flow.tied[c.operand.value].seen(params, shifts[c.operand.value])
            if c.reading
            else _visible(shifts[c.operand.value], c)
            for c in watch
            if c.operand.value in shifts
        ]
        return change, seen

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

    @staticmethod
    def _bias(
        record: Product, shifts: dict[Value, Tensor], own: dict[Value, Tensor], taken: dict[Product, Tensor], *,
        absorbs: bool,
    ) -> None:  # fmt: skip
        """A product without a bias adds a constant of its own."""
        arriving, fixed = shifts.get(record.out.value), own.get(record.out.value)
        wanted = fixed
        if absorbs and arriving is not None:
            wanted = -arriving if fixed is None else fixed - arriving
        if wanted is not None:
            taken[record] = wanted
        total = fixed if absorbs else arriving if fixed is None else fixed if arriving is None else fixed + arriving
        shifts.pop(record.out.value, None)
        if total is not None:
            shifts[record.out.value] = total

    def _cut(self, record: Cut, shifts: dict[Value, Tensor]) -> None:
        part, whole = record.out.value, record.whole
        if not record.joins and whole in shifts:
            t = shifts[whole]
            shifts[part] = t if t.shape[record.dim] == 1 else t.narrow(record.dim, record.start, part.shape[record.dim])
        elif record.joins and part in shifts:
            t = shifts[part]
            before = shifts.get(whole, t)
            shape = [max(a, b) for a, b in zip(t.shape, before.shape, strict=True)]
            shape[record.dim] = whole.shape[record.dim]
            full = before.expand(shape).clone() if whole in shifts else t.new_zeros(shape)
            full.narrow(record.dim, record.start, part.shape[record.dim]).add_(t)
            shifts[whole] = full

    def _product(self, record: Product, shifts: dict[Value, Tensor], params: Params) -> None:
        tied = {r.table for r in self.flow.tied.values() if r.record is record}
        at = [i for i, f in enumerate(record.factors) if f.value in shifts and f.value not in tied]
        others = [f for i, f in enumerate(record.factors) if i not in at]
        if len(at) != 1 or not all(self.flow.is_known(o.value) or o.value in self.flow.classes.data for o in others):
            return  # a condition says that nothing arrives at a product with a buffer
        shifted = record.factors[at[0]]
        if any(o.value in self.flow.classes.data for o in others):
            contracted = [k for k in shifted.groups if k not in record.out.groups]
            if self.flow.passes_average(record, at[0]):
                kept = Operand(shifted.value, {k: d for k, d in shifted.groups.items() if k not in contracted})
                shifts[record.out.value] = record.scale * relabel(shifts[shifted.value], kept, record.out)
            return  # otherwise it is multiplied by data, and a softmax removes it further on
        tensors = [
            (shifts[shifted.value], shifted),
            *((parameter_value(o.value, self.producers, params), o) for o in others),
        ]
        shifts[record.out.value] = record.scale * einsum(tensors, record.out)


def parameter_value(value: Value, producers: Mapping[Value, Record], params: Params) -> Tensor:
    """The number behind a value that is made of parameters only.

    Args:
        value: a parameter, or sums and products of some.
        producers: value -> the record that makes it.
        params: all parameters.

    Returns:
        A tensor in the shape of the value (size 1 where it is constant).
    """
    if value.kind == "param":
        return params[value.name]
    record = producers[value]
    if isinstance(record, Sum):
        parts = [
            c * relabel(parameter_value(t.value, producers, params), t, record.out)
            for t, c in zip(record.terms, record.coefficients, strict=True)
        ]
        return sum(parts[1:], parts[0])
    assert isinstance(record, Product)
    factors = [(parameter_value(f.value, producers, params), f) for f in record.factors]
    return record.scale * einsum(factors, record.out)


def _visible(shift: Tensor, condition: Condition) -> Tensor:
    """The part of a shift that a condition forbids."""
    if not condition.dims:
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
    for _ in rest:
        t = t.select(-1, 0)
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
    arguments: list[Any] = []
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
