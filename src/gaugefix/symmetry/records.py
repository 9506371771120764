"""The eight statements into which every operation is lowered. Everything after this file reads only these.

Each says how an output depends on its operands along labelled axes. Values are tensors; a label names an axis (or a
group of adjacent dimensions) shared by operands and output, so that a square matrix keeps its two sides apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from gaugefix.symmetry.graph import Value

Label = Hashable


@dataclass(frozen=True, eq=False)
class Operand:
    """A value with labelled dimensions. Dimensions of size 1 that broadcast carry no label.

    Attributes:
        value: the tensor.
        groups: label -> the dimensions it covers, outermost first.
    """

    value: Value
    groups: Mapping[Label, tuple[int, ...]]

    def hidden_dims(self) -> set[int]:
        """Dimensions without a label that do not just broadcast: read at one position that data choose."""
        named = {d for dims in self.groups.values() for d in dims}
        return {d for d in range(self.value.ndim) if d not in named and self.value.shape[d] != 1}


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """Common part: what is made, and where in the module."""

    out: Operand
    place: str

    def operands(self) -> Iterator[Operand]:
        """Every input operand."""
        yield from ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Record):
    """out = scale · Σ over the labels that out lacks of the product of the operands (linear, matmul, mul, sum, conv).

    Attributes:
        factors: the operands.
        scale: a constant factor.
        border: positions at the border see fewer terms (zero padding), so a constant input gives no constant output.
    """

    factors: tuple[Operand, ...]
    scale: float = 1.0
    border: bool = False

    def operands(self) -> Iterator[Operand]:
        """The factors."""
        yield from self.factors


@dataclass(frozen=True, eq=False, kw_only=True)
class Sum(Record):
    """out = Σ coefficient · term, broadcast; with one term: a view, copy, or multiple of it.

    A term may have dimensions without a label: out reads one position of them, chosen by data (an embedding).

    Attributes:
        terms: the operands.
        coefficients: one number for each term.
    """

    terms: tuple[Operand, ...]
    coefficients: tuple[float, ...]

    def operands(self) -> Iterator[Operand]:
        """The terms."""
        yield from self.terms


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut(Record):
    """out = the entries ``start … start + size`` of ``whole`` along ``dim``.

    The axis of out is that part of the axis of whole already; no labels are needed to say so. With ``joins`` the
    whole is made from the parts (a concatenation), else the part is taken from the whole (a split).
    """

    whole: Value
    dim: int
    start: int
    joins: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Pointwise(Record):
    """out = φ(x) entry by entry.

    Attributes:
        x: the input.
        name: of the function, for people and forecasts ("relu").
        degree: p if φ(cx) = cᵖφ(x) for every c > 0, else None.
        parity: "odd", "even" or None.
        translates: φ(x + c) = φ(x) + c for c constant along the positions it mixes (max-pooling).
    """

    x: Operand
    name: str
    degree: float | None = None
    parity: str | None = None
    translates: bool = False

    def operands(self) -> Iterator[Operand]:
        """The input."""
        yield self.x


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Record):
    """out = gain · (x − mean)/std + bias, statistics over the ``reduced`` labels; RMS norm if not ``centred``."""

    x: Operand
    reduced: frozenset[Label]
    centred: bool = True
    gain: Operand | None = None
    bias: Operand | None = None
    batch: bool = False  # the statistics run over the batch too

    def operands(self) -> Iterator[Operand]:
        """Input, gain and bias."""
        yield self.x
        if self.gain is not None:
            yield self.gain
        if self.bias is not None:
            yield self.bias


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Record):
    """out = exp(x)/Σ exp(x) (or its logarithm) along ``label``; invariant to shifts that are constant along it."""

    x: Operand
    label: Label
    log: bool = False

    def operands(self) -> Iterator[Operand]:
        """The input."""
        yield self.x


@dataclass(frozen=True, eq=False, kw_only=True)
class Rotary(Record):
    """out = x with index pairs (j, j + half) of ``label`` turned by position-dependent angles."""

    x: Operand
    label: Label

    def operands(self) -> Iterator[Operand]:
        """The input."""
        yield self.x
