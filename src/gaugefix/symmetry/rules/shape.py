"""Operations that only move entries: views, transposes, splits, concatenation, selection, sums and means."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gaugefix.symmetry.axes import concat_axis, split_concat, unify
from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Label

Dims = tuple[int, ...]


def group_dims(before: Sequence[int], after: Sequence[int]) -> list[tuple[Dims, Dims]]:
    """Pair up the dimensions of a reshape: the finest groups of equal product, size-1 dimensions left out.

    Args:
        before: old shape.
        after: new shape, of the same number of entries.

    Returns:
        Pairs (old dims, new dims).

    Example:
        >>> group_dims((2, 5, 12), (2, 5, 3, 4))
        [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))]
    """
    old = [d for d, n in enumerate(before) if n != 1]
    new = [d for d, n in enumerate(after) if n != 1]
    groups: list[tuple[Dims, Dims]] = []
    left: list[int] = []
    right: list[int] = []
    while old or new:
        a, b = prod(before[d] for d in left), prod(after[d] for d in right)
        if a <= b and old and (a < b or not left):
            left.append(old.pop(0))
        else:
            right.append(new.pop(0))
        if left and right and prod(before[d] for d in left) == prod(after[d] for d in right):
            groups.append((tuple(left), tuple(right)))
            left, right = [], []
    return groups


def reshape_as(lower: Lowering, x: Value, out: Value) -> None:
    """State that out has the entries of x in the same order."""
    groups = group_dims(x.shape, out.shape)
    lower.sum([(x, {i: g[0] for i, g in enumerate(groups)})], out, {i: g[1] for i, g in enumerate(groups)})


def _permute(lower: Lowering, x: Value, out: Value, order: Sequence[int]) -> None:
    lower.sum([(x, {d: order[d] for d in range(out.ndim)})], out, {d: d for d in range(out.ndim)})


# A fused projection viewed as (…, 3, …) and then selected: kept as three values, so that the parts are not tied.

_LAYOUT = {"transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone", "to", "t"}


def _move(op: Op, dim: int) -> int | None:
    """Where a dimension goes under an operation that only permutes or adds dimensions."""
    x: Value = op.args[0]
    if op.name in {"contiguous", "clone", "to"}:
        return dim
    if op.name == "transpose":
        a, b = int(op.args[1]) % x.ndim, int(op.args[2]) % x.ndim
        return {a: b, b: a}.get(dim, dim)
    if op.name == "permute":
        return [int(o) % x.ndim for o in op.args[1]].index(dim)
    if op.name == "unsqueeze":
        return dim + int(op.args[1] % (x.ndim + 1) <= dim)
    if op.name == "squeeze" and len(op.args) > 1 and isinstance(op.args[1], int):
        at = int(op.args[1]) % x.ndim
        return None if at == dim else dim - (at < dim and x.shape[at] == 1)
    return None


def _is_selected(lower: Lowering, value: Value, dim: int) -> bool:
    """Whether every use of a value ends in picking indices of one dimension, after moves of dimensions only."""
    users = lower.consumers.get(value, [])
    for op in users:
        if op.name in {"select", "unbind"}:
            if op.arg(1, "dim", 0) % value.ndim != dim:
                return False
        elif op.name in _LAYOUT and op.args[0] is value:
            moved = _move(op, dim)
            if moved is None or not _is_selected(lower, op.out, moved):
                return False
        else:
            return False
    return bool(users)


def _stack_dim(lower: Lowering, x: Value, out: Value) -> tuple[int, int, Dims] | None:
    """(dimension of out, dimension of x, dims of out) if a reshape makes a factor that is only ever selected."""
    for old, new in group_dims(x.shape, out.shape):
        if len(old) == 1:
            for dim in new[:-1]:  # the indices of the innermost factor are entries, not parts
                if _is_selected(lower, out, dim):
                    return dim, old[0], new
    return None


@register_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_copy")
def reshape(op: Op, lower: Lowering) -> None:
    """A view of the same entries in the same order."""
    x, out = op.args[0], op.out
    stack = _stack_dim(lower, x, out)
    if stack is None:
        reshape_as(lower, x, out)
        return
    dim, old, new = stack
    count = out.shape[dim]
    outer = prod(out.shape[d] for d in new if d < dim)
    if outer > 1:  # parts inside each head: (heads, 3, n) is (heads, 3n) first, then the second factor is cut
        wide = lower.temp((*x.shape[:old], outer, x.shape[old] // outer, *x.shape[old + 1 :]), f"{x.name}.wide")
        reshape_as(lower, x, wide)
        x, old = wide, old + 1
    parts = cut_axis(lower, x, old, [x.shape[old] // count] * count)
    shape = out.shape[:dim] + out.shape[dim + 1 :]
    views = []
    for i, part in enumerate(parts):
        view = lower.temp(shape, f"{out.name}[{i}]")
        reshape_as(lower, part, view)
        views.append(view)
    lower.stacked[out] = (dim, views)


def cut_axis(lower: Lowering, x: Value, dim: int, sizes: Sequence[int]) -> list[Value]:
    """Cut a dimension; the parts are new values on the parts of its axis."""
    axis, parts = lower.axes(x)[dim], []
    for i, n in enumerate(sizes):
        last = i == len(sizes) - 1
        head, axis = (axis, axis) if last else split_concat(axis, n)
        part = lower.temp((*x.shape[:dim], n, *x.shape[dim + 1 :]), f"{x.name}[{i}]")
        axes = list(lower.axes(x))
        axes[dim] = head
        lower.set_axes(part, axes)
        parts.append(part)
    _record_cut(lower, x, dim, parts)
    return parts


def _record_cut(lower: Lowering, x: Value, dim: int, parts: Sequence[Value]) -> None:
    """State that each part is a copy of the entries of x on its part of the axis."""
    start = 0
    for part in parts:
        lower.cut(x, dim, start, part)
        start += part.shape[dim]


def _stacked_move(op: Op, lower: Lowering) -> bool:
    """Apply an operation on a stacked value to its parts; whether there was one."""
    entry = lower.stacked.get(op.args[0])
    if entry is None:
        return False
    dim, parts = entry
    if op.name in {"select", "unbind"}:
        chosen = [parts[op.args[2]]] if op.name == "select" else parts
        for part, out in zip(chosen, op.outputs, strict=True):
            lower.same(part, out)
        return True
    moved = _move(op, dim)
    assert moved is not None  # _is_selected made sure
    shape = op.out.shape[:moved] + op.out.shape[moved + 1 :]
    rank = op.args[0].ndim
    order = list(range(rank))  # order[d of out] = d of x, on the full value
    if op.name == "permute":
        order = [o % rank for o in op.args[1]]
    elif op.name in {"transpose"}:
        a, b = op.args[1] % rank, op.args[2] % rank
        order[a], order[b] = order[b], order[a]
    reduced = [d - (d > dim) for d in order if d != dim]
    outs = []
    for i, part in enumerate(parts):
        out = lower.temp(shape, f"{op.out.name}[{i}]")
        if op.name in {"permute", "transpose"}:
            _permute(lower, part, out, reduced)
        else:
            reshape_as(lower, part, out)
        outs.append(out)
    lower.stacked[op.out] = (moved, outs)
    return True


@register_rule("transpose", "permute", "t", "numpy_T", "mT", "swapaxes", "movedim")
def transpose(op: Op, lower: Lowering) -> None:
    """Reordered dimensions."""
    if _stacked_move(op, lower):
        return
    x = op.args[0]
    order = list(range(x.ndim))
    if op.name == "permute":
        order = [d % x.ndim for d in op.args[1]]
    elif op.name in {"transpose", "swapaxes"}:
        a, b = op.args[1] % x.ndim, op.args[2] % x.ndim
        order[a], order[b] = order[b], order[a]
    elif op.name == "movedim":
        source = [op.args[1]] if isinstance(op.args[1], int) else list(op.args[1])
        target = [op.args[2]] if isinstance(op.args[2], int) else list(op.args[2])
        rest = [d for d in order if d not in {s % x.ndim for s in source}]
        placed = sorted(zip([t % x.ndim for t in target], [s % x.ndim for s in source], strict=True))
        for t, s in placed:
            rest.insert(t, s)
        order = rest
    elif op.name == "mT":
        order[-1], order[-2] = order[-2], order[-1]
    else:
        order.reverse()
    _permute(lower, x, op.out, order)


@register_rule("unsqueeze", "squeeze")
def squeeze(op: Op, lower: Lowering) -> None:
    """Size-1 dimensions added or dropped."""
    if not _stacked_move(op, lower):
        reshape_as(lower, op.args[0], op.out)


@register_rule("contiguous", "clone")
def clone(op: Op, lower: Lowering) -> None:
    """A copy."""
    if not _stacked_move(op, lower):
        lower.same(op.args[0], op.out)


@register_rule("expand", "broadcast_to", "expand_as")
def expand(op: Op, lower: Lowering) -> None:
    """Repeat along size-1 or new dimensions: a fresh axis on which the value is constant."""
    x = op.args[0]
    lower.sum([(x, aligned(x, op.out))], op.out, aligned(op.out, op.out))


@register_rule("broadcast_tensors")
def broadcast_tensors(op: Op, lower: Lowering) -> None:
    """Each tensor expanded to the common shape."""
    for x, out in zip(op.args[0], op.outputs, strict=True):
        lower.sum([(x, aligned(x, out))], out, aligned(out, out))


@register_rule("repeat_interleave")
def repeat_interleave(op: Op, lower: Lowering) -> None:
    """Every index of a dimension repeated n times in place: the axis becomes (axis, n)."""
    x, dim = op.args[0], op.arg(2, "dim")
    if dim is None or isinstance(op.args[1], Value):
        lower.give_up(op, "only a constant number of repeats along one dimension is understood")
        return
    dim %= x.ndim
    n = op.out.shape[dim] // x.shape[dim]
    wide = lower.temp((*x.shape[: dim + 1], n, *x.shape[dim + 1 :]), f"{op.out.name}.wide")
    labels: dict[Label, int] = {d: d + (d > dim) for d in range(x.ndim)}
    lower.sum([(x, {d: d for d in range(x.ndim)})], wide, {**labels, "repeat": dim + 1})
    reshape_as(lower, wide, op.out)


@register_rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(op: Op, lower: Lowering) -> None:
    """Cut a dimension into consecutive parts."""
    x = op.args[0]
    dim = op.arg(2, "dim", 0) % x.ndim
    if x in lower.stacked or not x.is_float:
        lower.give_up(op, "split of a value that is already in parts")
        return
    parts = cut_axis(lower, x, dim, [v.shape[dim] for v in op.outputs])
    for part, out in zip(parts, op.outputs, strict=True):
        lower.same(part, out)


@register_rule("cat", "concat", "concatenate")
def cat(op: Op, lower: Lowering) -> None:
    """Concatenation along a dimension; empty tensors drop out."""
    parts = [v for v in op.args[0] if 0 not in v.shape]
    dim = op.arg(1, "dim", 0) % op.out.ndim
    parts = [lower.use(v) for v in parts]
    axes = list(lower.axes(op.out))
    unify(axes[dim], concat_axis([lower.axes(v)[dim] for v in parts]))
    for v in parts:
        for d in range(op.out.ndim):
            if d != dim:
                unify(axes[d], lower.axes(v)[d])
    start = 0
    for v in parts:
        lower.cut(op.out, dim, start, v, joins=True)
        start += v.shape[dim]


@register_rule("stack")
def stack(op: Op, lower: Lowering) -> None:
    """Concatenation along a new dimension."""
    dim = op.arg(1, "dim", 0) % op.out.ndim
    shape = (*op.out.shape[:dim], 1, *op.out.shape[dim + 1 :])
    parts = []
    for v in op.args[0]:
        part = lower.temp(shape, f"{v.name}.row")
        reshape_as(lower, lower.use(v), part)
        parts.append(part)
    cat(Op("cat", (parts, dim), {}, op.outputs, op.place), lower)


@register_rule("slice", "narrow")
def slice_(op: Op, lower: Lowering) -> None:
    """A contiguous range of a dimension."""
    x = op.args[0]
    dim = op.arg(1, "dim", 0) % x.ndim
    size, length = x.shape[dim], op.out.shape[dim]
    start = op.arg(2, "start", 0) or 0
    start = min(start + size if start < 0 else start, size)
    if op.name == "slice" and op.arg(4, "step", 1) != 1:
        _moved(op, lower, x, op.out, dim)
        return
    if length == size:
        lower.same(x, op.out)
        return
    sizes = [n for n in (start, length, size - start - length) if n]
    parts = cut_axis(lower, lower.use(x), dim, sizes)
    lower.same(parts[1 if start else 0], op.out)


def _moved(op: Op, lower: Lowering, x: Value, out: Value, dim: int) -> None:
    """A dimension is reordered or subsampled: its old axis is pinned and the new one is fresh and pinned."""
    keep: dict[Label, int] = {d: d for d in range(x.ndim) if d != dim}
    lower.sum([(x, keep)], out, keep)
    lower.pin_dims(x, [dim])
    lower.pin_dims(out, [dim])


@register_rule("select")
def select(op: Op, lower: Lowering) -> None:
    """One index of a dimension."""
    if _stacked_move(op, lower):
        return
    x = lower.use(op.args[0])
    dim = op.args[1] % x.ndim
    at = op.args[2] % x.shape[dim]
    sizes = [n for n in (at, 1, x.shape[dim] - at - 1) if n]
    part = cut_axis(lower, x, dim, sizes)[1 if at else 0]
    reshape_as(lower, part, op.out)


@register_rule("unbind")
def unbind(op: Op, lower: Lowering) -> None:
    """Every index of a dimension."""
    if _stacked_move(op, lower):
        return
    x = lower.use(op.args[0])
    dim = op.arg(1, "dim", 0) % x.ndim
    for part, out in zip(cut_axis(lower, x, dim, [1] * x.shape[dim]), op.outputs, strict=True):
        reshape_as(lower, part, out)


@register_rule("sum", "mean")
def total(op: Op, lower: Lowering) -> None:
    """Sum or mean over dimensions."""
    x = op.args[0]
    dims = op.arg(1, "dim")
    over = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    reduced = {d % x.ndim for d in over} or set(range(x.ndim))
    keep = bool(op.arg(2, "keepdim", False))
    kept = [d for d in range(x.ndim) if d not in reduced]
    out: dict[Label, int] = {d: d if keep else i for i, d in enumerate(kept)}
    scale = 1 / prod(x.shape[d] for d in reduced) if op.name == "mean" else 1.0
    lower.product([(x, {d: d for d in range(x.ndim)})], op.out, out, scale=scale)


@register_rule("flip", "roll", "cumsum", "cumprod", "sort", "argsort", "index_select", "gather", "tril", "triu")
def moves(op: Op, lower: Lowering) -> None:
    """Operations that mix or reorder positions of one or two dimensions, linear in the rest."""
    x, out = op.args[0], op.out
    if op.name in {"tril", "triu"}:
        lower.same(x, out)
        lower.pin_dims(x, [x.ndim - 2, x.ndim - 1])
        return
    if op.name in {"sort", "argsort", "gather", "roll"}:
        lower.give_up(op, "reorders entries")
        return
    dims = op.arg(1, "dim")
    for dim in [dims] if isinstance(dims, int) else dims:
        _moved(op, lower, x, out, dim % x.ndim)
