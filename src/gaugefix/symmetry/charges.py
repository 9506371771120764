"""Scale and sign charges: every diagonal symmetry, from one homogeneous linear system.

The logarithm of the scale of a cell is a sum of functions of its slots. Split into sectors (the part that depends on
exactly the indices in a set A, with zero mean over each), every record becomes one linear equation per sector with
integer coefficients, the same for every index; so the system has a few unknowns per tensor, whatever the widths, and
its null space is exact. Signs are the same system over GF(2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

from gaugefix.symmetry.axes import Axis, AxisError
from gaugefix.symmetry.cells import Cell, Cells, JointCell, JointSlot, Sector
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Norm, Pointwise, Product, Record, Rotary, Softmax, Sum
from gaugefix.symmetry.scalefree import ScaleFlow

Variable = tuple[Value, Cell, Sector]
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

    def add(self, equation: Mapping[Any, Number]) -> None:
        """Impose Σ coefficient · variable = 0."""
        row: Row = {}
        for v, c in equation.items():
            for u, k in self.resolve(v).items():
                row[u] = row.get(u, 0) + c * k
        row = self._clean(row)
        if not row:
            return
        pivot = min(row, key=lambda v: (self.prefer(v), abs(row[v]) != 1))
        c = row.pop(pivot)
        self.solved[pivot] = {v: _ratio(-k, c) if not self.modulus else 1 for v, k in row.items()}


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


@dataclass(frozen=True, eq=False)
class ChargeSpace:
    """All diagonal symmetries, sector by sector.

    Attributes:
        basis: classes of the sector -> independent charge vectors on (parameter, cell, sector) variables.
    """

    basis: dict[frozenset[Axis], list[Row]]
    cells: Cells

    @staticmethod
    def directions(sector: frozenset[Axis]) -> int:
        """Number of functions with zero mean over each index of a sector: Π (n − 1)."""
        return prod(leaf.size - 1 for leaf in sector)


def solve_charges(cells: Cells, modulus: int = 0) -> ChargeSpace:
    """Solve for every diagonal rescaling (``modulus`` 0) or sign flip (``modulus`` 2).

    Args:
        cells: of a lowered graph; records whose operands disagree are given up there (reported as opaque).
        modulus: 0 or 2.

    Returns:
        The charge space.
    """
    params = {v: i for i, v in enumerate(cells.lower.graph.params.values())}
    system = LinearSystem(modulus, prefer=lambda v: 1 if v[0] in params else 0)
    for equation in _equations(cells, signs=modulus == 2):
        system.add(equation)
    free: dict[Variable, Row] = defaultdict(dict)
    for value in (v for v in params if v in cells.lower.values):
        for cell in cells.cells(value):
            for sector in cells.sectors(value, cell):
                variable = (value, cell, sector)
                for root, c in system.resolve(variable).items():
                    free[root][variable] = c
    by_sector: dict[frozenset[Axis], list[Row]] = defaultdict(list)
    for root in sorted(free, key=lambda r: min(params[v[0]] for v in free[r])):
        by_sector[sector_classes(cells, root)].append(free[root])
    return ChargeSpace({s: rank_basis(rows, modulus=modulus) for s, rows in by_sector.items()}, cells)


def sector_classes(cells: Cells, variable: Variable) -> frozenset[Axis]:
    """The leaf classes on whose indices a variable depends."""
    value, cell, sector = variable
    return frozenset(leaf for slot, leaf in cells.slots(value, cell) if slot in sector)


def _equations(cells: Cells, signs: bool) -> Iterator[Row]:
    for value in cells.lower.zero:
        yield from _zero(cells, value)
    flow = ScaleFlow(cells.lower.records, cells.lower.zero)
    for record in cells.lower.records:
        idle = isinstance(record, Norm) and not record.centred and record.bias is None and flow.norm_is_idle(record)
        try:
            joints = list(cells.joint(record))
        except AxisError:
            for operand in (record.out, *record.operands()):
                yield from _zero(cells, operand.value)
            continue
        for joint in joints:
            yield from _record_equations(record, joint, signs, idle=idle)
        if isinstance(record, Norm) and (record.centred or not signs) and not idle:
            yield from _norm_ties(record, joints)


def _zero(cells: Cells, value: Value) -> Iterator[Row]:
    for cell in cells.cells(value):
        for sector in cells.sectors(value, cell):
            yield {(value, cell, sector): 1}


def _terms(joint: JointCell, i: int) -> dict[frozenset[JointSlot], Variable]:
    """Variables of operand i by jointly named sector; slots without a label (broadcast) are of size 1."""
    operand, cell, names = joint.operands[i], joint.cells[i], joint.slot_names(i)
    return {
        frozenset(names[s] for s in sector): (operand.value, cell, sector)
        for sector in joint.cells_of.sectors(operand.value, cell)
        if all(s in names for s in sector)
    }


def _linear(parts: Iterable[tuple[Number, dict[frozenset[JointSlot], Variable]]]) -> Iterator[Row]:
    """Σ coefficient · function = 0, sector by sector; a function without a sector is zero there."""
    parts = list(parts)
    for name in dict.fromkeys(n for _, terms in parts for n in terms):
        row: Row = {}
        for c, terms in parts:
            if name in terms:
                row[terms[name]] = row.get(terms[name], 0) + c
        yield row


def _unlabelled(joint: JointCell, i: int) -> Iterator[Row]:
    """Sectors of a dimension that the record does not name (the rows of an embedding) are zero."""
    operand, cell, names = joint.operands[i], joint.cells[i], joint.slot_names(i)
    for sector in joint.cells_of.sectors(operand.value, cell):
        if any(s not in names for s in sector):
            yield {(operand.value, cell, sector): 1}


def _record_equations(record: Record, joint: JointCell, signs: bool, *, idle: bool = False) -> Iterator[Row]:
    for i in range(len(joint.operands)):
        yield from _unlabelled(joint, i)
    out = _terms(joint, 0)
    rest = [_terms(joint, i) for i in range(1, len(joint.operands))]
    match record:
        case Product():
            yield from _linear([(-1, out), *((1, t) for t in rest)])
        case Sum() | Cut() | Rotary():
            for t in rest:
                yield from _linear([(1, t), (-1, out)])
        case Pointwise():
            yield from _pointwise(record, rest[0], out, signs)
        case Softmax():
            yield from _linear([(1, out)])
            yield from _linear([(1, rest[0])])
        case Norm():
            yield from _norm(record, rest, out, signs or idle)


def _pointwise(
    record: Pointwise, x: dict[frozenset[JointSlot], Variable], out: dict[frozenset[JointSlot], Variable], signs: bool
) -> Iterator[Row]:
    if signs and record.parity == "odd":
        yield from _linear([(1, x), (-1, out)])
    elif signs and record.parity == "even":
        yield from _linear([(1, out)])
    elif not signs and record.degree is not None:
        yield from _linear([(Fraction(record.degree).limit_denominator(64), x), (-1, out)])
    else:
        yield from _linear([(1, x)])
        yield from _linear([(1, out)])


def _norm_ties(record: Norm, joints: list[JointCell]) -> Iterator[Row]:
    """Parts of a concatenation that are normalised together scale together."""
    first: dict[Cell, JointCell] = {}
    reduced = {d for label in record.reduced for d in record.x.groups.get(label, ())}
    for joint in joints:
        key = tuple(0 if d in reduced else k for d, k in enumerate(joint.cells[1]))
        other = first.setdefault(key, joint)
        if other is not joint:
            yield from _linear([(1, _kept(record, joint)), (-1, _kept(record, other))])


def _kept(record: Norm, joint: JointCell) -> dict[frozenset[JointSlot], Variable]:
    """Sectors of the input of a normalisation that do not depend on the reduced labels."""
    return {n: v for n, v in _terms(joint, 1).items() if all(label not in record.reduced for label, _ in n)}


def _norm(
    record: Norm,
    rest: list[dict[frozenset[JointSlot], Variable]],
    out: dict[frozenset[JointSlot], Variable],
    signs: bool,
) -> Iterator[Row]:
    x = rest[0]
    touched = {name: v for name, v in x.items() if any(label in record.reduced for label, _ in name)}
    passes = dict(x) if signs else {}  # a scale is divided out, a sign goes through
    if record.centred or not signs:
        yield from _linear([(1, touched)])
    affine = rest[1:]
    if record.gain is not None:
        yield from _linear([(1, passes), (1, affine[0]), (-1, out)])
    else:
        yield from _linear([(1, passes), (-1, out)])
    if record.bias is not None:
        yield from _linear([(1, affine[-1]), (-1, out)])
