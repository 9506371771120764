"""Scale and sign charges: every diagonal symmetry, from one homogeneous linear system.

The logarithm of the scale of a cell is a sum of functions of its slots. Split into sectors (the part that depends on
exactly the indices in a set A, with zero mean over each), every record becomes one linear equation per sector with
integer coefficients, the same for every index; so the system has a few unknowns per tensor, whatever the widths, and
its null space is exact. Signs are the same system over GF(2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from gaugefix.symmetry.axes import Axis, AxisError
from gaugefix.symmetry.blocks import BlockSolver, block_of
from gaugefix.symmetry.cells import Cell, Cells, JointCell, JointSlot, Sector
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.linear_system import LinearSystem, Number, Row, rank_basis
from gaugefix.symmetry.records import Cut, Norm, Pointwise, Product, Record, Rotary, Softmax, Sum
from gaugefix.symmetry.scalefree import ScaleFlow

Variable = tuple[Value, Cell, Sector]


@dataclass(frozen=True, eq=False)
class ChargeSpace:
    """All diagonal symmetries, sector by sector.

    Attributes:
        basis: classes of the sector -> independent charge vectors on (parameter, cell, sector) variables.
        cells: what it was solved for.
        blocks: number of blocks of the module.
        distinct_blocks: number of those that were solved; the others are equal to one of them.
    """

    basis: dict[frozenset[Axis], list[Row]]
    cells: Cells
    blocks: int = 0
    distinct_blocks: int = 0

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
    solver = BlockSolver(modulus, kept=lambda v: isinstance(v, tuple) and v[0] in params)
    for equation in solver.reduce(_equations(cells, signs=modulus == 2)):
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
    basis = {s: rank_basis(rows, modulus=modulus) for s, rows in by_sector.items()}
    return ChargeSpace(basis, cells, solver.blocks, solver.distinct)


def sector_classes(cells: Cells, variable: Variable) -> frozenset[Axis]:
    """The leaf classes on whose indices a variable depends."""
    value, cell, sector = variable
    return frozenset(leaf for slot, leaf in cells.slots(value, cell) if slot in sector)


def _equations(cells: Cells, signs: bool) -> Iterator[tuple[str, Row]]:
    """Every equation, with the block that it belongs to."""
    records = cells.lower.records
    at: dict[Value, str] = {}
    for record in records:
        for value in (record.out.value, *(o.value for o in record.operands())):
            at.setdefault(value, block_of(record.place))
    for value in cells.lower.zero:
        for row in _zero(cells, value):
            yield at.get(value, ""), row
    flow = ScaleFlow(records, cells.lower.zero)
    for record in records:
        block = block_of(record.place)
        for row in _of_record(cells, record, flow, signs):
            yield block, row


def _of_record(cells: Cells, record: Record, flow: ScaleFlow, signs: bool) -> Iterator[Row]:
    idle = isinstance(record, Norm) and not record.centred and record.bias is None and flow.norm_is_idle(record)
    try:
        joints = list(cells.joint(record))
    except AxisError:
        for operand in (record.out, *record.operands()):
            yield from _zero(cells, operand.value)
        return
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
