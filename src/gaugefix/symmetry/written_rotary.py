"""Rotary position embeddings, written out: pairs of the last axis turned by angles that data choose."""

from __future__ import annotations

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.producers import Producers


def written_rotary(op: Op, made: Producers) -> Op | None:
    """x·cos + turned(x)·sin, turned(x) = (−x₂, x₁) with the halves of the last axis or its even and odd entries.

    Args:
        op: the sum.
        made: what makes each value.

    Returns:
        ``rotary(x)`` or ``rotary(x, interleaved=True)`` in its place, or None.
    """
    if op.name != "add" or len(op.args) < 2:
        return None
    products = [made.by(a, "mul") for a in op.args[:2]]
    if any(p is None for p in products):
        return None
    for plain, turned in (products, products[::-1]):
        assert plain is not None
        assert turned is not None
        for factor in turned.args[:2]:
            found = _turned(factor, made)
            if found is None:
                continue
            x, interleaved = found
            if any(made.same(a, x) for a in plain.args[:2]):
                options = {"interleaved": True} if interleaved else {}
                return Op("rotary", (x,), options, op.outputs, op.place)
    return None


def _turned(value: object, made: Producers) -> tuple[Value, bool] | None:
    """(x, interleaved) if a value is x with the members of each pair swapped and the first negated."""
    joined = made.by(value, "cat")
    interleaved = joined is None
    if joined is None:  # stacked along a new last dimension, which is then merged
        merged = made.by(value, "flatten", "reshape", "view", "_unsafe_view")
        joined = made.by(merged.args[0], "stack") if merged else None
        if joined is None or merged is None or merged.out.shape[:-1] != joined.out.shape[:-2]:
            return None
    if joined.arg(1, "dim", 0) not in {-1, joined.out.ndim - 1} or len(joined.args[0]) != 2:
        return None
    negated = made.by(joined.args[0][0], "neg")
    second = made.by(negated.args[0], "slice") if negated else None
    first = made.by(joined.args[0][1], "slice")
    if first is None or second is None:
        return None
    x = made.source(first.args[0])
    part = _is_every_other if interleaved else _is_half
    fits = part(first, 0) and part(second, 1) and made.same(second.args[0], x)
    return (x, interleaved) if fits else None


def _bounds(op: Op) -> tuple[bool, int, int]:
    """(whether a slice is of the last axis, its start, its step)."""
    x = op.args[0]
    start = op.arg(2, "start", 0) or 0
    return (
        op.arg(1, "dim", 0) % x.ndim == x.ndim - 1,
        start + x.shape[-1] if start < 0 else start,
        op.arg(4, "step", 1),
    )


def _is_half(op: Op, which: int) -> bool:
    n, (last, start, step) = op.args[0].shape[-1], _bounds(op)
    return bool(last and step == 1 and n % 2 == 0 and op.out.shape[-1] == n // 2 and start == which * (n // 2))


def _is_every_other(op: Op, which: int) -> bool:
    n, (last, start, step) = op.args[0].shape[-1], _bounds(op)
    return bool(last and step == 2 and n % 2 == 0 and op.out.shape[-1] == n // 2 and start == which)
