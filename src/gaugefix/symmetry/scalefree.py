"""Where the size of a value does not matter: every use of it ends in a normalisation.

A scalar factor that differs from sample to sample and position to position is removed by a later normalisation over
the features. So the rows of a table that is only normalised have scales of their own, and an RMS norm that is followed
by another norm, with nothing but homogeneous maps between, divides by a number that nobody sees.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Norm, Operand, Pointwise, Product, Record, Rotary, Sum

_Dims = tuple[int, ...]


@dataclass(frozen=True)
class _Factor:
    """What a value is multiplied by: a power of the factor, which varies along some of its dimensions.

    Attributes:
        degree: of the power.
        along: (dimensions of the value where the factor began, those of this value that run over the same positions).
    """

    degree: float
    along: frozenset[tuple[_Dims, _Dims]]

    def varying(self) -> set[int]:
        """Dimensions of this value along which the factor varies."""
        return {d for _, dims in self.along for d in dims}

    def moved(self, mine: Operand, out: Operand) -> _Factor | None:
        """The factor on what a statement makes of an operand; None if positions with different factors are mixed."""
        along: set[tuple[_Dims, _Dims]] = set()
        left = set(self.along)
        for label, dims in mine.groups.items():
            inside = sorted((p for p in left if set(p[1]) & set(dims)), key=lambda p: p[1])
            if not inside:
                continue
            if label not in out.groups or tuple(d for _, p in inside for d in p) != dims:
                return None
            left -= set(inside)
            began, arrive = tuple(d for o, _ in inside for d in o), out.groups[label]
            along |= {((o,), (d,)) for o, d in zip(began, arrive, strict=True)} if len(began) == len(arrive) else {
                (began, arrive)
            }  # fmt: skip
        return None if left else _Factor(self.degree, frozenset(along))


class ScaleFlow:
    """Follows a positive scalar factor forward through records.

    Args:
        records: of a lowered graph, in order.
        zero: values whose size is fixed (outputs).
    """

    def __init__(self, records: Iterable[Record], zero: Iterable[Value]) -> None:
        self.records = list(records)
        self.consumers: dict[Value, list[int]] = defaultdict(list)
        self.parts: dict[Value, list[Cut]] = defaultdict(list)
        for i, record in enumerate(self.records):
            if isinstance(record, Cut) and record.joins:
                self.parts[record.whole].append(record)
            for v in {o.value for o in _sources(record)}:
                self.consumers[v].append(i)
        self.fixed = set(zero)

    def removed(self, value: Value, constant: frozenset[int]) -> bool:
        """Whether a factor that is constant along some dimensions, and arbitrary along the others, is never seen.

        Args:
            value: what is multiplied.
            constant: dimensions along which the factor does not vary.

        Returns:
            True if every path ends in a normalisation over dimensions along which the factor is constant.
        """
        along = frozenset(((d,), (d,)) for d in range(value.ndim) if d not in constant and value.shape[d] != 1)
        factors = {value: _Factor(1.0, along)}
        queue = list(self.consumers[value])
        if value in self.fixed or not queue:
            return False
        heapq.heapify(queue)
        last = -1
        while queue:
            i = heapq.heappop(queue)
            if i == last:
                continue
            last = i
            record = self.records[i]
            if isinstance(record, Norm):
                if not self._ends(record, factors):
                    return False
                continue
            made = record.whole if isinstance(record, Cut) and record.joins else record.out.value
            if made in factors:
                continue  # the other parts of a concatenation
            factor = self._step(record, factors)
            if factor is None or made in self.fixed or not self.consumers[made]:
                return False
            if factor.degree:
                factors[made] = factor
                for j in self.consumers[made]:
                    heapq.heappush(queue, j)
        return True

    @staticmethod
    def _ends(norm: Norm, factors: dict[Value, _Factor]) -> bool:
        """Whether a normalisation takes the factor out of what it reads."""
        if any(o is not norm.x and o.value in factors for o in norm.operands()):
            return False
        reduced = {d for label in norm.reduced for d in norm.x.groups.get(label, ())}
        return bool(reduced) and not reduced & factors[norm.x.value].varying()

    def _step(self, record: Record, factors: dict[Value, _Factor]) -> _Factor | None:
        """The factor of what a record makes; None if it is more than a factor."""
        if isinstance(record, Cut):
            return self._cut(record, factors)
        mine = [o for o in record.operands() if o.value in factors]
        moved = [factors[o.value].moved(o, record.out) for o in mine]
        if None in moved or not isinstance(record, Sum | Pointwise | Product | Rotary):
            return None
        here = [m for m in moved if m is not None]
        first = here[0]
        if any(m.along != first.along for m in here):
            return None
        if isinstance(record, Sum):
            alike = len(mine) == len(record.terms) and len({m.degree for m in here}) == 1
            return first if alike and not any(o.hidden_dims() for o in mine) else None
        if isinstance(record, Pointwise):
            return None if record.degree is None else _Factor(first.degree * record.degree, first.along)
        if isinstance(record, Rotary):
            turned = set(record.out.groups[record.label])
            return None if turned & first.varying() else first
        return _Factor(sum(m.degree for m in here), first.along)

    def _cut(self, record: Cut, factors: dict[Value, _Factor]) -> _Factor | None:
        """A part has the factor of the whole; the whole that of its parts if they have the same."""
        sources = [c.out.value for c in self.parts[record.whole]] if record.joins else [record.whole]
        found = {factors.get(v) for v in sources}
        factor = found.pop()
        return None if found or factor is None or record.dim in factor.varying() else factor

    def norm_is_idle(self, norm: Norm) -> bool:
        """Whether the size by which a normalisation divides is never seen, so that it might as well not divide."""
        features = frozenset(d for label in norm.reduced for d in norm.out.groups.get(label, ()))
        return self.removed(norm.out.value, features)

    def idle_norms(self) -> list[Norm]:
        """RMS norms whose size nobody sees."""
        plain = (r for r in self.records if isinstance(r, Norm) and not r.centred and r.bias is None)
        return [r for r in plain if self.norm_is_idle(r)]

    def without_idle_norms(self) -> list[Record]:
        """Records of the same function in which `idle_norms` multiply by their gain and do not divide."""
        idle = set(self.idle_norms())
        return [_undivided(r) if isinstance(r, Norm) and r in idle else r for r in self.records]


def _sources(record: Record) -> list[Operand]:
    """What a record reads."""
    if isinstance(record, Cut):
        return [record.out if record.joins else Operand(record.whole, {})]
    return list(record.operands())


def _undivided(norm: Norm) -> Record:
    if norm.gain is None:
        return Sum(out=norm.out, place=norm.place, terms=(norm.x,), coefficients=(1.0,))
    return Product(out=norm.out, place=norm.place, factors=(norm.x, norm.gain))
