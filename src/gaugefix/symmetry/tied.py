"""Tables that are read twice: by looking rows up, and as the weight of a last layer.

E → E + 1cᵀ adds c to what is looked up, which biases or positions may take back, and cᵀy to every output of the last
layer. A softmax does not see that; without one c must be a constraint of y (a normalisation gives one), whose constant
a bias of the last layer takes back.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from gaugefix.symmetry.constraints import Constraints
from gaugefix.symmetry.dead import MAX_PARAMETERS, Place, private_bias, read_place
from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Product, Record, Softmax, Sum
from gaugefix.symmetry.units import Params


@dataclass(frozen=True, eq=False)
class Tied:
    """The reading of a table as a weight.

    Attributes:
        table: the parameter.
        record: where it is contracted with data.
        unseen: a softmax removes what is added to every output.
        bias: added behind it.
        flow: who makes and reads what.
        place: where it is read.
        rows: dimensions along which it is looked up.
    """

    table: Value
    record: Product
    unseen: bool
    bias: str | None
    flow: Flow
    place: Place
    rows: tuple[int, ...]

    def _constraints(self, params: Params) -> tuple[Tensor, Tensor]:
        """Constraints that may be used: with a bias all, else those with α = 0."""
        assert self.place.source is not None
        n, alpha = Constraints(self.flow, params).known(*self.place.source)
        if self.bias is None and n.shape[1]:
            values, right = torch.linalg.svd(alpha[None])[1:]
            free = right[int((values > 0).sum()) :].T
            n, alpha = n @ free, free.T @ alpha
        return n, alpha

    def _constant(self, shift: Tensor) -> Tensor:
        """The constant c behind a shift of the table."""
        rest = [d for d in range(shift.ndim) if d not in self.place.inner]
        for d in sorted(rest, reverse=True):
            shift = shift.select(d, 0)
        size = math.prod(self.place.shape[d] for d in self.place.inner)
        return shift.reshape(-1).expand(size)

    def seen(self, params: Params, shift: Tensor) -> Tensor:
        """The part of c that is no constraint."""
        c = self._constant(shift)
        basis = torch.linalg.qr(self._constraints(params)[0])[0]
        rest: Tensor = c - basis @ (basis.T @ c)
        return rest

    def absorbed(self, params: Params, shift: Tensor) -> Tensor:
        """The constant cᵀy."""
        if self.unseen:
            return shift.new_zeros(())
        c = self._constant(shift)
        n, alpha = self._constraints(params)
        constant: Tensor = self.place.scale * (torch.linalg.lstsq(n, c[:, None]).solution[:, 0] @ alpha)
        return constant


def find_tied(flow: Flow) -> dict[Value, Tied]:
    """Every table that is looked up, and contracted with data once.

    Args:
        flow: who makes and reads what.

    Returns:
        The readings, by table.
    """
    records = flow.classes.cells.lower.records
    read: Counter[Value] = Counter()
    looked_up: set[Value] = set()
    at: dict[Value, Product] = {}
    for record in records:
        for x in record.operands():
            if x.value.kind == "param" and isinstance(record, Product):
                read[x.value] += 1
                at[x.value] = record
            elif x.value.kind == "param" and isinstance(record, Sum) and x.hidden_dims():
                looked_up.add(x.value)
    small = sum(math.prod(v.shape) for v in flow.classes.cells.lower.graph.params.values()) <= MAX_PARAMETERS
    out: dict[Value, Tied] = {}
    for table in looked_up:
        if read[table] != 1:
            continue
        record = at[table]
        w = next(f for f in record.factors if f.value is table)
        place = read_place(flow, record, w)
        if place is None or place.source is None:
            continue
        unseen = _ends_in_softmax(flow, *place.out)
        bias = private_bias(flow, record.out, place.blocks()[0])
        if unseen or small:
            out[table] = Tied(table, record, unseen, bias, flow, place, place.rows)
    return out


def _ends_in_softmax(flow: Flow, value: Value, dims: tuple[int, ...]) -> bool:
    """Whether everything that reads a value is a softmax over given dimensions, after sums with parameters."""
    if len(dims) != 1 or value in flow.outputs or not flow.consumers[value]:
        return False
    return all(_is_softmax(flow, record, i, dims[0]) for record, i in flow.consumers[value])


def _is_softmax(flow: Flow, record: Record, i: int, dim: int) -> bool:
    operand = [record.out, *record.operands()][i]
    label = next((k for k, g in operand.groups.items() if g == (dim,)), None)
    if isinstance(record, Softmax):
        return record.label == label
    if isinstance(record, Sum) and label in record.out.groups:
        return _ends_in_softmax(flow, record.out.value, record.out.groups[label])
    return False
