"""Which positions of which axes a constraint speaks of, and null spaces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Operand

Dims = tuple[int, ...]
#: relative size below which a singular value counts as zero
RANK_TOLERANCE = 1e-9


def null_space(matrix: Tensor) -> Tensor:
    """Orthonormal columns spanning {x: Mx = 0}."""
    if not matrix.shape[0]:
        return torch.eye(matrix.shape[1], dtype=matrix.dtype)
    values, right = torch.linalg.svd(matrix, full_matrices=True)[1:]
    largest = float(values[0]) if len(values) else 0.0
    free: Tensor = right[int((values > RANK_TOLERANCE * largest).sum()) :].T
    return free


def labels_of(operand: Operand, dims: Dims) -> list[Label] | None:
    """The labels that cover exactly some dimensions, in their order."""
    labels: list[Label] = []
    at = 0
    while at < len(dims):
        label = next((k for k, g in operand.groups.items() if g and g == dims[at : at + len(g)]), None)
        if label is None:
            if operand.value.shape[dims[at]] != 1:
                return None
            at += 1
            continue
        labels.append(label)
        at += len(operand.groups[label])
    return labels or None


def dims_of(operand: Operand, labels: list[Label]) -> Dims:
    """The dimensions of some labels, in order."""
    return tuple(d for k in labels for d in operand.groups[k])


def order_of(out: Operand, w: Operand, have: list[Label], want: list[Label]) -> Tensor:
    """Rows in the order of one list of labels, rearranged to another."""
    sizes = [math.prod(w.value.shape[d] for d in w.groups[k]) for k in have]
    index = torch.arange(math.prod(sizes)).reshape(sizes)
    return index.permute([have.index(k) for k in want]).reshape(-1)


def positions_of(whole: Value, dims: Dims, cut: Cut) -> Tensor:
    """Flat positions of a part along some dimensions of the whole."""
    index = torch.arange(math.prod(whole.shape[d] for d in dims)).reshape([whole.shape[d] for d in dims])
    return index.narrow(dims.index(cut.dim), cut.start, cut.out.value.shape[cut.dim]).reshape(-1)


def embed(columns: Tensor, whole: Value, dims: Dims, cut: Cut) -> Tensor:
    """Columns on a part as columns on the whole."""
    out = columns.new_zeros(math.prod(whole.shape[d] for d in dims), columns.shape[1])
    out[positions_of(whole, dims, cut)] = columns
    return out
