"""Linear maps of constraints: chains of differences, labels of groups, pseudo-inverses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import ControlError

Matrix = Tensor | np.ndarray


def chain(units: Sequence[int] | Sequence[Sequence[int]] | None, size: int) -> Float[np.ndarray, "k size"]:
    """The map to the differences of neighbours, W_b − W_a, in one list of units or several.

    Args:
        units: positions in [0, size); by default all, in order.
        size: of the dimension.

    Returns:
        One row for each difference; full row rank, because the lists are disjoint.

    Raises:
        ControlError: if a list has fewer than two units, or a unit is out of range or occurs twice.
    """
    lists = _as_lists(range(size) if units is None else units)
    flat = [int(i) for part in lists for i in part]
    if not lists or any(len(part) < 2 for part in lists):
        raise ControlError(f"units must name two positions or more in every list, got {units!r}.")
    if any(not 0 <= i < size for i in flat):
        raise ControlError(f"units must be in [0, {size}), got {sorted(set(flat))}.")
    if len(set(flat)) < len(flat):
        raise ControlError(f"units must name every position once, got {units!r}: a cycle of differences is redundant.")
    pairs = [pair for part in lists for pair in pairwise(part)]
    out = np.zeros((len(pairs), size))
    for row, (a, b) in enumerate(pairs):
        out[row, [a, b]] = -1.0, 1.0
    return out


def _as_lists(units: Iterable[int] | Iterable[Sequence[int]]) -> list[Sequence[int]]:
    items = list(units)
    if items and all(isinstance(item, int | np.integer) for item in items):
        return [cast("Sequence[int]", items)]
    return [tuple(cast("Sequence[int]", item)) for item in items]


def group_labels(labels: Tensor, n: int) -> Tensor:
    """Labels as int64, checked to be 0, …, G − 1 with none left out.

    Args:
        labels: ``(n,)``.
        n: how many there must be.

    Returns:
        ``(n,)``.

    Raises:
        ControlError: if they are not.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (n,):
        raise ControlError(f"groups must be {n} integer labels, got {labels.dtype} of shape {tuple(labels.shape)}.")
    found = labels.unique()
    if int(found[0]) != 0 or int(found[-1]) != len(found) - 1:
        raise ControlError(
            f"groups must be labelled 0, …, {len(found) - 1} with none left out, got {found.tolist()[:8]}."
        )
    return labels.to(torch.int64)


def check_map(matrix: Matrix, target: Matrix | None, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, its pseudo-inverse and b as float64 arrays.

    Args:
        matrix: A.
        target: b or None.
        n: columns that A must have.

    Returns:
        ``(k, n)``, ``(n, k)`` and ``(k, 1)``.

    Raises:
        ControlError: if A does not fit, is not finite or not of full row rank, or b does not fit.
    """
    a = torch.as_tensor(matrix).detach().cpu().double().numpy()
    if a.ndim != 2 or a.shape[1] != n or not len(a):
        raise ControlError(f"A must have shape (k, {n}) with k >= 1, got {a.shape}.")
    b = np.zeros(len(a)) if target is None else torch.as_tensor(target).detach().cpu().double().numpy()
    if b.shape != (len(a),):
        raise ControlError(f"b must have shape ({len(a)},), one number for each row of A, got {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ControlError("A and b must be finite.")
    rank = int(np.linalg.matrix_rank(a))
    if rank < len(a):
        raise ControlError(
            f"A has {len(a)} rows but rank {rank}. Drop the rows that follow from others; for ties take the "
            f"differences "
            "along a spanning tree, as impose.tied does."
        )
    return a, np.linalg.pinv(a), b[:, None]
