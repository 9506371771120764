"""Sums of products over the entries of every unit, for all classes at once, by index plans made beforehand.

A monitor needs ‖θ_i‖², ⟨θ_i, g_i⟩ and ‖g_i‖² for every unit i of every class. Parameters of one shape are stacked, one
elementwise product is made of each stack and summed over all but one dimension; what belongs to a unit is then gathered
from these sums by one index per slot. The number of kernels depends on the number of different shapes, not on depth,
and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaugefix.monitor.shards import add_up, local_part
from gaugefix.symmetry.units import Slice

#: entries that are stacked or multiplied at once; bounds the extra memory (16 MB in float32, three times)
CHUNK = 2**22

#: dimensions that are kept, and ranges (dimension, start, stop) to which others are restricted
Key = tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True, eq=False)
class Slot:
    """One number per unit: Σ over slices of weight · (sum over the unit's entries in the slice).

    Attributes:
        name: key of the result.
        n: number of units.
        terms: slices with their weights.
    """

    name: str
    n: int
    terms: tuple[tuple[Slice, float], ...]


@dataclass(frozen=True, eq=False)
class _Group:
    """Parameters with one local shape, for which the same sums are needed."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    spread: Any
    keys: tuple[Key, ...]

    def kept(self, key: Key) -> tuple[int, ...]:
        """Sizes of the dimensions that a key keeps."""
        return tuple(self.shape[d] for d in key[0])


class UnitSums:
    """Plan for the slots of one model.

    Args:
        params: parameters by name; only shapes, types and layouts are read.
        slots: what is wanted.

    Memory: one index (8 bytes) per unit and slice entry; while it runs three times the largest stack, at most
    3 × `CHUNK` entries.
    """

    def __init__(self, params: Mapping[str, Tensor], slots: Sequence[Slot]) -> None:
        wanted: dict[str, dict[Key, None]] = {}
        located = {slot.name: [_locate(s, params[s.param].shape) for s, _ in slot.terms] for slot in slots}
        for slot in slots:
            for (s, _), (key, _) in zip(slot.terms, located[slot.name], strict=True):
                wanted.setdefault(s.param, {})[key] = None
        self._groups = _grouped(params, wanted)
        start, base = {}, 0
        for group in self._groups:
            for key in group.keys:
                size = math.prod(group.kept(key))
                for name in group.names:
                    start[name, key] = base
                    base += size
        home = next((params[n].device for g in self._groups for n in g.names), torch.device("cpu"))
        self._home = home
        self.ranges: dict[str, tuple[int, int]] = {}
        self._gathers = list(self._make_gathers(slots, located, start))

    def _make_gathers(
        self, slots: Sequence[Slot], located: Mapping[str, list[tuple[Key, np.ndarray]]], start: Mapping[Any, int]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Indices and weights, one pair per number of entries that a unit has."""
        buckets: dict[int, list[tuple[Slot, np.ndarray, np.ndarray]]] = {}
        for slot in slots:
            parts = [
                positions + start[s.param, key]
                for (s, _), (key, positions) in zip(slot.terms, located[slot.name], strict=True)
            ]
            weights = [np.full(p.shape[1], w) for (_, w), p in zip(slot.terms, parts, strict=True)]
            index = np.concatenate(parts, axis=1)
            buckets.setdefault(index.shape[1], []).append((slot, index, np.concatenate(weights)))
        at = 0
        for bucket in buckets.values():
            for slot, _, _ in bucket:
                self.ranges[slot.name] = (at, at + slot.n)
                at += slot.n
            positions = torch.from_numpy(np.concatenate([i for _, i, _ in bucket]))
            factors = np.concatenate([np.broadcast_to(w, i.shape) for _, i, w in bucket])
            plain = bool((factors == 1).all())
            yield positions.to(self._home), None if plain else torch.from_numpy(factors).to(self._home, torch.float32)

    def __call__(self, sources: Mapping[str, Mapping[str, Tensor | None]], pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Σ a·b over the entries of every unit.

        Args:
            sources: named collections of tensors by parameter name ("p": weights, "g": gradients); None counts as zero.
            pairs: names of the collections to multiply, ``("p", "g")`` for ⟨θ, g⟩.

        Returns:
            ``(pairs, all units of all slots)`` on the device of the first parameter, float32 or float64; `ranges` says
            where every slot lies. Nothing waits for the device.
        """
        if not self._gathers:
            return torch.zeros(len(pairs), 0)
        parts: list[Tensor] = []
        run: list[Tensor] = []
        for i, group in enumerate(self._groups):
            run += self._reduce(group, sources, pairs)
            if i + 1 == len(self._groups) or self._groups[i + 1].spread != group.spread:
                vector = torch.cat([r.to(self._home) for r in run], dim=1)
                parts.append(add_up(vector, group.spread))
                run = []
        sums = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        rows = [
            (sums[:, index] if weights is None else sums[:, index] * weights.to(sums.dtype)).sum(-1)
            for index, weights in self._gathers
        ]
        return torch.cat(rows, dim=1)

    def _reduce(
        self, group: _Group, sources: Mapping[str, Mapping[str, Tensor | None]], pairs: Sequence[tuple[str, str]]
    ) -> list[Tensor]:
        """For every key of the group ``(pairs, parameters * kept entries)``: this process's part of the sums."""
        names = {s for pair in pairs for s in pair}
        stacks = {s: _stack([sources[s][n] for n in group.names]) for s in names}
        like = next((x for x in stacks.values() if x is not None), None)
        out: dict[Key, list[Tensor]] = {key: [] for key in group.keys}
        for a, b in pairs:
            x, y = stacks[a], stacks[b]
            if x is None or y is None:
                for key in group.keys:
                    device, dtype = (self._home, torch.float32) if like is None else (like.device, like.dtype)
                    out[key].append(torch.zeros(len(group.names), *group.kept(key), dtype=dtype, device=device))
                continue
            pieces = _pieces(x, y, group.offsets)
            for i, (left, right, offsets) in enumerate(pieces):
                product = left * right
                for key in group.keys:
                    if group.spread is None and len(pieces) == 1:
                        out[key].append(_over(product, key, offsets)[0])
                        continue
                    if not i:
                        out[key].append(product.new_zeros(len(group.names), *group.kept(key)))
                    value, where = _over(product, key, offsets)
                    out[key][-1][where] += value
        return [torch.stack(out[key]).reshape(len(pairs), -1) for key in group.keys]


def _grouped(params: Mapping[str, Tensor], wanted: Mapping[str, Mapping[Key, None]]) -> list[_Group]:
    """Parameters that can be stacked, in an order in which those spread alike are neighbours."""
    found: dict[Any, list[str]] = {}
    entries: dict[str, int] = {}
    for name, keys in wanted.items():
        p = params[name]
        part = local_part(p.detach())
        entries[name] = part.tensor.numel()
        signature = (
            part.spread, tuple(p.shape), tuple(part.tensor.shape), part.offsets, p.dtype, part.tensor.device,
            tuple(sorted(keys)),
        )  # fmt: skip
        found.setdefault(signature, []).append(name)
    groups = []
    for signature, names in found.items():
        most = max(1, CHUNK // max(1, entries[names[0]]))
        spread, shape, _, offsets, *_, keys = signature
        cuts = range(0, len(names), most)
        groups += [_Group(tuple(names[k : k + most]), shape, offsets, spread, keys) for k in cuts]
    order: dict[Any, int] = {}
    return sorted(groups, key=lambda g: order.setdefault(g.spread, len(order)))


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Local parts ``(parameters, *local shape)``, at least float32; None if there is none, no copy if there is one."""
    parts = [None if t is None else _dense(local_part(t.detach()).tensor) for t in tensors]
    like = next((p for p in parts if p is not None), None)
    if like is None:
        return None
    filled = [torch.zeros_like(like) if p is None else p for p in parts]
    stacked = filled[0][None] if len(filled) == 1 else torch.stack(filled)
    return stacked.float() if stacked.dtype in {torch.float16, torch.bfloat16} else stacked


def _dense(tensor: Tensor) -> Tensor:
    """Gradients of an embedding may be sparse."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def _pieces(x: Tensor, y: Tensor, offsets: tuple[int, ...]) -> list[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Cut what is too large along its first dimension; every piece with its place in the whole."""
    if x.numel() <= CHUNK or len(offsets) == 0:
        return [(x, y, offsets)]
    rows = max(1, CHUNK // max(1, x[:, :1].numel()))
    starts = range(0, x.shape[1], rows)
    return [(x[:, k : k + rows], y[:, k : k + rows], (offsets[0] + k, *offsets[1:])) for k in starts]


def _over(product: Tensor, key: Key, offsets: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Sum over all dimensions that are not kept, and where the result lies among the kept entries of the whole."""
    keep, window = key
    for d, start, stop in window:
        low = min(max(start - offsets[d], 0), product.shape[d + 1])
        high = min(max(stop - offsets[d], low), product.shape[d + 1])
        product = product.narrow(d + 1, low, high - low)
    where = (slice(None), *(slice(offsets[d], offsets[d] + product.shape[d + 1]) for d in keep))
    others = [d + 1 for d in range(len(offsets)) if d not in keep]
    return product.sum(others) if others else product, where


def _locate(s: Slice, shape: Sequence[int]) -> tuple[Key, np.ndarray]:
    """Which sums a slice needs, and the positions ``(units, entries)`` of its units among them."""
    own: dict[int, np.ndarray] = {}
    window = []
    for d, positions in s.others.items():
        row = positions[0]
        if len(positions) == 1 and len(row) and (row == np.arange(row[0], row[0] + len(row))).all():
            if len(row) < shape[d]:
                window.append((int(d), int(row[0]), int(row[0]) + len(row)))
        else:
            own[d] = positions
    keep = tuple(sorted({s.dim, *own}))
    sizes = [shape[d] for d in keep]
    strides = {d: math.prod(sizes[i + 1 :]) for i, d in enumerate(keep)}
    fibers, units, entries = s.index.shape
    flat = (s.index * strides[s.dim]).reshape(fibers, units, entries)
    for d, positions in own.items():
        step = (positions * strides[d])[:, None, None, :]
        flat = (flat[..., None] + step).reshape(fibers, units, -1)
    return (keep, tuple(sorted(window))), flat.reshape(fibers * units, -1)
