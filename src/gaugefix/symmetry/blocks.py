"""Repeated blocks: linear equations of equal blocks are eliminated once.

The equations of one block (a layer of a transformer) tie many unknowns that occur nowhere else. Eliminating those
leaves few equations between parameters and what the block shares with others; two blocks that are equal up to the names
of their unknowns leave equal equations, so the elimination is done once for each distinct block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from gaugefix.symmetry.linear_system import LinearSystem, Number, Row

Pattern = tuple[tuple[tuple[int, Number], ...], ...]


def block_of(place: str) -> str:
    """The repeated module that a module path lies in: the path up to its first number.

    Args:
        place: for example "model.layers.3.self_attn".

    Returns:
        For example "model.layers.3"; "" for what is in no list of modules.
    """
    head: list[str] = []
    for part in place.split("."):
        head.append(part)
        if part.isdigit():
            return ".".join(head)
    return ""


@dataclass
class BlockSolver:
    """Eliminates what only one block knows, with a memory for equal blocks.

    Attributes:
        modulus: 0 for the rationals, 2 for GF(2).
        kept: unknowns that must not be eliminated (those of parameters).
        blocks: number of blocks seen.
        distinct: number of blocks for which the elimination was done.
    """

    modulus: int
    kept: Callable[[Hashable], bool]
    blocks: int = 0
    distinct: int = 0
    _memory: dict[tuple[Pattern, tuple[int, ...]], tuple[dict[int, Number], ...]] = field(default_factory=dict)

    def reduce(self, equations: Iterable[tuple[str, Row]]) -> Iterator[Row]:
        """The equations that are left when the unknowns of single blocks are eliminated.

        Args:
            equations: each with its block.

        Yields:
            Equations between kept and shared unknowns that have the same solutions for those.
        """
        grouped: dict[str, list[Row]] = {}
        owner: dict[Hashable, str] = {}
        shared: set[Hashable] = set()
        for block, row in equations:
            grouped.setdefault(block, []).append(row)
            for v in row:
                if owner.setdefault(v, block) != block:
                    shared.add(v)
        for rows in grouped.values():
            number: dict[Hashable, int] = {}
            pattern = tuple(tuple((number.setdefault(v, len(number)), c) for v, c in row.items()) for row in rows)
            fixed = tuple(i for v, i in number.items() if v in shared or self.kept(v))
            names = list(number)
            for rest in self._solve(pattern, fixed):
                yield {names[i]: c for i, c in rest.items()}

    def _solve(self, pattern: Pattern, fixed: tuple[int, ...]) -> tuple[dict[int, Number], ...]:
        self.blocks += 1
        key = (pattern, fixed)
        if key not in self._memory:
            self.distinct += 1
            self._memory[key] = tuple(_eliminate(pattern, set(fixed), self.modulus))
        return self._memory[key]


def _eliminate(pattern: Pattern, fixed: set[int], modulus: int) -> Iterator[dict[int, Number]]:
    """What the equations say about the fixed unknowns."""
    system = LinearSystem(modulus)
    for equation in pattern:
        row = system.reduce(dict(equation))
        inner = [v for v in row if v not in fixed]
        if inner:
            system.solve_for(min(inner, key=lambda v: abs(row[v]) != 1), row)
        elif row:
            yield {v: int(c) if isinstance(c, Fraction) and c.denominator == 1 else c for v, c in row.items()}
