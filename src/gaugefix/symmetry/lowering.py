"""Lowering: operations become records, and axes that must transform together are unified on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gaugefix.symmetry.axes import Axis, AxisError, pin_leaves, product_axis, unify
from gaugefix.symmetry.graph import Graph, Op, Value
from gaugefix.symmetry.records import Cut, Label, Operand, Pointwise, Product, Record, Sum
from gaugefix.symmetry.symmetries import OpaqueOp

_NORMS = {"layer_norm", "native_layer_norm", "group_norm"}  # their output has a structure that readers can use
#: operations that only read a tensor, so that zeros stay zeros
_READS = {
    "add", "sub", "mul", "linear", "addmm", "matmul", "cat", "stack", "tanh", "relu", "gru_cell", "lstm_cell",
    "rnn_tanh_cell", "rnn_relu_cell",
}  # fmt: skip
_UNIFORM = {"full", "new_full", "ones", "new_ones"}  #: every entry is the same
_REPEATING = {"expand", "broadcast_to", "expand_as", "to", "clone", "contiguous"}  #: copies, some along new dimensions
Rule = Callable[[Op, "Lowering"], None]
RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Teach the search an operation.

    The function gets the operation and a `Lowering`, and states what the operation does by the methods
    `Lowering.product`, `Lowering.sum`, `Lowering.pointwise`, …. An operation without a rule pins every axis that
    enters it, so a missing rule hides symmetries and never invents one; a wrong rule is caught by verification.

    Args:
        names: ATen names without namespace, overload or trailing underscore ("add" for ``aten.add_.Tensor``).

    Returns:
        A decorator that registers the function and returns it.

    Example:
        >>> from gaugefix.symmetry import register_rule
        >>> @register_rule("my_op")
        ... def my_op(op, lower):  # out = x * x, entry by entry
        ...     lower.pointwise(op.arg(0, "x"), op.out, "square", degree=2, parity="even")
    """

    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


