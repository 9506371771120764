"""Who consumes what, slot by slot: where a change along one axis is removed, and what is a normalised copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.cells import Cell, JointSlot, Slot
from gaugefix.symmetry.classes import Classes, SlotKey
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Product, Record, Softmax, Sum
from gaugefix.symmetry.units import Role, Slice


def slice_of(classes: Classes, key: SlotKey, fibers: tuple[Axis, ...] = (), role: Role = "write") -> Slice:
    """The slice of one slot."""
    at = classes.positions(key, fibers)
    return Slice(at.param, at.dim, at.index, role, at.others)


def places(slices: Iterable[Slice]) -> tuple[str, ...]:
    """Names of what slices move."""
    return tuple(dict.fromkeys(f"{s.param}[{s.dim}]" for s in slices))


@dataclass(eq=False)
class Flow:
    """Who consumes what, slot by slot.

    Attributes:
        classes: of the lowered graph.
        consumers: value -> records that read it, with the position of the operand.
        producers: value -> the record that makes it.
        joined: concatenation -> its parts.
    """

    classes: Classes
    consumers: dict[Value, list[tuple[Record, int]]] = field(default_factory=lambda: defaultdict(list))
    producers: dict[Value, Record] = field(default_factory=dict)
    joined: dict[Value, list[Cut]] = field(default_factory=lambda: defaultdict(list))
    _made: dict[Value, bool] = field(default_factory=dict)
    _removed: dict[SlotKey, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the records."""
        lower = self.classes.cells.lower
        self.outputs = set(lower.zero)
        for record in lower.records:
            if isinstance(record, Cut):
                source, made = (record.out.value, record.whole) if record.joins else (record.whole, record.out.value)
                self.consumers[source].append((record, 0 if record.joins else 1))
                self.producers.setdefault(made, record)
                if record.joins:
                    self.joined[made].append(record)
                continue
            self.producers[record.out.value] = record
            for i, operand in enumerate(record.operands()):
                self.consumers[operand.value].append((record, i + 1))

    def is_parameter(self, value: Value) -> bool:
        """Whether a value is made of parameters only, by sums and products."""
        if value not in self._made:
            record = self.producers.get(value)
            self._made[value] = value.kind == "param" or (
                isinstance(record, Sum | Product)
                and all(self.is_parameter(o.value) and not o.hidden_dims() for o in record.operands())
            )
        return self._made[value]

    def averages(self, factor: Operand, labels: list[Label]) -> bool:
        """Whether a factor is an attention matrix whose rows sum to one over the labels."""
        if len(labels) != 1:
            return False
        value, dims = factor.value, factor.groups.get(labels[0])
        while True:
            record = self.producers.get(value)
            if isinstance(record, Softmax):
                return not record.log and record.out.groups[record.label] == dims
            if not isinstance(record, Sum) or len(record.terms) != 1 or record.coefficients != (1.0,):
                return False
            label = next((k for k, g in record.out.groups.items() if g == dims), None)
            value, dims = record.terms[0].value, record.terms[0].groups.get(label)

    def removed(self, value: Value, cell: Cell, slot: Slot) -> bool:
        """Whether adding any multiple of the all-ones vector along a slot never reaches an output.

        Args:
            value: where the multiple is added, possibly different for every sample and position.
            cell: its cell.
            slot: the axis.

        Returns:
            True if every path ends in a centred normalisation or a softmax over exactly that axis.
        """
        seen: set[SlotKey] = set()
        if self._is_removed(value, cell, slot, seen):
            self._removed.update(dict.fromkeys(seen, True))  # none of them met an end that sees it
            return True
        return False

    def _is_removed(self, value: Value, cell: Cell, slot: Slot, seen: set[SlotKey]) -> bool:
        key = (value, cell, slot)
        if key in seen:
            return True
        if key not in self._removed:
            seen.add(key)
            if not self._ends_removed(value, cell, slot, seen):
                self._removed[key] = False
        return self._removed.get(key, True)

    def _ends_removed(self, value: Value, cell: Cell, slot: Slot, seen: set[SlotKey]) -> bool:
        if value in self.outputs or not self.consumers[value]:
            return False
        for record, i in self.consumers[value]:
            for joint in self.classes.cells.joint(record):
                if i >= len(joint.operands) or joint.cells[i] != cell:
                    continue
                name = joint.slot_names(i).get(slot)
                if name is None or (isinstance(record, Cut) and i == 0 and name[0] == record.dim):
                    return False  # ones on one part of a concatenation only
                match record:
                    case Cut() if i == 0:
                        whole = {n: s for s, n in joint.slot_names(1).items()}[name]
                        if not self._is_removed(record.whole, joint.cells[1], whole, seen):
                            return False
                    case Norm():
                        if not (
                            i == 1 and record.centred and record.reduced == {name[0]} and self._atomic(record, name)
                        ):
                            return False
                    case Softmax():
                        if name[0] != record.label or not self._atomic(record, name):
                            return False
                    case Sum() | Cut() | Product():
                        target = {n: s for s, n in joint.slot_names(0).items()}.get(name)
                        shared = sum(name in joint.slot_names(j).values() for j in range(1, len(joint.operands)))
                        if target is None or (shared > 1 and isinstance(record, Product)):
                            return False
                        if not self._is_removed(joint.operands[0].value, joint.cells[0], target, seen):
                            return False
                    case _:
                        return False
        return True

    def readers(self, value: Value, cell: Cell, slot: Slot) -> set[SlotKey] | None:
        """The weights that an axis is contracted with, if that is all that ever happens to it.

        Args:
            value: where the axis starts.
            cell: its cell.
            slot: the axis.

        Returns:
            Slots of parameters, or None if something else sees the axis.
        """
        found: set[SlotKey] = set()
        stack, seen = [(value, cell, slot)], set()
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if at[0] in self.outputs or not self.consumers[at[0]]:
                return None
            for record, i in self.consumers[at[0]]:
                if not isinstance(record, Sum | Product):
                    return None
                for joint in self.classes.cells.joint(record):
                    if joint.cells[i] != at[1]:
                        continue
                    name = joint.slot_names(i).get(at[2])
                    others = [
                        (j, s)
                        for j in range(1, len(joint.operands))
                        if j != i
                        for s, n in joint.slot_names(j).items()
                        if n == name
                    ]
                    if name is None:
                        return None
                    target = {n: s for s, n in joint.slot_names(0).items()}.get(name)
                    if target is not None and others and isinstance(record, Product):
                        return None
                    if target is not None:
                        stack.append((joint.operands[0].value, joint.cells[0], target))
                    elif len(others) == 1 and joint.operands[others[0][0]].value.kind == "param":
                        j, s = others[0]
                        found.add((joint.operands[j].value, joint.cells[j], s))
                    else:
                        return None
        return found

    def removes_axis(self, value: Value, dim: int, seen: set[tuple[Value, int]] | None = None) -> bool:
        """The same for a whole dimension, whatever parts its axis has.

        Args:
            value: where a multiple of the all-ones vector is added.
            dim: along which dimension.
            seen: used by the recursion.

        Returns:
            True if every path ends in a centred normalisation or a softmax over exactly that dimension.
        """
        seen = set() if seen is None else seen
        if (value, dim) in seen:
            return True
        seen.add((value, dim))
        if value in self.outputs or not self.consumers[value]:
            return False
        for record, i in self.consumers[value]:
            if isinstance(record, Cut):
                return False
            operands = [record.out, *record.operands()]
            label = next((k for k, dims in operands[i].groups.items() if dims == (dim,)), None)
            if label is None:
                return False
            if isinstance(record, Norm) and i == 1 and record.centred and record.reduced == {label}:
                continue
            if isinstance(record, Softmax) and record.label == label:
                continue
            target = record.out.groups.get(label, ())
            shared = isinstance(record, Product) and sum(label in o.groups for o in operands[1:]) > 1
            if not isinstance(record, Sum | Product) or shared or len(target) != 1:
                return False
            if not self.removes_axis(record.out.value, target[0], seen):
                return False
        return True

    def _atomic(self, record: Norm | Softmax, name: JointSlot) -> bool:
        """Whether the axis of a label is one atom: neither a product nor a concatenation."""
        parts = [self.classes.cells.layout(record.x.value)[d] for d in record.x.groups[name[0]]]
        single = all(len(options) == 1 for options in parts)  # parts of size 1 have no leaves
        return single and sum(len(options[0].leaves) for options in parts) == 1

    def origin(self, value: Value) -> Value:
        """The parameter of which a value is a plain view, or the value itself."""
        record = self.producers.get(value)
        while isinstance(record, Sum) and len(record.terms) == 1 and record.coefficients == (1.0,):
            value = record.terms[0].value
            record = self.producers.get(value)
        return value

    def normalised(self, value: Value) -> Norm | None:
        """The centred normalisation of which a value is a copy, some positions, or an average over positions."""
        while True:
            record = self.producers.get(value)
            if isinstance(record, Norm):
                return record if record.centred else None
            if isinstance(record, Sum) and len(record.terms) == 1 and record.coefficients == (1.0,):
                value = record.terms[0].value
            elif isinstance(record, Product) and len(record.factors) == 1 and self.is_mean(record):
                value = record.factors[0].value
            elif isinstance(record, Cut) and not record.joins:  # some positions of it
                value = record.whole
            else:
                return None

    @staticmethod
    def constants(record: Product, x: Operand) -> float:
        """How often a product counts a constant input: once in a mean or a convolution, at every position in a sum."""
        alone = [k for k in x.groups if k not in record.out.groups and sum(k in f.groups for f in record.factors) == 1]
        return record.scale * prod(x.value.shape[d] for k in alone for d in x.groups[k])

    @classmethod
    def is_mean(cls, record: Product) -> bool:
        """Whether a one-factor product averages over what it contracts, at every position alike."""
        return abs(cls.constants(record, record.factors[0]) - 1) < 1e-12 and not record.border
