"""Where the size of a value does not matter: every use of it ends in a normalisation.

A scalar factor that differs from sample to sample and position to position is removed by a later normalisation over
the features. So the rows of a table that is only normalised have scales of their own, and an RMS norm that is followed
by another norm, with nothing but homogeneous maps between, divides by a number that nobody sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Pointwise, Product, Record, Rotary, Sum

State = tuple[Value, frozenset[int]]  # a value and the dimensions along which its factor is constant


class ScaleFlow:
    """Follows a scalar factor forward through records.

    Args:
        records: of a lowered graph, in order.
        zero: values whose size is fixed (outputs).
    """

    def __init__(self, records: Iterable[Record], zero: Iterable[Value]) -> None:
        self.consumers: dict[Value, list[tuple[Record, int]]] = defaultdict(list)
        for record in records:
            sources = (
                [record.out.value if record.joins else record.whole]
                if isinstance(record, Cut)
                else [o.value for o in record.operands()]
            )
            for i, v in enumerate(sources):
                self.consumers[v].append((record, i + 1))
        self.fixed = set(zero)

    def removed(self, value: Value, constant: frozenset[int]) -> bool:
        """Whether a factor that is constant along some dimensions, and arbitrary along the others, is never seen.

        Args:
            value: what is multiplied.
            constant: dimensions along which the factor does not vary.

        Returns:
            True if every path ends in a normalisation over dimensions along which the factor is constant.
        """
        stack: list[State] = [(value, constant)]
        seen: set[State] = set()
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            if state[0] in self.fixed or not self.consumers[state[0]]:
                return False
            for record, i in self.consumers[state[0]]:
                onward = self._step(record, i, state[1])
                if onward is None:
                    return False
                stack += onward
        return True

    def _step(self, record: Record, i: int, constant: frozenset[int]) -> list[State] | None:
        """Where the factor goes on; an empty list if it is removed, None if it is seen."""
        operands = [record.out, *record.operands()]
        if isinstance(record, Cut):
            return None
        mine = operands[i]
        if isinstance(record, Norm):
            reduced = {d for label in record.reduced for d in mine.groups.get(label, ())}
            return [] if i == 1 and reduced and reduced <= constant else None
        single = isinstance(record, Sum) and len(record.terms) == 1 and not mine.hidden_dims()
        power = isinstance(record, Pointwise) and record.degree is not None
        if not (single or power or isinstance(record, Product | Rotary)):
            return None
        if any(label not in record.out.groups and not set(dims) <= constant for label, dims in mine.groups.items()):
            return None  # positions with different factors are mixed
        varying = {
            d for label, dims in mine.groups.items() if not set(dims) <= constant for d in record.out.groups[label]
        }
        rest = frozenset(range(record.out.value.ndim)) - varying
        return [(record.out.value, rest)]

    def norm_is_idle(self, norm: Norm) -> bool:
        """Whether the size by which a normalisation divides is never seen, so that it might as well not divide."""
        return self.removed(norm.out.value, self._features(norm.out, norm.reduced))

    @staticmethod
    def _features(out: Operand, reduced: frozenset[Label]) -> frozenset[int]:
        return frozenset(d for label in reduced for d in out.groups.get(label, ()))
