"""Finding symmetries around normalisations: mean shifts, null directions, stream rotations, rotary pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import prod

import numpy as np

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.cells import Cells
from gaugefix.symmetry.classes import AxisClass, Classes, SlotKey
from gaugefix.symmetry.dead import private_bias
from gaugefix.symmetry.flow import Flow, places, slice_of
from gaugefix.symmetry.frames import find_frames
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Diagonal, Symmetry
from gaugefix.symmetry.records import Norm, Operand, Product, Sum
from gaugefix.symmetry.scalefree import ScaleFlow
from gaugefix.symmetry.stream_groups import (
    MeanShift,
    NullDirection,
    RotaryPairs,
    Unread,
)
from gaugefix.symmetry.units import Slice


def _others(classes: Classes, key: SlotKey) -> int:
    """Entries of a cell besides the slot."""
    value, cell, slot = key
    layouts = classes.cells.layout(value)
    total = prod(parts[k].size for parts, k in zip(layouts, cell, strict=True))
    return total // next(leaf.size for s, leaf in classes.cells.slots(value, cell) if s == slot)


def find_stream_symmetries(
    flow: Flow, names: dict[Axis, str], shifting: Mapping[Value, frozenset[Axis]]
) -> list[Symmetry]:
    """Everything that normalisations allow beyond permutations, scales and constant shifts.

    Args:
        flow: who makes and reads what.
        names: readable names of the classes.
        shifting: parameters that may move by a constant (see `shifts`) with the leaves it may depend on, so that the
            common part is counted once.

    Returns:
        Mean shifts, null directions, stream rotations, rotary pairs.
    """
    classes = flow.classes
    out: list[Symmetry] = []
    out += _row_scales(flow)
    out += _mean_shifts(flow, shifting)
    out += _null_directions(flow)
    for c in classes.by_leaf.values():
        out += _unread(flow, c)
        if c.norms:
            out += find_frames(flow, c, names[c.leaf])
        if c.rotary:
            out += _rotary(classes, c, names)
    return out


def _row_scales(flow: Flow) -> list[Symmetry]:
    """Rows of a table that only normalisations read have scales of their own."""
    lower = flow.classes.cells.lower
    sizes = ScaleFlow(lower.records, lower.zero)
    out: list[Symmetry] = []
    for record in lower.records:
        if not isinstance(record, Sum) or len(record.terms) != 1:
            continue
        (term,) = record.terms
        hidden = sorted(term.hidden_dims())
        if len(hidden) != 1 or term.value.kind != "param" or len(flow.consumers[term.value]) != 1:
            continue
        (row,), n = hidden, term.value.shape[hidden[0]]
        columns = frozenset(d for label in term.groups for d in record.out.groups.get(label, ()))
        if sizes.removed(record.out.value, columns):
            where = Slice(term.value.name, row, np.arange(n).reshape(1, n, 1), "gain")
            out.append(
                Diagonal(
                    f"{where.param}: rescale rows", f"R+^{n}", n - 1, places([where]), False,
                    charges=((where, 1.0),), shape=(n,),
                )
            )  # fmt: skip
    return out


def _mean_shifts(flow: Flow, shifting: Mapping[Value, frozenset[Axis]]) -> list[Symmetry]:
    """W → W + 1vᵀ, along a whole axis (which may be fused of parts) or along one leaf of it."""
    classes = flow.classes
    out: list[Symmetry] = []
    whole: set[tuple[Value, int]] = set()
    for value in classes.cells.lower.graph.params.values():
        if value not in classes.cells.lower.values:
            continue
        for d, parts in enumerate(classes.cells.layout(value)):
            if value.shape[d] > 1 and (len(parts) > 1 or len(parts[0].leaves) > 1) and flow.removes_axis(value, d):
                whole.add((value, d))
                n = prod(value.shape) // value.shape[d]
                where = Slice(value.name, d, np.arange(value.shape[d]).reshape(1, -1, 1), "write")
                out += _mean_shift(where, n, 0)
    for c in classes.by_leaf.values():
        for key, _ in c.slots:
            value, cell, slot = key
            if (value, slot[0]) in whole or not flow.removed(value, cell, slot):
                continue
            counted = prod(leaf.size for leaf in shifting[value] - {c.leaf}) if value in shifting else 0
            out += _mean_shift(slice_of(classes, key), _others(classes, key), counted)
    return out


def _mean_shift(where: Slice, n: int, counted: int) -> list[Symmetry]:
    if n <= counted:
        return []
    axes = (f"{where.param}[{where.dim}]",)
    name = f"{where.param}: add to every unit"
    return [MeanShift(name, f"T({n})", n - counted, axes, False, where=where, length=n)]


def _null_directions(flow: Flow) -> list[Symmetry]:
    """Readers of a centred normalisation that take the constant back in a bias, or have none to take back.

    Without a bias a reader of several groups keeps the combinations whose constants cancel; that it can take up the
    constant of another is the business of `VirtualBiases`.

    Args:
        flow: who makes and reads what.

    Returns:
        One symmetry for each such reader.
    """
    out: list[Symmetry] = []
    cells = flow.classes.cells
    uses = Counter(operand.value for record in cells.lower.records for operand in record.operands())
    for record in cells.lower.records:
        if not isinstance(record, Product) or len(record.factors) != 2:
            continue
        for w, x in (record.factors, record.factors[::-1]):
            norm = flow.normalised(x.value)
            if norm is None or w.value.kind != "param" or uses[w.value] != 1:
                continue
            where = _read_slice(cells, record, w, norm)
            gain, shift = (None if o is None else flow.origin(o.value) for o in (norm.gain, norm.bias))
            if where is None or any(v is not None and v.kind != "param" for v in (gain, shift)):
                continue
            rest = [d for d in range(w.value.ndim) if d != where.dim]
            rows = [d for label in w.groups if label in record.out.groups for d in w.groups[label]]
            if shift is not None and (record.border or sorted(rows) != rest[: len(rows)]):
                continue  # the constant is not the same everywhere, or its rows lie between positions of a kernel
            n, n_rows = (prod(w.value.shape[d] for d in dims) for dims in (rest, rows))
            bias = None if shift is None else private_bias(flow, record.out, n_rows)
            groups = where.index.shape[0]
            dim = groups * n - (n_rows if bias is None and shift is not None else 0)
            if dim:
                moved = [*places([where]), *([] if bias is None else [f"{bias}[0]"])]
                out.append(
                    NullDirection(
                        f"{where.param}: null direction", f"T({dim})", dim, tuple(moved), False,
                        reader=where, gain=None if gain is None else gain.name,
                        shift=None if shift is None else shift.name, bias=bias, rows=n_rows,
                        times=flow.constants(record, x), length=groups * n,
                    )
                )  # fmt: skip
    return out


def _read_slice(cells: Cells, record: Product, w: Operand, norm: Norm) -> Slice | None:
    """The dimension of a weight that is contracted with the whole normalised axis, group by group."""
    # the positions of a kernel are summed over too, but they are in the weight alone, those of the windows in the input
    shared = {k for k in w.groups if k not in record.out.groups and all(k in f.groups for f in record.factors)}
    if len(shared) != 1 or len(w.groups[label := next(iter(shared))]) != 1:
        return None
    (d,) = w.groups[label]
    axes = cells.lower.axes(norm.x.value)
    reduced = [axes[k] for k in _reduced_dims(norm)]
    mine = cells.lower.axes(w.value)[d].find()
    if len(reduced) != 1:
        return None
    size = reduced[0].size
    if mine is not reduced[0].find() and not _is_grouped(cells, w.value, d, norm):
        return None
    return Slice(w.value.name, d, np.arange(w.value.shape[d]).reshape(-1, size, 1), "read")


def _is_grouped(cells: Cells, value: Value, d: int, norm: Norm) -> bool:
    """Whether an axis is (groups, members) of a normalisation over the members."""
    (k,) = _reduced_dims(norm)
    parts, layout = cells.layout(value)[d], cells.layout(norm.x.value)
    if len(parts) != 1 or k == 0 or len(layout[k]) != 1 or len(layout[k - 1]) != 1:
        return False
    return parts[0].leaves == (*layout[k - 1][0].leaves, *layout[k][0].leaves)


def _reduced_dims(norm: Norm) -> list[int]:
    return [d for label in norm.reduced for d in norm.x.groups.get(label, ())]


def _unread(flow: Flow, c: AxisClass) -> list[Symmetry]:
    """What a narrower linear reader cannot see of a wider axis."""
    classes = flow.classes
    out: list[Symmetry] = []
    for key, role in c.slots:
        if role != "write" or c.fibers:
            continue
        found = flow.readers(*key)
        if not found or key in found or any(k[0] is key[0] for k in found):
            continue
        rows = sum(_others(classes, k) for k in found)
        others = _others(classes, key)
        dim = (c.size - rows) * (max(0, others - c.size) if c.linear else others)
        if rows < c.size and dim:
            writer = slice_of(classes, key)
            readers = tuple(slice_of(classes, k, (), "read") for k in sorted(found, key=lambda k: k[0].name))
            out.append(
                Unread(
                    f"{writer.param}: unread directions", f"T({(c.size - rows) * others})", dim, places([writer]),
                    False, writer=writer, readers=readers, length=c.size * others,
                )
            )  # fmt: skip
    return out


def _rotary(classes: Classes, c: AxisClass, names: dict[Axis, str]) -> list[Symmetry]:
    if c.elementwise or c.norms:
        return []
    place = {leaf: i for i, leaf in enumerate(classes.by_leaf)} if len(c.fibers) > 1 else {}
    fibers = tuple(sorted(c.fibers, key=lambda leaf: place.get(leaf, 0)))
    halves: dict[tuple[Value, int, tuple[int, ...]], list[SlotKey]] = defaultdict(list)
    for key, _ in c.slots:
        value, cell, slot = key
        rest = tuple(k for d, k in enumerate(cell) if d != slot[0])
        halves[value, slot[0], rest].append(key)
    pairs = []
    for keys in halves.values():
        keys.sort(key=lambda k: k[1])
        if len(keys) % 2:
            return []
        for a, b in zip(keys[::2], keys[1::2], strict=True):
            pairs.append((slice_of(classes, a, fibers), slice_of(classes, b, fibers)))
    if not pairs:
        return []
    dim = c.size * prod(f.size for f in fibers)
    axes = tuple(dict.fromkeys(f"{a.param}[{a.dim}]" for a, _ in pairs))
    return [RotaryPairs(f"{names[c.leaf]}: turn rotary pairs", f"SO(2)^{dim}", dim, axes, True, pairs=tuple(pairs))]
