"""Exact linear algebra on sparse rows, over the rationals or GF(2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Number = int | Fraction
Row = dict[Any, Number]


@dataclass
class LinearSystem:
    """Sparse exact elimination of homogeneous equations; ``modulus`` 0 is the rationals, 2 is GF(2).

    Every eliminated variable is kept as a combination of free ones, resolved lazily with path compression, so a chain
    of copies costs what union-find costs.
    """

    modulus: int = 0
    solved: dict[Any, Row] = field(default_factory=dict)
    prefer: Callable[[Any], int] = field(default=lambda _: 0)  # variables of high preference stay free

    def resolve(self, variable: Any) -> Row:
        """A variable as a combination of free variables."""
        if variable not in self.solved:
            return {variable: 1}
        trail, stack = [], [variable]
        while stack:  # depth first without recursion: chains are as long as the network
            v = stack.pop()
            if v in self.solved:
                pending = [w for w in self.solved[v] if w in self.solved]
                if pending:
                    stack.append(v)
                    deeper = [w for w in pending if any(u in self.solved for u in self.solved[w])]
                    if deeper:
                        stack += deeper
                    else:
                        self.solved[v] = self._substitute(self.solved[v])
                        trail.append(v)
        return self.solved[variable]

    def _substitute(self, row: Row) -> Row:
        out: Row = {}
        for w, c in row.items():
            for u, k in self.solved.get(w, {w: 1}).items():
                out[u] = out.get(u, 0) + c * k
        return self._clean(out)

    def _clean(self, row: Row) -> Row:
        if self.modulus:
            return {v: 1 for v, c in row.items() if c % self.modulus}
        return {v: c for v, c in row.items() if c}

    def reduce(self, equation: Mapping[Any, Number]) -> Row:
        """An equation in terms of free variables."""
        row: Row = {}
        for v, c in equation.items():
            for u, k in self.resolve(v).items():
                row[u] = row.get(u, 0) + c * k
        return self._clean(row)

    def solve_for(self, pivot: Any, row: Row) -> None:
        """Impose a reduced equation by eliminating one of its variables."""
        c = row[pivot]
        self.solved[pivot] = {v: _ratio(-k, c) if not self.modulus else 1 for v, k in row.items() if v != pivot}

    def add(self, equation: Mapping[Any, Number]) -> None:
        """Impose Σ coefficient · variable = 0."""
        row = self.reduce(equation)
        if row:
            self.solve_for(min(row, key=lambda v: (self.prefer(v), abs(row[v]) != 1)), row)


def _ratio(a: Number, b: Number) -> Number:
    value = Fraction(a) / b
    return int(value) if value.denominator == 1 else value


@dataclass
class Span:
    """The linear span of sparse vectors, grown one at a time; ``modulus`` as in `LinearSystem`."""

    modulus: int = 0
    pivots: dict[Any, Row] = field(default_factory=dict)

    def reduce(self, row: Mapping[Any, Number]) -> Row:
        """The row modulo the span; empty if it lies in it."""
        out = dict(row)
        while (v := next((v for v in out if v in self.pivots), None)) is not None:
            c = out[v]  # a pivot row holds no earlier pivots, so this ends
            for u, k in self.pivots[v].items():
                value = out.get(u, 0) - c * k
                if value % self.modulus if self.modulus else value:
                    out[u] = value % self.modulus if self.modulus else value
                else:
                    out.pop(u, None)
        return out

    def add(self, row: Mapping[Any, Number]) -> bool:
        """Take a row in; whether it was new."""
        rest = self.reduce(row)
        if not rest:
            return False
        v, c = next(iter(rest.items()))
        self.pivots[v] = dict.fromkeys(rest, 1) if self.modulus else {u: _ratio(k, c) for u, k in rest.items()}
        return True

    def __contains__(self, row: Mapping[Any, Number]) -> bool:
        return not self.reduce(row)


def rank_basis(rows: Iterable[Row], known: Iterable[Row] = (), modulus: int = 0) -> list[Row]:
    """The rows that are independent of ``known`` and of each other, in order.

    Args:
        rows: candidate vectors.
        known: vectors already spanned.
        modulus: 0 for the rationals, 2 for GF(2).

    Returns:
        The kept rows, unchanged.
    """
    span = Span(modulus)
    for row in known:
        span.add(row)
    return [row for row in rows if span.add(row)]
