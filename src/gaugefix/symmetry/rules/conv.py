"""Convolutions, pooling, resizing: channels are axes, positions in space are pinned."""

from __future__ import annotations

from math import prod

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Label

Labels = dict[Label, int]


def _space(x: Value, first: int, name: str) -> Labels:
    return {f"{name}{d}": d for d in range(first, x.ndim)}


def _pin_space(lower: Lowering, value: Value, first: int) -> None:
    lower.pin_dims(value, range(first, value.ndim))


def _split_channels(lower: Lowering, x: Value, dim: int, groups: int) -> Value:
    """The view in which a channel axis is (groups, members)."""
    if groups == 1:
        return x
    shape = (*x.shape[:dim], groups, x.shape[dim] // groups, *x.shape[dim + 1 :])
    wide = lower.temp(shape, f"{x.name}.groups")
    rest: dict[Label, int | tuple[int, ...]] = {f"r{d}": d for d in range(x.ndim) if d != dim}
    moved: dict[Label, int | tuple[int, ...]] = {f"r{d}": d + (d > dim) for d in range(x.ndim) if d != dim}
    lower.sum([(x, {**rest, "c": dim})], wide, {**moved, "c": (dim, dim + 1)})
    return wide


def _convolve(
    lower: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    out: Value,
    groups: int,
    border: bool,
    transposed: bool,
) -> None:
    """out[n, o, s'] = Σ W[o, i, k] x[n, i, s] within each group; W[i, o, k] if transposed."""
    channel = x.ndim - (weight.ndim - 2) - 1  # 1, or 0 without a batch dimension
    lead: Labels = {"n": 0} if channel else {}
    grouped: Labels = {"g": channel} if groups > 1 else {}
    shift = len(grouped)
    xg = _split_channels(lower, x, channel, groups)
    wg = _split_channels(lower, weight, 0, groups)
    plain = out if bias is None else lower.temp(out.shape, f"{out.name}.conv")
    if groups == 1:
        og = plain
    else:
        shape = (*out.shape[:channel], groups, out.shape[channel] // groups, *out.shape[channel + 1 :])
        og = lower.temp(shape, f"{out.name}.groups")
    first, second = ("in", "out") if transposed else ("out", "in")
    w_labels: Labels = {**({"g": 0} if groups > 1 else {}), first: shift, second: 1 + shift}
    w_labels |= {f"k{d}": d for d in range(2 + shift, wg.ndim)}
    lower.product(
        [
            (xg, {**lead, **grouped, "in": channel + shift, **_space(xg, channel + shift + 1, "s")}),
            (wg, w_labels),
        ],
        og,
        {**lead, **grouped, "out": channel + shift},
        scale=1 / prod(x.shape[channel + 1 :]),  # each output position sees one window, not the sum over all
        border=border,
    )
    for v, at in ((xg, channel + shift + 1), (og, channel + shift + 1), (wg, 2 + shift)):
        _pin_space(lower, v, at)
    if groups > 1:
        rest: dict[Label, int | tuple[int, ...]] = {f"r{d}": d for d in range(out.ndim) if d != channel}
        moved: dict[Label, int | tuple[int, ...]] = {
            f"r{d}": d + (d > channel) for d in range(out.ndim) if d != channel
        }
        lower.sum([(og, {**moved, "c": (channel, channel + 1)})], plain, {**rest, "c": channel})
    if bias is not None:
        labels = aligned(plain, out)
        lower.sum([(plain, labels), (bias, {channel: 0})], out, aligned(out, out))


@register_rule("conv1d", "conv2d", "conv3d")
def conv(op: Op, lower: Lowering) -> None:
    """Convolution with any stride, dilation and groups."""
    padding = op.arg(4, "padding", 0)
    _convolve(
        lower, op.args[0], op.args[1], op.arg(2, "bias"), op.out, op.arg(6, "groups", 1), _nonzero(padding), False
    )


@register_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(op: Op, lower: Lowering) -> None:
    """Transposed convolution; overlaps make the border matter even without padding."""
    _convolve(lower, op.args[0], op.args[1], op.arg(2, "bias"), op.out, op.arg(6, "groups", 1), True, True)


@register_rule("convolution")
def convolution(op: Op, lower: Lowering) -> None:
    """The common form of all convolutions."""
    x, weight, bias, _, padding, _, transposed, _, groups = op.args[:9]
    _convolve(lower, x, weight, bias, op.out, groups, transposed or _nonzero(padding), transposed)


def _nonzero(padding: object) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _resize(lower: Lowering, x: Value, out: Value, n_space: int, border: bool) -> None:
    """Each output position averages some input positions, channel by channel."""
    first = x.ndim - n_space
    keep: Labels = {d: d for d in range(first)}
    count = prod(x.shape[first:])
    lower.product([(x, {**keep, **_space(x, first, "s")})], out, keep, scale=1 / count, border=border)
    _pin_space(lower, x, first)
    _pin_space(lower, out, first)


@register_rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(op: Op, lower: Lowering) -> None:
    """Average pooling."""
    _resize(lower, op.args[0], op.out, int(op.name[-2]), _nonzero(op.arg(3, "padding", 0)))


@register_rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa",
)  # fmt: skip
def resize(op: Op, lower: Lowering) -> None:
    """Resizing with weights that sum to one."""
    digit = next(c for c in op.name if c.isdigit())
    _resize(lower, op.args[0], op.out, int(digit), False)


@register_rule("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
               "max_pool2d_with_indices")  # fmt: skip
def max_pool(op: Op, lower: Lowering) -> None:
    """Maximum over windows: homogeneous, and a constant passes through."""
    x = op.args[0]
    digit = next(c for c in op.name if c.isdigit())
    picked = lower.temp(x.shape, f"{op.out.name}.max")
    lower.pointwise(x, picked, "max_pool", degree=1, translates=True)
    _resize(lower, picked, op.out, int(digit), False)


@register_rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def pad(op: Op, lower: Lowering) -> None:
    """Padding; the padded axes become fresh pinned ones."""
    x, widths = op.args[0], op.args[1]
    padded = {x.ndim - 1 - i // 2 for i, n in enumerate(widths) if n}
    value = op.arg(3, "value", 0) if op.name == "pad" else op.arg(2, "value", 0)
    if op.name in {"pad", "constant_pad_nd"} and value:
        lower.give_up(op, f"pads with the constant {value}")
        return
    keep: Labels = {d: d for d in range(x.ndim) if d not in padded}
    lower.product([(x, {**keep, **{f"p{d}": d for d in padded}})], op.out, keep, border=True)
    lower.pin_dims(x, sorted(padded))
    lower.pin_dims(op.out, sorted(padded))


@register_rule("pixel_shuffle")
def pixel_shuffle(op: Op, lower: Lowering) -> None:
    """Channels (c, r, r) become positions; c goes on as an axis."""
    x, r = op.args[0], int(op.args[1])
    wide = _split_channels(lower, x, x.ndim - 3, x.shape[-3] // (r * r))
    keep: Labels = {d: d for d in range(x.ndim - 2)}
    lower.sum([(wide, keep)], op.out, keep)
    lower.pin_dims(wide, range(x.ndim - 2, wide.ndim))
    lower.pin_dims(op.out, range(x.ndim - 2, x.ndim))