@dataclass(eq=False)
class Lowering:
    """The state of one search: axes of every value, records, and what could not be seen through.

    Attributes:
        graph: what is lowered.
        records: the statements so far.
        zero: values whose scale, sign and shift cannot change (inputs, outputs, buffers, constants, opaque ends).
        opaque: operations without a rule.
        stacked: values that exist only as parts along one dimension (a fused projection before it is selected).
        routed: values whose rows met experts chosen by data -> the same with all experts as a leading axis.
    """

    graph: Graph
    records: list[Record] = field(default_factory=list)
    zero: list[Value] = field(default_factory=list)
    opaque: list[OpaqueOp] = field(default_factory=list)
    stacked: dict[Value, tuple[int, list[Value]]] = field(default_factory=dict)
    consumers: dict[Value, list[Op]] = field(default_factory=dict)
    routed: dict[Value, Value] = field(default_factory=dict)
    narrow: dict[Value, tuple[int, ...]] = field(default_factory=dict)  # data that repeats itself: 1 where it does
    _axes: dict[Value, list[Axis]] = field(default_factory=dict)
    _place: str = ""

    def run(self) -> Lowering:
        """Lower the whole graph.

        Returns:
            Itself.
        """
        for op in self.graph.ops:
            for v in op.values():
                self.consumers.setdefault(v, []).append(op)
        live = set(self.graph.params.values())
        for op in self.graph.ops:
            self._place = op.place
            if op.outputs and all(0 in v.shape for v in op.outputs):  # no entries: what a full slice leaves
                for v in op.outputs:
                    v.kind = "const"
                continue
            if live.isdisjoint(op.values()) and op.name not in _NORMS:  # data: no parameter in it
                if self._is_zero(op):
                    op.out.kind = "zeros"
                    continue
                for v in op.outputs:
                    v.kind = "input" if any(a.kind == "input" for a in op.values()) else "const"
                self._note_repeats(op)
                continue
            live |= set(op.outputs)
            try:
                self._lower(op)
            except AxisError as error:
                self.give_up(op, str(error))
        for v in self.graph.outputs:
            self._freeze(v)
        pin_leaves(axis for axes in self._axes.values() for axis in axes)
        return self

    def _is_zero(self, op: Op) -> bool:
        """Whether an operation makes zeros that nothing writes to: an initial state. Every group leaves them alone."""
        return (
            op.name in {"zeros", "new_zeros", "zeros_like"}
            and op.out.is_float
            and op.out not in self.graph.outputs
            and all(reader.name in _READS and not reader.in_place for reader in self.consumers.get(op.out, []))
        )

    def _note_repeats(self, op: Op) -> None:
        """Data that is the same along some dimensions (a mask expanded over heads) pins nothing there."""
        out = op.out
        if len(op.outputs) != 1 or any(reader.in_place for reader in self.consumers.get(out, [])):
            return
        if op.name in _UNIFORM:
            self.narrow[out] = (1,) * out.ndim
        elif op.name in _REPEATING and isinstance(x := op.args[0], Value) and x.ndim <= out.ndim:
            shape = self.narrow.get(x, x.shape)
            self.narrow[out] = (*(1,) * (out.ndim - len(shape)), *shape)

    def _lower(self, op: Op) -> None:
        rule = RULES.get(op.name)
        if all(not v.is_float or v.kind in {"input", "const", "buffer", "zeros"} for v in op.values()):
            for v in op.outputs:  # integers: whatever made them of numbers has pinned those
                v.kind = "input"
            return
        if not self.routed.keys().isdisjoint(op.values()) and "grouped_mm" not in op.name:
            RULES["routed"](op, self)
        elif rule is None:
            self.give_up(op, "no rule for this operation")
        else:
            rule(op, self)

    # values and axes

    def axes(self, value: Value) -> list[Axis]:
        """The axes of a value; those of data, buffers and constants are pinned."""
        if value not in self._axes:
            self._axes[value] = [Axis(n) for n in value.shape]
            if value.kind in {"input", "buffer", "const"} or not value.is_float:
                self._freeze(value)
        return self._axes[value]

    @property
    def values(self) -> Mapping[Value, list[Axis]]:
        """Every value that has axes."""
        return self._axes

    def set_axes(self, value: Value, axes: Sequence[Axis]) -> None:
        """Give a new value its axes."""
        self._axes[value] = list(axes)

    def use(self, value: Value) -> Value:
        """Data, a buffer or a constant under a fresh name, so that one table read twice does not tie its readers."""
        if value.kind in {"input", "buffer", "const", "zeros"} and not value.name.endswith("'"):
            return self.temp(value.shape, f"{value.name}'", kind=value.kind)
        return value

    def temp(self, shape: Sequence[int], name: str = "tmp", kind: Any = "op") -> Value:
        """A value that the graph does not have: an intermediate step of a compound operation."""
        return Value(name, tuple(shape), kind)

    def _freeze(self, value: Value) -> None:
        self.zero.append(value)
        for axis in self.axes(value):
            axis.pin()

    def give_up(self, op: Op, reason: str) -> None:
        """Pin everything that touches an operation and report it."""
        self.opaque.append(OpaqueOp(op.name, op.place or op.out.name, reason))
        for v in [*op.values(), *op.outputs]:
            if v.is_float:
                self._freeze(v)
            for part in self.stacked.get(v, (0, []))[1]:
                self._freeze(part)

    def pin_dims(self, value: Value, dims: Sequence[int]) -> None:
        """Pin some axes of a value."""
        for d in dims:
            self.axes(value)[d].pin()

    # statements

    def operand(self, value: Value, groups: Mapping[Label, int | tuple[int, ...]]) -> Operand:
        """A value with labelled dimensions; size-1 dimensions get no label."""
        named = {k: (d,) if isinstance(d, int) else tuple(d) for k, d in groups.items()}
        shape = self.narrow.get(value, value.shape)
        same = {d for d, n in enumerate(shape) if n != value.shape[d]}
        if same and all(same.issuperset(dims) or same.isdisjoint(dims) for dims in named.values()):
            value = self.temp(shape, f"{value.name}'", kind=value.kind)
            return Operand(value, {k: dims for k, dims in named.items() if same.isdisjoint(dims)})
        return Operand(self.use(value), named)

    def _unify(self, operands: Sequence[Operand]) -> None:
        first: dict[Label, Axis] = {}
        for operand in operands:
            axes = self.axes(operand.value)
            for label, dims in operand.groups.items():
                axis = product_axis([axes[d] for d in dims])
                unify(first.setdefault(label, axis), axis)

    def emit(self, record: Record) -> None:
        """Unify the axes of a record by label and keep it."""
        self._unify([*record.operands(), record.out])
        self.records.append(record)

    def product(
        self,
        factors: Sequence[tuple[Value, Mapping[Label, int | tuple[int, ...]]]],
        out: Value,
        labels: Mapping[Label, int | tuple[int, ...]],
        *,
        scale: float = 1.0,
        border: bool = False,
    ) -> None:
        """State that out = scale · Σ over the other labels of the product of the factors."""
        operands = tuple(self.operand(v, g) for v, g in factors)
        self.emit(
            Product(out=self.operand(out, labels), place=self._place, factors=operands, scale=scale, border=border)
        )

    def sum(
        self,
        terms: Sequence[tuple[Value, Mapping[Label, int | tuple[int, ...]]]],
        out: Value,
        labels: Mapping[Label, int | tuple[int, ...]],
        coefficients: Sequence[float] | None = None,
    ) -> None:
        """State that out = Σ coefficient · term (coefficients default to 1), broadcast over the labels a term lacks."""
        operands = tuple(self.operand(v, g) for v, g in terms)
        self.emit(
            Sum(
                out=self.operand(out, labels),
                place=self._place,
                terms=operands,
                coefficients=tuple(coefficients or [1.0] * len(operands)),
            )
        )

    def same(self, x: Value, out: Value, scale: float = 1.0) -> None:
        """State that out = scale · x, dimension by dimension."""
        self.sum([(x, aligned(x, out))], out, aligned(out, out), [scale])

    def pointwise(
        self,
        x: Value,
        out: Value,
        name: str,
        *,
        degree: float | None = None,
        parity: str | None = None,
        translates: bool = False,
    ) -> None:
        """State that out = φ(x) entry by entry."""
        self.emit(
            Pointwise(
                out=self.operand(out, aligned(out, out)),
                place=self._place,
                x=self.operand(x, aligned(x, out)),
                name=name,
                degree=degree,
                parity=parity,
                translates=translates,
            )
        )

    def cut(self, whole: Value, dim: int, start: int, part: Value, *, joins: bool = False) -> None:
        """``part`` equals ``whole`` on the positions ``start …`` of a dimension; their axes are related already."""
        self.records.append(
            Cut(
                out=self.operand(part, aligned(part, part)),
                place=self._place,
                whole=whole,
                dim=dim,
                start=start,
                joins=joins,
            )
        )

    @property
    def place(self) -> str:
        """Module path of the operation being lowered."""
        return self._place


def aligned(value: Value, out: Value) -> dict[Label, int]:
    """Labels 0…ndim−1 of ``out`` on the dimensions of ``value`` under broadcasting rules.

    Args:
        value: an operand.
        out: the broadcast result.

    Returns:
        Label -> dimension; broadcast dimensions (size 1 against more) are left out.
    """
    shift = out.ndim - value.ndim
    return {d + shift: d for d in range(value.ndim) if value.shape[d] == out.shape[d + shift]}
