"""Shift gauges: constants added to some biases that others take back.

Every parameter that is added to the data (biases, norm shifts, embeddings) may move by a constant. The constants are
carried forward through the records; where another such parameter is added, it absorbs what arrives; a normalisation
or a softmax removes what is constant along its axis; nothing else may see a shift. What is left is a homogeneous
linear system for the constants, solved sector by sector like the charges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from torch import Tensor

from gaugefix.symmetry.axes import Axis, AxisError
from gaugefix.symmetry.cells import Cell, JointCell, Slot
from gaugefix.symmetry.classes import Classes
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Pointwise, Product, Record, Softmax, Sum
from gaugefix.symmetry.shift_forms import (
    Arrival,
    Condition,
    Form,
    How,
    Source,
    TiedReading,
    add_forms,
    alike,
    slots_of,
    sources_of,
    without,
)
from gaugefix.symmetry.units import Params


@dataclass(eq=False)
class ShiftFlow:
    """Forward propagation of the unknown constants.

    Attributes:
        classes: of the lowered graph.
        sources: the unknowns, each with the leaves it may depend on.
        absorbing: source -> the sum (or product) in which it takes back what arrives.
        absorbed: source -> what arrives there.
        conditions: what the unknowns must satisfy.
        biased: products that can take up a constant without a bias (see `VirtualBiases`), with their weight.
        take_up: how they do.
        tied: tables that are also contracted with data (the last layer of a language model).
    """

    classes: Classes
    sources: dict[Source, frozenset[Axis]] = field(default_factory=dict)
    absorbing: dict[Source, Sum | Product] = field(default_factory=dict)
    absorbed: dict[Source, Form] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    biased: dict[Product, Operand] = field(default_factory=dict)
    tied: Mapping[Value, TiedReading] = field(default_factory=dict)
    take_up: Callable[[Product, Tensor, Params], tuple[str, Tensor]] | None = None
    _forms: dict[tuple[Value, Cell], Form] = field(default_factory=dict)
    _stochastic: dict[Value, int] = field(default_factory=dict)  # value -> dimension along which it sums to one
    _averages: dict[tuple[int, Cell], list[tuple[JointCell, Form]]] = field(default_factory=dict)
    _parts: dict[tuple[int, Cell], list[tuple[JointCell, Form, frozenset[int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Run through the records once."""
        lower = self.classes.cells.lower
        self._uses = Counter(v for record in lower.records for v in (o.value for o in sources_of(record)))
        self._zero = set(lower.zero)
        self._shared = {leaf: len({key[0] for key, _ in c.slots}) for leaf, c in self.classes.by_leaf.items()}
        self._shiftable = self._find_shiftable()
        self._known = self._find_known()
        for record in lower.records:
            try:
                joints = list(self.classes.cells.joint(record))
                if isinstance(record, Sum):
                    self._sum(record, joints)
                    continue
                for joint in joints:
                    self._step(record, joint)
                self._compare_parts()
                if record in self.biased:
                    self._bias(record)
            except AxisError:
                for operand in record.operands():
                    self._forbid(operand)
        for value in lower.zero:
            self._forbid(Operand(value, {d: (d,) for d in range(value.ndim)}))

    def is_known(self, value: Value) -> bool:
        """Whether a value is made of parameters by products and sums, so that its numbers can be computed."""
        return value in self._known

    def _find_known(self) -> set[Value]:
        lower = self.classes.cells.lower
        known = set(lower.graph.params.values()) - self._zero
        for record in lower.records:
            if isinstance(record, Sum | Product) and all(
                o.value in known and not o.hidden_dims() for o in record.operands()
            ):
                known.add(record.out.value)
        return known

    def _find_shiftable(self) -> set[Value]:
        """Parameters that only ever enter sums with data, directly or after copies."""
        lower, data = self.classes.cells.lower, self.classes.data
        good: dict[Value, bool] = {}
        for record in reversed(lower.records):
            made = record.whole if isinstance(record, Cut) and record.joins else record.out.value
            onward = made in data or good.get(made, False)
            for operand in sources_of(record):
                if operand.value in self.tied and record is self.tied[operand.value].record:
                    continue
                added = isinstance(record, Sum | Cut) or (isinstance(record, Norm) and operand is record.bias)
                table = isinstance(record, Sum) and bool(operand.hidden_dims())
                good[operand.value] = good.get(operand.value, True) and added and (onward or table)
        return {v for v in lower.graph.params.values() if good.get(v, False)}

    def form(self, operand: Operand, cell: Cell) -> Form:
        """What arrives at a cell of an operand; a parameter that may shift is its own unknown."""
        key = (operand.value, cell)
        if key not in self._forms and operand.value in self._shiftable:
            reading = self.tied.get(operand.value)  # all rows of a tied table shift alike
            hidden = operand.hidden_dims() | set(() if reading is None else reading.rows)
            slots = [
                (s, leaf)
                for s, leaf in self.classes.cells.slots(*key)
                if s[0] not in hidden and self._shared[leaf] > 1  # an axis of its own (positions): constant along it
            ]
            self.sources[key] = frozenset(leaf for _, leaf in slots)
            self._forms[key] = {key: Arrival("copy", 1.0, frozenset(s for s, _ in slots))}
        return self._forms.get(key, {})

    def _step(self, record: Record, joint: JointCell) -> None:
        inputs = [self.form(o, c) for o, c in zip(joint.operands[1:], joint.cells[1:], strict=True)]
        match record:
            case Cut():
                self._cut(record, joint, inputs[0])
            case Product():
                self._product(record, joint, inputs)
            case Norm():
                self._condition(joint, 1, inputs[0], set(record.reduced) if record.centred else None)
                if record.bias is not None:
                    self._store(joint, self._carry(joint, len(joint.operands) - 1, inputs[-1]))
            case Softmax():
                self._condition(joint, 1, inputs[0], {record.label})
                if not record.log:
                    self._stochastic[record.out.value] = record.out.groups[record.label][0]
            case Pointwise() if record.translates:
                self._store(joint, self._carry(joint, 1, inputs[0]))
            case _:
                self._condition(joint, 1, inputs[0], None)

    def _carry(self, joint: JointCell, i: int, form: Form, factor: float = 1.0) -> Form:
        """A form of operand i on the slots of the output."""
        names, target = joint.slot_names(i), {name: slot for slot, name in joint.slot_names(0).items()}
        return {
            source: Arrival(
                a.how if a.slots <= names.keys() else "wild",  # data choose among numbers that differ
                a.coefficient * factor,
                frozenset(target[names[s]] for s in a.slots if names.get(s) in target),
                a.origin,
            )
            for source, a in form.items()
        }

    def _store(self, joint: JointCell, form: Form) -> None:
        key = (joint.operands[0].value, joint.cells[0])
        if form:
            self._forms[key] = add_forms(self._forms.get(key, {}), form)

    def _sum(self, record: Sum, joints: list[JointCell]) -> None:
        """Add up what arrives on every part; a bias takes it back if it is the same on all parts that read it."""
        carried = [
            [
                self._carry(joint, i + 1, self.form(joint.operands[i + 1], joint.cells[i + 1]), c)
                for i, c in enumerate(record.coefficients)
            ]
            for joint in joints
        ]
        shifting = [i for i, term in enumerate(record.terms) if term.value in self._shiftable]
        arriving: list[Form] = []
        for forms in carried:
            total: Form = {}
            for i, form in enumerate(forms):
                total = total if i in shifting else add_forms(total, form)
            arriving.append(total)
        for i in shifting:
            readers: dict[Source, list[int]] = {}
            for k, joint in enumerate(joints):
                readers.setdefault((joint.operands[i + 1].value, joint.cells[i + 1]), []).append(k)
            for source, at in readers.items():
                taken = self._absorbs(record, source, [(arriving[k], carried[k][i]) for k in at])
                for k in at:
                    arriving[k] = carried[k][i] if taken else add_forms(arriving[k], carried[k][i])
        if len(record.terms) == 1:
            self._pass_stochastic(record)
        for joint, form in zip(joints, arriving, strict=True):
            self._store(joint, form)

    def _absorbs(self, record: Sum, source: Source, parts: list[tuple[Form, Form]]) -> bool:
        """Whether a source can take back what arrives; parts are (what arrives, the source's own form)."""
        arriving = parts[0][0]
        if not arriving or self._uses[source[0]] != 1 or source in self.absorbing:
            return False
        for form, own in parts:
            if form != arriving or any(a.how == "wild" or not a.slots <= own[source].slots for a in form.values()):
                return False
        self.absorbing[source] = record
        self.absorbed[source] = arriving
        return True

    def _bias(self, record: Product) -> None:
        """A product that takes up a constant is a source of its own, and takes back what arrives if it can."""
        labels = [k for k in self.biased[record].groups if k in record.out.groups]
        dims = {d for k in labels for d in record.out.groups[k]}
        own: dict[Source, Arrival] = {}
        for cell in dict.fromkeys(joint.cells[0] for joint in self.classes.cells.joint(record)):
            slots = [(s, leaf) for s, leaf in self.classes.cells.slots(record.out.value, cell) if s[0] in dims]
            source = (record.out.value, cell)
            self.sources[source] = frozenset(leaf for _, leaf in slots)
            own[source] = Arrival("copy", 1.0, frozenset(s for s, _ in slots))
        arriving = {s: self._forms.get(s, {}) for s in own}
        takes = all(
            a.how != "wild" and a.slots <= own[s].slots for s, form in arriving.items() for a in form.values()
        ) and any(arriving.values())
        for source, form in arriving.items():
            if takes:
                self.absorbing[source] = record
                self.absorbed[source] = form
            self._forms[source] = add_forms({} if takes else form, {source: own[source]})

    def _pass_stochastic(self, record: Sum) -> None:
        term = record.terms[0]
        dim = self._stochastic.get(term.value)
        for label, dims in term.groups.items():
            target = record.out.groups.get(label, ())
            if dim is not None and dims == (dim,) and len(target) == 1:
                self._stochastic[record.out.value] = target[0]

    def _cut(self, record: Cut, joint: JointCell, whole: Form) -> None:
        """A value and its part have one form; it flows from the side that was made first."""
        if not record.joins:
            self._store(joint, whole)
        elif part := self.form(joint.operands[0], joint.cells[0]):
            self._forms[record.whole, joint.cells[1]] = part

    def _product(self, record: Product, joint: JointCell, inputs: list[Form]) -> None:
        for i in (i for i, form in enumerate(inputs) if form):
            reading = self.tied.get(record.factors[i].value)
            if reading is not None and reading.record is record:
                if not reading.unseen:
                    form = {s: replace(a, how="map") for s, a in inputs[i].items()}
                    self.conditions.append(Condition(joint.operands[i + 1], form, None, reading=True))
                continue
            if record.border:
                self._condition(joint, i + 1, inputs[i], None)
                continue
            others = [o for j, o in enumerate(record.factors) if j != i]
            contracted = self._contracted(record, joint, i)
            constant = all(not contracted & a.slots for a in inputs[i].values())
            if constant and self.passes_average(record, i):
                self._averages.setdefault((i, joint.cells[0]), []).append((
                    joint,
                    self._carry(joint, i + 1, inputs[i], record.scale),
                ))
            elif any(o.value in self.classes.data for o in others):
                self._store(joint, self._mix(joint, i, inputs[i], "wild"))
            elif not all(self.is_known(o.value) for o in others):
                self._condition(joint, i + 1, inputs[i], None)  # a buffer or softplus(w), whose numbers we do not know
            elif others or not constant:
                self._store(joint, self._mix(joint, i, inputs[i], "map"))
            else:  # a sum over dimensions along which it is constant
                value, labels = record.factors[i].value, record.factors[i].groups
                count = prod(value.shape[d] for k, g in labels.items() if k not in record.out.groups for d in g)
                self._store(joint, self._carry(joint, i + 1, inputs[i], count * record.scale))

    @staticmethod
    def _contracted(record: Product, joint: JointCell, i: int) -> frozenset[Slot]:
        return frozenset(s for s, (label, _) in joint.slot_names(i + 1).items() if label not in record.out.groups)

    def passes_average(self, record: Product, i: int) -> bool:
        """Whether the other factor is an attention matrix: its rows sum to one, so a constant passes through."""
        others = [f for j, f in enumerate(record.factors) if j != i]
        labels = [label for label in record.factors[i].groups if label not in record.out.groups]
        if len(others) != 1 or len(labels) != 1:
            return False
        at = self._stochastic.get(others[0].value)
        return at is not None and others[0].groups.get(labels[0]) == (at,)

    def _mix(self, joint: JointCell, i: int, form: Form, how: How) -> Form:
        """Times another factor: it may now vary along every slot of that factor."""
        target = {name: slot for slot, name in joint.slot_names(0).items()}
        names = {n for j in range(1, len(joint.operands)) if j != i + 1 for n in joint.slot_names(j).values()}
        more = frozenset(target[n] for n in names if n in target)
        by = tuple((joint.operands[j].value, joint.cells[j]) for j in range(1, len(joint.operands)) if j != i + 1)
        return {
            s: Arrival("wild" if "wild" in {how, a.how} else "map", 1.0, a.slots | more, (by, a.coefficient, a.origin))
            for s, a in self._carry(joint, i + 1, form).items()
        }

    # conditions

    def _condition(self, joint: JointCell, i: int, form: Form, reduced: set[Label] | None) -> None:
        """Operand i may shift only by what is constant along the reduced labels."""
        operand, cell = joint.operands[i], joint.cells[i]
        if reduced is None:
            if form:
                self.conditions.append(Condition(operand, form, None))
            return
        dims = frozenset(d for label in reduced for d in operand.groups.get(label, ()))
        parts = self.classes.cells.layout(operand.value)
        if any(len(parts[d]) > 1 for d in dims):  # all parts must agree
            self._parts.setdefault((i, without(cell, dims)), []).append((joint, form, dims))
            return
        leaves = frozenset(leaf for d in dims for leaf in parts[d][cell[d]].leaves)
        reduced_slots = {s for s, (label, _) in joint.slot_names(i).items() if label in reduced}
        varying = {s: a for s, a in form.items() if a.slots & reduced_slots}
        if varying:
            self.conditions.append(Condition(operand, varying, leaves, dims))

    def _compare_parts(self) -> None:
        """An axis that is cut into parts: what arrives constant and alike on all of them is constant."""
        for (i, _), found in self._parts.items():
            shared = alike([(form, {s for s in slots_of(form) if s[0] in dims}) for _, form, dims in found])
            for joint, form, dims in found:
                rest = {s: a for s, a in form.items() if s not in shared}
                if rest:
                    self.conditions.append(Condition(joint.operands[i], rest, None, dims))
        for averaged in self._averages.values():  # an average over all parts together
            first = averaged[0][1]
            same = all(form == first for _, form in averaged)
            for joint, form in averaged[:1] if same else averaged:
                wild = {s: replace(a, how="wild") for s, a in form.items()}
                self._store(joint, form if same else wild)
        self._parts.clear()
        self._averages.clear()

    def _forbid(self, operand: Operand) -> None:
        for cell in self.classes.cells.cells(operand.value):
            form = self._forms.get((operand.value, cell), {})
            if form:
                self.conditions.append(Condition(operand, form, None))
