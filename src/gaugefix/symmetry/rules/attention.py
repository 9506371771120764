"""Attention: two contractions with a softmax between them, however it is written."""

from __future__ import annotations

from gaugefix.symmetry.axes import Axis, unify
from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Rotary, Softmax
from gaugefix.symmetry.rules.linear import contract
from gaugefix.symmetry.rules.shape import cut_axis, repeat_interleave, reshape_as


@register_rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(op: Op, lower: Lowering) -> None:
    """softmax(q kᵀ·scale + mask) v, heads in the batch dimensions; the mask may be made of parameters (T5)."""
    q, k, v = op.args[:3]
    mask = op.arg(3, "attn_mask")
    if op.kwargs.get("enable_gqa") and k.shape[-3] != q.shape[-3]:
        n = q.shape[-3] // k.shape[-3]
        k, v = (_repeat_heads(lower, t, n) for t in (k, v))
    shape = (*q.shape[:-1], k.shape[-2])
    scores, probs = lower.temp(shape, f"{op.out.name}.scores"), lower.temp(shape, f"{op.out.name}.probs")
    swapped = lower.temp((*k.shape[:-2], k.shape[-1], k.shape[-2]), f"{k.name}.T")
    order = [*range(k.ndim - 2), k.ndim - 1, k.ndim - 2]
    lower.sum([(k, {d: order[d] for d in range(k.ndim)})], swapped, aligned(swapped, swapped))
    contract(lower, q, swapped, scores)
    if mask is not None and mask.is_float and mask.kind in {"op", "param"}:  # a learned bias of the scores
        masked = lower.temp(shape, f"{op.out.name}.biased")
        lower.sum([(scores, aligned(scores, masked)), (mask, aligned(mask, masked))], masked, aligned(masked, masked))
        scores = masked
    elif mask is not None:
        lower.pin_dims(scores, [d + scores.ndim - mask.ndim for d, n in enumerate(mask.shape) if n > 1])
    lower.emit(
        Softmax(
            out=lower.operand(probs, aligned(probs, probs)),
            place=lower.place,
            x=lower.operand(scores, aligned(scores, scores)),
            label=len(shape) - 1,
        )
    )
    contract(lower, probs, v, op.out)


def _repeat_heads(lower: Lowering, t: Value, n: int) -> Value:
    shape = (*t.shape[:-3], t.shape[-3] * n, *t.shape[-2:])
    out = lower.temp(shape, f"{t.name}.repeat")
    repeat_interleave(Op("repeat_interleave", (t, n, t.ndim - 3), {}, (out,)), lower)
    return out


@register_rule("rotary")
def rotary(op: Op, lower: Lowering) -> None:
    """Rotary embedding: pairs of the last axis turn by angles that depend on the position.

    Pairs are (j, j + half), or (2j, 2j + 1) if interleaved.
    """
    x, out = op.args[0], op.out
    last, half = x.ndim - 1, x.shape[-1] // 2
    leaf = Axis(half)
    leaf.pin()
    if op.arg(1, "interleaved", False):
        parts = _every_other(lower, x, leaf)
    else:
        unify(lower.axes(x)[last], Axis(x.shape[last], "cat", [leaf, leaf]))
        parts = [lower.temp((*x.shape[:-1], half), f"{x.name}[{start}:]") for start in (0, half)]
        for start, part in zip((0, half), parts, strict=True):
            lower.set_axes(part, [*lower.axes(x)[:-1], leaf])
            lower.cut(x, last, start, part)
    lower.emit(
        Rotary(
            out=lower.operand(out, aligned(out, out)),
            place=lower.place,
            x=lower.operand(x, aligned(x, out)),
            label=last,
        )
    )
    turned = lower.temp((*x.shape[:-1], half), f"{out.name}.pairs")
    for part in parts:  # both members of a pair scale alike
        lower.same(part, turned)


def _every_other(lower: Lowering, x: Value, leaf: Axis) -> list[Value]:
    """The even and the odd entries of the last axis, which is made (half, 1 + 1)."""
    wide = lower.temp((*x.shape[:-1], leaf.size, 2), f"{x.name}.pairs")
    reshape_as(lower, x, wide)
    unify(lower.axes(wide)[-2], leaf)
    parts = []
    for pick in cut_axis(lower, wide, wide.ndim - 1, [1, 1]):
        part = lower.temp((*x.shape[:-1], leaf.size), f"{pick.name}.entries")
        reshape_as(lower, pick, part)
        parts.append(part)
    return parts
