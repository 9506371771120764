"""Normalisations and softmax."""

from __future__ import annotations

from math import prod

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Label, Norm, Operand, Softmax


@register_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(op: Op, lower: Lowering) -> None:
    """Softmax or log-softmax along one dimension."""
    x, out = op.args[0], op.out
    dim = op.arg(1, "dim") % x.ndim
    lower.emit(
        Softmax(
            out=lower.operand(out, aligned(out, out)),
            place=lower.place,
            x=lower.operand(x, aligned(x, out)),
            label=dim,
            log="log" in op.name,
        )
    )


def _normalise(
    lower: Lowering,
    x: Value,
    out: Value,
    reduced: set[int],
    gain: tuple[Value, dict[Label, int]] | None,
    bias: tuple[Value, dict[Label, int]] | None,
    *,
    centred: bool = True,
    batch: bool = False,
) -> None:
    def operand(item: tuple[Value, dict[Label, int]] | None) -> Operand | None:
        return None if item is None else lower.operand(*item)

    lower.emit(
        Norm(
            out=lower.operand(out, aligned(out, out)),
            place=lower.place,
            x=lower.operand(x, aligned(x, out)),
            reduced=frozenset(reduced),
            centred=centred,
            gain=operand(gain),
            bias=operand(bias),
            batch=batch,
        )
    )


@register_rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(op: Op, lower: Lowering) -> None:
    """LayerNorm or RMSNorm over the last dimensions."""
    x = op.args[0]
    n = len(op.args[1])
    first = x.ndim - n
    gain, bias = op.arg(2, "weight"), op.arg(3, "bias") if "layer" in op.name else None
    labels: dict[Label, int] = {first + i: i for i in range(n)}
    scale = op.kwargs.get("scale", 1.0)
    out = op.out if scale == 1.0 else lower.temp(op.out.shape, f"{op.out.name}.normed")
    _normalise(
        lower,
        x,
        out,
        set(range(first, x.ndim)),
        None if gain is None else (gain, labels),
        None if bias is None else (bias, labels),
        centred="layer" in op.name,
    )
    if out is not op.out:
        lower.same(out, op.out, scale)


@register_rule("batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "instance_norm")
def batch_norm(op: Op, lower: Lowering) -> None:
    """BatchNorm, as it acts in training: statistics over the batch and space, one per channel."""
    x, gain, bias = op.args[0], op.arg(1, "weight"), op.arg(2, "bias")
    channel: dict[Label, int] = {1: 0}
    reduced = set(range(2, x.ndim)) | (set() if op.name == "instance_norm" else {0})
    _normalise(
        lower,
        x,
        op.out,
        reduced,
        None if gain is None else (gain, channel),
        None if bias is None else (bias, channel),
        batch=op.name != "instance_norm",
    )


@register_rule("group_norm", "native_group_norm")
def group_norm(op: Op, lower: Lowering) -> None:
    """GroupNorm: channels = groups x members; statistics over members and space."""
    x, groups = op.args[0], op.args[1]
    if op.name == "native_group_norm":
        lower.give_up(op, "decomposed group norm")
        return
    gain, bias = op.arg(2, "weight"), op.arg(3, "bias")
    shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    wide, normed = lower.temp(shape, f"{x.name}.groups"), lower.temp(shape, f"{op.out.name}.groups")
    names: list[Label] = ["n", "g", "c", *(f"s{i}" for i in range(x.ndim - 2))]
    split: dict[Label, int | tuple[int, ...]] = {label: d for d, label in enumerate(names) if label not in {"g", "c"}}
    whole: dict[Label, int | tuple[int, ...]] = {"n": 0, "gc": 1, **{f"s{i}": i + 2 for i in range(x.ndim - 2)}}
    lower.sum([(x, whole)], wide, {**split, "gc": (1, 2)})

    def vector(v: Value | None) -> tuple[Value, dict[Label, int]] | None:
        if v is None:
            return None
        table = lower.temp((groups, shape[2]), f"{v.name}.groups")
        lower.sum([(v, {"gc": 0})], table, {"gc": (0, 1)})
        return table, {1: 0, 2: 1}

    _normalise(lower, wide, normed, {2, *range(3, len(shape))}, vector(gain), vector(bias))
    lower.sum([(normed, {**split, "gc": (1, 2)})], op.out, whole)


@register_rule("var", "std")
def spread(op: Op, lower: Lowering) -> None:
    """Variance or standard deviation over dimensions: the mean taken off, squared, summed, and its root."""
    x = op.args[0]
    reduced, labels = _reduction(op, x, op.arg(1, "dim"))
    names: dict[Label, int] = {d: d for d in range(x.ndim)}
    kept = {d: d for d in range(x.ndim) if d not in reduced}
    short = [n for d, n in enumerate(x.shape) if d not in reduced]
    mean = lower.temp(short, f"{op.out.name}.mean")
    centred, square = (lower.temp(x.shape, f"{op.out.name}.{part}") for part in ("centred", "square"))
    total = op.out if op.name == "var" else lower.temp(op.out.shape, f"{op.out.name}.var")
    n = prod(x.shape[d] for d in reduced)
    at: dict[Label, int] = {d: i for i, d in enumerate(kept)}
    lower.product([(x, names)], mean, at, scale=1 / n)
    lower.sum([(x, names), (mean, at)], centred, names, [1.0, -1.0])
    lower.pointwise(centred, square, "square", degree=2, parity="even")
    lower.product([(square, names)], total, labels)
    if total is not op.out:
        lower.pointwise(total, op.out, "sqrt", degree=0.5)


def _reduction(op: Op, x: Value, dims: int | list[int] | None) -> tuple[set[int], dict[Label, int]]:
    """The dimensions that an operation reduces, and the labels of its output."""
    over = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    reduced = {d % x.ndim for d in over} or set(range(x.ndim))
    kept = [d for d in range(x.ndim) if d not in reduced]
    return reduced, {d: d if op.out.ndim == x.ndim else i for i, d in enumerate(kept)}


@register_rule("linalg_vector_norm", "norm")
def vector_norm(op: Op, lower: Lowering) -> None:
    """The Euclidean norm over dimensions: square, sum, root."""
    x, order = op.args[0], op.arg(1, "ord", 2)
    if order != 2:
        lower.give_up(op, "only the Euclidean norm is understood")
        return
    _, labels = _reduction(op, x, op.arg(2, "dim"))
    square, total = lower.temp(x.shape, f"{op.out.name}.square"), lower.temp(op.out.shape, f"{op.out.name}.sum")
    lower.pointwise(x, square, "square", degree=2, parity="even")
    lower.product([(square, aligned(square, square))], total, labels)
    lower.pointwise(total, op.out, "sqrt", degree=0.5)


@register_rule("cosine_similarity")
def cosine_similarity(op: Op, lower: Lowering) -> None:
    """x·y/(‖x‖‖y‖) along one dimension."""
    dim = op.arg(2, "dim", 1)
    if any(v.shape != op.args[0].shape for v in op.args[:2]):
        lower.give_up(op, "only arguments of one shape are understood")
        return
    dim %= op.args[0].ndim
    labels: dict[Label, int] = {d: d for d in range(op.args[0].ndim)}
    directions = []
    for x in op.args[:2]:
        direction = lower.temp(x.shape, f"{x.name}.direction")
        _normalise(lower, x, direction, {dim}, None, None, centred=False)
        directions.append((direction, labels))
    kept = [d for d in labels if d != dim]
    lower.product(directions, op.out, {d: i for i, d in enumerate(kept)})
