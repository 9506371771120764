"""What the outputs do not see of the values on an axis, at given parameters.

Adding data-dependent multiples of an *unseen* direction u to a value changes no output: 1 in front of a centred
normalisation, what a narrow reader does not see. Unseen directions are carried backward through the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaugefix.symmetry.constraint_axes import Dims, dims_of, labels_of, null_space, positions_of
from gaugefix.symmetry.constraints import Constraints
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Pointwise, Product, Record, Softmax, Sum


@dataclass(eq=False)
class Unseen(Constraints):
    """Constraints and unseen directions of values at one point."""

    _unseen: dict[tuple[Value, Dims], Tensor] = field(default_factory=dict)

    def unseen(self, value: Value, dims: Dims) -> Tensor:
        """Directions along some dimensions of which any multiples, data-dependent ones too, reach no output.

        Args:
            value: any value.
            dims: its dimensions, flattened in order.

        Returns:
            Independent columns, ``(size, k)``.
        """
        key = (value, dims)
        if key not in self._unseen:
            size = self._size(value, dims)
            space = torch.eye(size, dtype=self._like().dtype)
            none = space[:, :0]
            if value in self.flow.outputs:
                space = none
            for record, i in self.flow.consumers[value]:
                if not space.shape[1]:
                    break
                seen = self._seen_by(record, i, dims)
                space = none if seen is None else space @ null_space(seen @ space)
            self._unseen[key] = space
        return self._unseen[key]

    def _complement(self, basis: Tensor) -> Tensor:
        """Rows that vanish on the columns of a basis and on nothing else."""
        return null_space(basis.T).T

    def _seen_by(self, record: Record, i: int, dims: Dims) -> Tensor | None:
        """Rows whose values a reader sees; None if it sees everything."""
        if isinstance(record, Cut):
            return self._cut_sees(record, i, dims)
        operand = [record.out, *record.operands()][i]
        labels = labels_of(operand, dims)
        if labels is None:
            return None
        match record:
            case Sum():
                return self._complement(self.unseen(record.out.value, dims_of(record.out, labels)))
            case Product():
                return self._product_sees(record, i, labels)
            case Norm() if i == 1 and record.centred and record.reduced <= set(labels):
                return self._complement(self.blocks(operand, labels, record.reduced))
            case Norm() if operand is record.bias and all(label in record.out.groups for label in labels):
                return self._complement(self.unseen(record.out.value, dims_of(record.out, labels)))
            case Softmax() if record.label in labels:
                return self._complement(self.blocks(operand, labels, frozenset({record.label})))
            case Pointwise() if record.name == "identity":
                return self._complement(self.unseen(record.out.value, dims_of(record.out, labels)))
            case _:
                return None

    def _cut_sees(self, record: Cut, i: int, dims: Dims) -> Tensor:
        part, whole = record.out.value, record.whole
        target = whole if i == 0 else part
        rows = self._complement(self.unseen(target, dims))
        if record.dim not in dims:
            return rows
        inside = positions_of(whole, dims, record)
        if i == 0:
            return rows[:, inside]
        out = rows.new_zeros(len(rows), self._size(whole, dims))
        out[:, inside] = rows
        return out

    def _product_sees(self, record: Product, i: int, labels: list[Label]) -> Tensor | None:
        mine = record.factors[i - 1]
        others = [f for j, f in enumerate(record.factors) if j != i - 1]
        sharing = [f for f in others if any(label in f.groups for label in labels)]
        if not sharing and all(label in record.out.groups for label in labels):
            return self._complement(self.unseen(record.out.value, dims_of(record.out, labels)))
        if len(sharing) != 1 or not self.flow.is_parameter(sharing[0].value):
            return None
        (w,) = sharing
        if set(w.groups) <= set(labels) and all(label in record.out.groups for label in labels):  # a gain
            rows = self._complement(self.unseen(record.out.value, dims_of(record.out, labels)))
            return rows * self.number(w, labels, record.out)
        if len(others) != 1 or record.border:
            return None
        matrix = self.matrix(record, w, mine)
        if matrix is None or matrix[2] != labels:
            return None
        weight, out_labels, _ = matrix
        if not out_labels:
            return weight
        return self._complement(self.unseen(record.out.value, dims_of(record.out, out_labels))) @ weight
