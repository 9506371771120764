"""Fixing signs: which units to flip so that the largest entries become positive, each group element chosen once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gaugefix.control.state import State, flat_positions
from gaugefix.symmetry import Slice
from gaugefix.symmetry.groups import Diagonal, Rotation

SignGroup = Diagonal | Rotation
_FLOOR = 1e-12
_DIGITS = 9


def odd_slices(group: SignGroup) -> list[Slice]:
    """Slices that change sign with their unit; for a rotation class in principal axes, all of them."""
    if isinstance(group, Diagonal):
        return [s for s, q in group.charges if round(q) % 2]
    return list(group._class().slices)


def flip(state: State, group: SignGroup, signs: Tensor) -> State:
    """Multiply the odd slices by ±1, ``(fibers, n)``."""
    out = dict(state)
    for s in odd_slices(group):
        block = s.take(out[s.param])
        out[s.param] = s.put(out[s.param], block * signs.to(block).reshape(*signs.shape, *[1] * (block.ndim - 2)))
    return out


def fix_signs(state: State, groups: Sequence[SignGroup]) -> State:
    """Flip signs so that as many of the largest entries as can be are positive, taken in order of size.

    Every entry is odd or even in each flip. Going down in size, the entry whose parity does not follow from those
    before it is made positive (Gaussian elimination over two elements): magnitudes do not change under flips, so
    that every point of the orbit leads to the same one.

    Args:
        state: all tensors, units already in order.
        groups: sign flips, and rotation classes in their principal axes.

    Returns:
        The state with signs fixed.
    """
    for group, signs in zip(groups, best_signs(state, groups), strict=True):
        state = flip(state, group, signs)
    return dict(state)


def best_signs(state: State, groups: Sequence[SignGroup]) -> list[Tensor]:
    """The flips of `fix_signs`.

    Args:
        state: all tensors, or their products with those of another network that is to be matched.
        groups: sign flips, and rotation classes in their principal axes.

    Returns:
        ±1 for every unit of every group.
    """
    if not groups:
        return []
    starts = np.cumsum([0, *(int(np.prod(odd_slices(g)[0].index.shape[:2])) for g in groups)])
    magnitude, negative, bits = _entries(state, groups, starts)
    rows, parity = _eliminate(magnitude, negative, bits, int(starts[-1]))
    flips = np.zeros(int(starts[-1]))
    for pivot in rows:
        flips[pivot] = parity[pivot]
    out = []
    for g, start in zip(groups, starts, strict=False):
        shape = odd_slices(g)[0].index.shape[:2]
        part = flips[start : start + int(np.prod(shape))]
        out.append(torch.from_numpy(1 - 2 * part.reshape(shape)))
    return out


def _entries(
    state: State, groups: Sequence[SignGroup], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Magnitude, sign and flips of every entry that some flip changes; flips as columns, −1 where there is none."""
    columns: dict[str, list[np.ndarray]] = {}
    for g, start in zip(groups, starts, strict=False):
        for s in odd_slices(g):
            column = np.full(state[s.param].numel(), -1, dtype=np.int64)
            units = np.arange(int(np.prod(s.index.shape[:2]))).reshape(*s.index.shape[:2], 1) + start
            positions = flat_positions(s, state[s.param])
            column[positions] = np.broadcast_to(units, positions.shape)
            columns.setdefault(s.param, []).append(column)
    width = max(len(c) for c in columns.values())
    values, bits = [], []
    for name, found in columns.items():
        table = np.full((len(found[0]), width), -1, dtype=np.int64)
        table[:, : len(found)] = np.stack(found, axis=1)
        values.append(state[name].reshape(-1).numpy())
        bits.append(table)
    value, table = np.concatenate(values), np.concatenate(bits)
    keep = np.abs(value) > _FLOOR * max(float(np.abs(value).max(initial=0.0)), 1e-300)
    keep &= (table >= 0).any(axis=1)
    return np.abs(value[keep]), value[keep] < 0, table[keep]


def _eliminate(
    magnitude: np.ndarray, negative: np.ndarray, bits: np.ndarray, n: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Rows over GF(2) in reduced form, by pivot, and their right-hand sides."""
    with np.errstate(divide="ignore"):
        digits = _DIGITS - 1 - np.floor(np.log10(magnitude))
    rounded = np.round(magnitude * 10.0**digits) / 10.0**digits  # ties in exact arithmetic stay ties
    rows: dict[int, int] = {}
    parity: dict[int, int] = {}
    for k in np.argsort(-rounded, kind="stable").tolist():
        vector, odd = 0, int(negative[k])
        for b in bits[k].tolist():
            if b >= 0:
                vector ^= 1 << b
        for b in bits[k].tolist():
            if b in rows and vector >> b & 1:
                vector, odd = vector ^ rows[b], odd ^ parity[b]
        if not vector:
            continue
        pivot = vector.bit_length() - 1
        for other in [p for p, row in rows.items() if row >> pivot & 1]:
            rows[other], parity[other] = rows[other] ^ vector, parity[other] ^ odd
        rows[pivot], parity[pivot] = vector, odd
        if len(rows) == n:
            break
    return rows, parity
