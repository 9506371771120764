"""What arrives of the constants that shift gauges add: forms, and the conditions that they must meet."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.cells import Cell, Slot
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Operand, Product, Record
from gaugefix.symmetry.units import Params

Source = tuple[Value, Cell]  # a cell of a parameter that is added somewhere
How = Literal["copy", "map", "wild"]


@dataclass(frozen=True)
class Arrival:
    """How the constant of one source arrives at a value.

    Attributes:
        how: "copy": times ``coefficient``; "map": through weights; "wild": times data.
        coefficient: for copies.
        slots: leaves of the cell (tokens and batch too) along which it may vary.
        origin: what it was multiplied by on the way; arrivals that are equal in everything are the same numbers.
    """

    how: How
    coefficient: float
    slots: frozenset[Slot]
    origin: Hashable = None


Form = dict[Source, Arrival]


@dataclass(frozen=True, eq=False)
class Condition:
    """A shift that must vanish, except for what is constant along ``free`` (None: nothing is exempt).

    Attributes:
        operand: the value that must not see it.
        form: what arrives there.
        free: leaves of the axis along which a constant is removed.
        dims: their dimensions in the operand.
        reading: the operand is a table that also reads (see `TiedReading`), and only that is meant.
    """

    operand: Operand
    form: Form
    free: frozenset[Axis] | None
    dims: frozenset[int] = frozenset()
    reading: bool = False


class TiedReading(Protocol):
    """How a table that is also contracted with data takes a constant that is added to all its rows."""

    @property
    def table(self) -> Value:
        """The parameter."""

    @property
    def record(self) -> Product:
        """Where it is contracted with data."""

    @property
    def unseen(self) -> bool:
        """Whether a softmax removes what is added to every output."""

    @property
    def bias(self) -> str | None:
        """A bias behind it."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Dimensions along which it is looked up."""

    def seen(self, params: Params, shift: Tensor) -> Tensor:
        """What the reading sees of it."""

    def absorbed(self, params: Params, shift: Tensor) -> Tensor:
        """What a bias has to take back."""


def sources_of(record: Record) -> list[Operand]:
    """Operands that a record reads."""
    if isinstance(record, Cut):
        return [record.out if record.joins else Operand(record.whole, {})]
    return list(record.operands())


def without(cell: Cell, dims: frozenset[int]) -> Cell:
    """A cell without some dimensions."""
    return tuple(k for d, k in enumerate(cell) if d not in dims)


def slots_of(form: Form) -> set[Slot]:
    """Slots along which anything that arrives varies."""
    return {slot for a in form.values() for slot in a.slots}


def alike(parts: list[tuple[Form, set[Slot]]]) -> set[Source]:
    """Sources that arrive on all parts in the same way, constant along the given slots."""
    first = parts[0][0]
    return {s for s, a in first.items() if all(form.get(s) == a and not a.slots & varying for form, varying in parts)}


def add_forms(a: Form, b: Form) -> Form:
    """The sum of two forms."""
    out = dict(a)
    for source, new in b.items():
        old = out.get(source)
        if old is None:
            out[source] = new
            continue
        kinds = {old.how, new.how}
        how: How = "wild" if "wild" in kinds else "map" if "map" in kinds else "copy"
        origin = None if how == "copy" else ((old.origin, old.coefficient), (new.origin, new.coefficient))
        out[source] = Arrival(how, old.coefficient + new.coefficient, old.slots | new.slots, origin)
    return {s: a for s, a in out.items() if a.how != "copy" or a.coefficient}
