"""Axis classes: which group acts on each, with which polarity, and where its members live."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from gaugefix.symmetry.axes import Axis, AxisError
from gaugefix.symmetry.cells import Cell, Cells, JointCell, JointSlot, Slot
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Pointwise, Product, Record, Rotary, Softmax, Sum
from gaugefix.symmetry.units import Role

SlotKey = tuple[Value, Cell, Slot]


class ParityForest:
    """Union-find in which every element is equal or opposite to its root."""

    def __init__(self) -> None:
        self._parent: dict[SlotKey, tuple[SlotKey, int]] = {}
        self.odd: set[SlotKey] = set()  # roots of components that contain an odd cycle

    def find(self, key: SlotKey) -> tuple[SlotKey, int]:
        """Root and parity (+1 or −1) of an element."""
        path, sign = [], 1
        while key in self._parent and self._parent[key][0] != key:
            path.append(key)
            key = self._parent[key][0]
        for k in reversed(path):
            parent, s = self._parent[k]
            sign = s * (self._parent[parent][1] if parent != key else 1)
            self._parent[k] = (key, sign)
        return key, self._parent[path[0]][1] if path else 1

    def union(self, a: SlotKey, b: SlotKey, sign: int) -> None:
        """State that a = sign · b."""
        (ra, sa), (rb, sb) = self.find(a), self.find(b)
        if ra == rb:
            if sa != sign * sb:
                self.odd.add(ra)
            return
        self._parent[ra] = (rb, sa * sign * sb)
        if ra in self.odd:
            self.odd.add(rb)


@dataclass(eq=False)
class AxisClass:
    """A leaf atom of some parameter and everything the records say about it.

    Attributes:
        leaf: the representative.
        fibers: leaves over whose indices it transforms independently.
        elementwise: some operation treats its entries one by one; only permutations and charges are left.
        norms: normalisations that reduce exactly this axis.
        rotary: its halves are turned by position-dependent angles.
        activations: names of pointwise functions applied along it.
        slots: occurrences in parameters, with a role.
    """

    leaf: Axis
    fibers: frozenset[Axis]
    elementwise: bool = False
    rotary: bool = False
    norms: list[Norm] = field(default_factory=list)
    activations: dict[str, None] = field(default_factory=dict)
    slots: list[tuple[SlotKey, Role]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of members in one fiber."""
        return self.leaf.size

    @property
    def pinned(self) -> bool:
        """Whether permutations are forbidden."""
        return self.leaf.find().pinned

    @property
    def linear(self) -> bool:
        """Whether a general linear group acts: only contractions, sums and copies touch the axis."""
        return not (self.pinned or self.elementwise or self.norms or self.rotary)


