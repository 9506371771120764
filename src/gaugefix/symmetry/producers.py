"""Looking backward in a graph: which operation made a value, casts and copies aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gaugefix.symmetry.graph import Op, Value

_CASTS = {"to", "_to_copy", "float", "double", "type_as", "contiguous", "clone", "detach", "alias"}


@dataclass(frozen=True)
class Producers:
    """The operation that makes each value.

    Attributes:
        of: value -> its operation.
    """

    of: dict[Value, Op]

    def replace(self, op: Op) -> None:
        """Note that an operation makes its outputs now."""
        self.of.update(dict.fromkeys(op.outputs, op))

    @staticmethod
    def is_cast(op: Op) -> bool:
        """Whether an operation changes no value."""
        return op.name in _CASTS

    def source(self, value: Any) -> Any:
        """A value before casts and copies."""
        while isinstance(value, Value) and value in self.of and self.of[value].name in _CASTS:
            value = self.of[value].args[0]
        return value

    def by(self, value: Any, *names: str) -> Op | None:
        """The operation that makes a value, if it is one of these."""
        value = self.source(value)
        op = self.of.get(value) if isinstance(value, Value) else None
        return op if op is not None and op.name in names else None

    def same(self, a: Any, b: Any) -> bool:
        """Whether two values are one, casts and copies aside."""
        return isinstance(a, Value) and self.source(a) is self.source(b)


def over_last(op: Op) -> bool:
    """Whether an operation with dimensions as its first option reduces the last axis alone."""
    x, dims = op.args[0], op.arg(1, "dim")
    dims = dims if isinstance(dims, list | tuple) else [dims]
    return [d % x.ndim for d in dims if isinstance(d, int)] == [x.ndim - 1]
