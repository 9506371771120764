"""Cells and slots: a fused tensor is a set of plain products, each with its own list of leaf atoms.

A value whose axes contain concatenations splits into *cells*, one for each choice of parts. A *slot* is one leaf atom
in one dimension of a cell. Charges, polarities and flags live on slots, so that Q, K and V inside one fused weight are
treated as if they were three weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations, product

from gaugefix.symmetry.axes import Axis, AxisError, Part, layout
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Record, Softmax

Cell = tuple[int, ...]  # part chosen in every dimension
Slot = tuple[int, int]  # (dimension, position among the leaves of the chosen part)
JointSlot = tuple[Label, int]
Sector = frozenset[Slot]


@dataclass(eq=False)
class Cells:
    """Cells, slots and fibers of every value of a lowered graph.

    Attributes:
        lower: the lowered graph.
        active: leaf atoms that occur in some parameter; only they can carry a symmetry.
        fibers: leaf -> leaves over whose indices it may be transformed independently.
    """

    lower: Lowering
    active: set[Axis] = field(default_factory=set)
    fibers: dict[Axis, frozenset[Axis]] = field(default_factory=dict)
    _layouts: dict[Value, tuple[tuple[Part, ...], ...]] = field(default_factory=dict)
    _by_axis: dict[Axis, tuple[Part, ...]] = field(default_factory=dict)
    _slots: dict[tuple[Value, Cell], tuple[tuple[Slot, Axis], ...]] = field(default_factory=dict)
    _sectors: dict[tuple[Value, Cell], tuple[Sector, ...]] = field(default_factory=dict)
    _joints: dict[Record, tuple[JointCell, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the active leaves and their fibers."""
        for p in self.lower.graph.params.values():
            if p in self.lower.values:
                for parts in self.layout(p):
                    self.active |= {leaf for part in parts for leaf in part.leaves}
        self._find_fibers()

    def layout(self, value: Value) -> tuple[tuple[Part, ...], ...]:
        """Parts of every dimension."""
        if value not in self._layouts:
            parts = []
            for axis in self.lower.axes(value):
                root = axis.find()
                if root not in self._by_axis:
                    self._by_axis[root] = layout(root)
                parts.append(self._by_axis[root])
            self._layouts[value] = tuple(parts)
        return self._layouts[value]

    def cells(self, value: Value) -> Iterator[Cell]:
        """Every choice of parts."""
        return product(*(range(len(parts)) for parts in self.layout(value)))

    def slots(self, value: Value, cell: Cell) -> tuple[tuple[Slot, Axis], ...]:
        """Active leaves of a cell with their slots."""
        key = (value, cell)
        if key not in self._slots:
            self._slots[key] = tuple(
                ((d, i), leaf)
                for d, (parts, choice) in enumerate(zip(self.layout(value), cell, strict=True))
                for i, leaf in enumerate(parts[choice].leaves)
                if leaf in self.active
            )
        return self._slots[key]

    def _find_fibers(self) -> None:
        siblings: dict[Axis, frozenset[Axis]] = {}
        for value in self.lower.values:
            if not value.is_float:
                continue
            for cell in self.cells(value):
                slots = self.slots(value, cell)
                leaves = [leaf for _, leaf in slots]
                for slot, leaf in slots:
                    near = frozenset(
                        other
                        for s, other in slots
                        if s != slot
                        and other is not leaf
                        and (s[0] == slot[0] or (leaves.count(other) == 1 and leaves.count(leaf) == 1))
                    )
                    siblings[leaf] = siblings[leaf] & near if leaf in siblings else near
        for record in self.lower.records:
            if isinstance(record, Norm | Softmax):
                labels = record.reduced if isinstance(record, Norm) else {record.label}
                over, kept = self.leaves(record.x, labels), self.leaves(record.x, set(record.x.groups) - set(labels))
                for leaf in kept & siblings.keys():
                    siblings[leaf] -= over - kept
        self.fibers = siblings

    def leaves(self, operand: Operand, labels: set[Label] | frozenset[Label]) -> set[Axis]:
        """Active leaves under some labels of an operand, in any part."""
        parts = self.layout(operand.value)
        return {
            leaf
            for label in labels
            for d in operand.groups.get(label, ())
            for part in parts[d]
            for leaf in part.leaves
            if leaf in self.active
        }

    def chain(self, value: Value, cell: Cell, slot: Slot, leaf: Axis) -> Sector:
        """The slots of the fibers of a slot, in the same cell."""
        wanted = self.fibers.get(leaf, frozenset())
        found: dict[Axis, Slot] = {}
        for s, other in self.slots(value, cell):
            if other in wanted and s != slot and (other not in found or s[0] == slot[0]):
                found[other] = s
        return frozenset(found.values())

    def sectors(self, value: Value, cell: Cell) -> tuple[Sector, ...]:
        """The sets of slots on which a scale factor of this cell may depend jointly; the empty set is uniform scale."""
        key = (value, cell)
        if key not in self._sectors:
            found: dict[Sector, None] = {frozenset(): None}
            for slot, leaf in self.slots(value, cell):
                chain = sorted(self.chain(value, cell, slot, leaf))
                for n in range(len(chain) + 1):
                    for some in combinations(chain, n):
                        found[frozenset((slot, *some))] = None
            self._sectors[key] = tuple(found)
        return self._sectors[key]

    def joint(self, record: Record) -> tuple[JointCell, ...]:
        """Every joint choice of parts of the labels of a record, with the cell of each operand.

        Args:
            record: of the lowered graph.

        Returns:
            Joint cells, kept for the next time.

        Raises:
            AxisError: if two operands disagree about the parts of a label.
        """  # noqa: DOC502
        if record not in self._joints:
            found = self._joint_cut(record) if isinstance(record, Cut) else self._joint_choices(record)
            self._joints[record] = tuple(found)
        return self._joints[record]

    def _joint_choices(self, record: Record) -> Iterator[JointCell]:
        operands = [record.out, *record.operands()]
        choices: dict[Label, list[tuple[Cell, ...]]] = {}  # label -> per part, the choice in each operand
        labels = dict.fromkeys(label for o in operands for label in o.groups)
        for label in labels:
            options = [self._group_parts(o, label) for o in operands]
            reference = next(p for p in options if p is not None)
            for other in options:
                if other is not None and [p[1] for p in other] != [p[1] for p in reference]:
                    raise AxisError(f"operands disagree about the parts of axis {label!r}")
            choices[label] = [tuple(() if p is None else p[k][0] for p in options) for k in range(len(reference))]
        names = list(labels)
        for combo in product(*(choices[label] for label in names)):
            cells = []
            for i, o in enumerate(operands):
                picked: dict[int, int] = {}
                for label, choice in zip(names, combo, strict=True):
                    picked.update(zip(o.groups.get(label, ()), choice[i], strict=True))
                cells.append(tuple(picked.get(d, 0) for d in range(o.value.ndim)))
            yield JointCell(self, operands, cells)

    def _group_parts(self, operand: Operand, label: Label) -> list[tuple[Cell, tuple[Axis, ...]]] | None:
        """Per part of a label: the choice of part in each of its dimensions, and the leaves."""
        if label not in operand.groups:
            return None
        parts = self.layout(operand.value)
        dims = operand.groups[label]
        out = []
        for choice in product(*(range(len(parts[d])) for d in dims)):
            leaves: tuple[Axis, ...] = reduce(
                lambda acc, dc: acc + parts[dc[0]][dc[1]].leaves, zip(dims, choice, strict=True), ()
            )
            out.append((choice, leaves))
        return out

    def _joint_cut(self, record: Cut) -> Iterator[JointCell]:
        whole, part = record.whole, record.out.value
        covered, first = 0, 0
        for first, p in enumerate(self.layout(whole)[record.dim]):  # noqa: B007
            if covered == record.start:
                break
            covered += p.size
        groups: dict[Label, tuple[int, ...]] = {d: (d,) for d in range(part.ndim)}
        for cell in self.cells(part):
            other = tuple(c + first if d == record.dim else c for d, c in enumerate(cell))
            yield JointCell(self, [Operand(part, groups), Operand(whole, groups)], [cell, other])


@dataclass(eq=False)
class JointCell:
    """One joint choice of parts: cells of the output (index 0) and of every operand, with slots named by label."""

    cells_of: Cells
    operands: Sequence[Operand]
    cells: Sequence[Cell]
    _names: dict[int, dict[Slot, JointSlot]] = field(default_factory=dict)

    def slot_names(self, i: int) -> dict[Slot, JointSlot]:
        """Slots of operand i -> (label, position), the same name in every operand."""
        if i not in self._names:
            self._names[i] = self._find_names(i)
        return self._names[i]

    def _find_names(self, i: int) -> dict[Slot, JointSlot]:
        operand, cell = self.operands[i], self.cells[i]
        parts = self.cells_of.layout(operand.value)
        names: dict[Slot, JointSlot] = {}
        for label, dims in operand.groups.items():
            n = 0
            for d in dims:
                for k in range(len(parts[d][cell[d]].leaves)):
                    names[d, k] = (label, n)
                    n += 1
        return names