@dataclass(eq=False)
class Classes:
    """All axis classes of a lowered graph.

    Attributes:
        cells: the cells they were read from.
        by_leaf: in the order of their first parameter.
        parity: polarity of every slot: contraction partners are opposite.
        data: values that depend on an input.
    """

    cells: Cells
    by_leaf: dict[Axis, AxisClass] = field(default_factory=dict)
    parity: ParityForest = field(default_factory=ParityForest)
    data: set[Value] = field(default_factory=set)
    roles: dict[tuple[Value, int], Role] = field(default_factory=dict)
    rough: set[SlotKey] = field(default_factory=set)  # occurrences that something treats entry by entry

    def __post_init__(self) -> None:
        """Collect flags, polarities and roles from the records, then the occurrences in parameters."""
        lower = self.cells.lower
        for leaf in self.cells.active:
            self.by_leaf[leaf] = AxisClass(leaf, self.cells.fibers.get(leaf, frozenset()))
        self._order = {v: i for i, v in enumerate(lower.graph.params.values())}
        # what only buffers enter is no data; what an operation without a rule makes may be anything
        self.data = {v for v in lower.values if v.kind in {"input", "zeros"}}
        self.data |= {v for v in lower.zero if v.kind == "op"}
        for record in lower.records:
            sources = [record.whole] if isinstance(record, Cut) else [o.value for o in record.operands()]
            looked_up = isinstance(record, Sum) and any(o.hidden_dims() for o in record.terms)
            if looked_up or any(v in self.data for v in sources):
                self.data.add(record.out.value)
            if isinstance(record, Cut) and record.joins and record.out.value in self.data:
                self.data.add(record.whole)
            try:
                for joint in self.cells.joint(record):
                    self._read(record, joint)
            except AxisError as error:
                self._spoil(record, str(error))
        for record in reversed(lower.records):
            self._assign_roles(record)
        for value in lower.graph.params.values():
            if value in lower.values:
                for cell in self.cells.cells(value):
                    for slot, leaf in self.cells.slots(value, cell):
                        role = self.roles.get((value, slot[0]), "gain")
                        self.by_leaf[leaf].slots.append(((value, cell, slot), role))
        self.by_leaf = dict(sorted(self.by_leaf.items(), key=lambda item: self._first_use(item[1])))

    def _first_use(self, c: AxisClass) -> tuple[int, Cell, Slot]:
        """The place of a class in the order of parameters, so that names do not change from run to run."""
        return min(
            ((self._order[key[0]], key[1], key[2]) for key, _ in c.slots), default=(len(self._order), (), (0, 0))
        )

    def _spoil(self, record: Record, reason: str) -> None:
        from gaugefix.symmetry.symmetries import OpaqueOp

        self.cells.lower.opaque.append(OpaqueOp(type(record).__name__.lower(), record.place, reason))
        for operand in (record.out, *record.operands()):
            for parts in self.cells.layout(operand.value):
                for part in parts:
                    for leaf in part.leaves:
                        leaf.pin()

    # flags and polarities

    def _read(self, record: Record, joint: JointCell) -> None:
        names = [joint.slot_names(i) for i in range(len(joint.operands))]
        where: dict[JointSlot, list[tuple[int, SlotKey, Axis]]] = defaultdict(list)
        for i, (operand, cell) in enumerate(zip(joint.operands, joint.cells, strict=True)):
            for slot, leaf in self.cells.slots(operand.value, cell):
                if slot in names[i]:
                    where[names[i][slot]].append((i, (operand.value, cell, slot), leaf))
        n_inputs = len(joint.operands) - 1
        for name, hits in where.items():
            c = self.by_leaf[hits[0][2]]
            outs = [key for i, key, _ in hits if i == 0]
            ins = [key for i, key, _ in hits if i > 0]
            if self._flag(record, c, name[0], len(ins), bool(outs), n_inputs):
                c.elementwise = True
                self.rough.update(ins + outs)
            if isinstance(record, Norm) and name[0] in record.reduced:
                self._link_norm(record, hits)
            elif isinstance(record, Product) and not outs and len(ins) == 2:
                self.parity.union(ins[0], ins[1], -1)
            else:
                keys = ins + outs
                for key in keys[1:]:
                    self.parity.union(keys[0], key, 1)

    def _link_norm(self, record: Norm, hits: list[tuple[int, SlotKey, Axis]]) -> None:
        """Gain, bias and output of a normalisation go together; its input is another matter."""
        keys = [key for i, key, _ in hits if i != 1]
        for key in keys[1:]:
            self.parity.union(keys[0], key, 1)

    def _flag(self, record: Record, c: AxisClass, label: Label, n_in: int, in_out: bool, n_inputs: int) -> bool:
        """Note what a record does along an axis; whether it treats the entries one by one."""
        match record:
            case Product():
                return (n_in, in_out) not in {(2, False), (1, True)}
            case Sum():
                return n_in < n_inputs  # broadcast along the axis
            case Pointwise():
                c.activations[record.name] = None
                return True
            case Softmax():
                return True
            case Norm():
                if label not in record.reduced or not self._is_plain(record, c):
                    return True
                if record not in c.norms:
                    c.norms.append(record)
            case Rotary():
                if label == record.label:
                    c.rotary = True
        return False

    def _is_plain(self, record: Norm, c: AxisClass) -> bool:
        """Whether a normalisation runs over one dimension, of which the class is all or a whole part."""
        parts = self.cells.layout(record.x.value)
        reduced = [d for label in record.reduced for d in record.x.groups.get(label, ())]
        return len(reduced) == 1 and all(p.leaves == (c.leaf,) for p in parts[reduced[0]] if c.leaf in p.leaves)

    # roles

    def _assign_roles(self, record: Record) -> None:
        out = record.out
        match record:
            case Product():
                self._product_roles(record)
            case Sum():
                for term in record.terms:
                    derived = out.value not in self.data
                    for label, dims in term.groups.items():
                        for k, d in enumerate(dims):
                            target = out.groups.get(label, ())
                            inherited = self.roles.get((out.value, target[min(k, len(target) - 1)])) if target else None
                            self._set(term.value, d, inherited if derived and inherited else "write")
            case Cut():
                for d in range(out.value.ndim):
                    role = self.roles.get((out.value, d))
                    if role is not None:
                        self._set(record.whole, d, role)
            case Pointwise():
                for label, dims in record.x.groups.items():
                    for d, e in zip(dims, out.groups.get(label, ()), strict=False):
                        self._set(record.x.value, d, self.roles.get((out.value, e), "write"))
            case Norm():
                for operand in (record.gain, record.bias):
                    if operand is not None:
                        for dims in operand.groups.values():
                            for d in dims:
                                self._set(operand.value, d, "gain")
            case _:
                pass

    def _product_roles(self, record: Product) -> None:
        labels = [set(f.groups) for f in record.factors]
        for i, factor in enumerate(record.factors):
            elsewhere = set().union(*(s for j, s in enumerate(labels) if j != i))
            for label, dims in factor.groups.items():
                for d in dims:
                    role: Role
                    if label in record.out.groups:
                        role = "gain" if label in elsewhere else "write"
                        if record.out.value not in self.data:
                            role = self.roles.get((record.out.value, record.out.groups[label][0]), role)
                    else:
                        both = all(f.value not in self.data for f in record.factors)
                        role = "write" if both and i == len(record.factors) - 1 else "read"
                    self._set(factor.value, d, role)

    def _set(self, value: Value, dim: int, role: Role) -> None:
        if value not in self.data:
            self.roles.setdefault((value, dim), role)

    # occurrences as index arrays

    def positions(self, key: SlotKey, chain: tuple[Axis, ...]) -> Occurrence:
        """Where the members of a slot are in its parameter.

        Args:
            key: the slot.
            chain: the fibers, in a fixed order.

        Returns:
            Index arrays; see `Occurrence`.
        """
        value, cell, slot = key
        layouts = self.cells.layout(value)
        dim, position = slot
        part = layouts[dim][cell[dim]]
        own = {leaf: i for i, leaf in enumerate(part.leaves) if i != position}
        near = [leaf for leaf in chain if leaf in own]
        far = [leaf for leaf in chain if leaf not in own]
        index = np.moveaxis(part.index, [*(own[leaf] for leaf in near), position], range(len(near) + 1))
        fiber_sizes = [leaf.size for leaf in chain]
        index = index.reshape(*(leaf.size for leaf in near), part.leaves[position].size, -1)
        for k, leaf in enumerate(chain):  # a fiber in another dimension: the same positions for each of its indices
            if leaf in far:
                index = np.repeat(np.expand_dims(index, k), leaf.size, axis=k)
        index = index.reshape(int(np.prod(fiber_sizes, dtype=int)), part.leaves[position].size, -1)
        others: dict[int, np.ndarray] = {}
        for d, (parts, choice) in enumerate(zip(layouts, cell, strict=True)):
            if d == dim:
                continue
            held = [leaf for leaf in far if leaf in parts[choice].leaves]
            if held:
                others[d] = self._fiber_positions(parts[choice].index, parts[choice].leaves, held, chain)
            elif len(parts) > 1:
                others[d] = parts[choice].index.reshape(1, -1)
        return Occurrence(value.name, dim, index, others)

    @staticmethod
    def _fiber_positions(
        index: np.ndarray, leaves: tuple[Axis, ...], held: list[Axis], chain: tuple[Axis, ...]
    ) -> np.ndarray:
        moved = np.moveaxis(index, [leaves.index(leaf) for leaf in held], range(len(held)))
        moved = moved.reshape(*(leaf.size for leaf in held), -1)
        for k, leaf in enumerate(chain):
            if leaf not in held:
                moved = np.repeat(np.expand_dims(moved, k), leaf.size, axis=k)
        return moved.reshape(int(np.prod([leaf.size for leaf in chain], dtype=int)), -1)


@dataclass(frozen=True, eq=False)
class Occurrence:
    """Positions of a class in one parameter.

    Attributes:
        param: dotted name.
        dim: dimension along which the members lie.
        index: ``(fibers, units, entries)`` positions along ``dim``.
        others: restriction of other dimensions, ``(1 or fibers, positions)``; absent means all.
    """

    param: str
    dim: int
    index: np.ndarray
    others: dict[int, np.ndarray]
