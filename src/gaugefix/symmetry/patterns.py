"""Compound operations that models write out by hand, recognised as one: RMS normalisation, rotary embedding.

What is not recognised falls to the rules of the primitive operations, which are sound on their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gaugefix.symmetry.graph import Graph, Op, Value

_CASTS = {"to", "_to_copy", "float", "type_as", "contiguous", "clone", "detach", "alias"}


def recognise(graph: Graph) -> Graph:
    """Rewrite known patterns in place and drop what is then unused.

    Args:
        graph: just read.

    Returns:
        The same graph.
    """
    producers: dict[Value, Op] = {v: op for op in graph.ops for v in op.outputs}
    readers = Counter(v for op in graph.ops for v in op.values())
    replaced: list[Op] = []
    for op in graph.ops:
        new = _rms_norm(op, producers) or _gain(op, producers, readers) or _rotary(op, producers) or op
        for v in new.outputs:
            producers[v] = new
        replaced.append(new)
    graph.ops = _used(replaced, graph.outputs)
    return graph


def _used(ops: list[Op], outputs: list[Value]) -> list[Op]:
    needed = set(outputs)
    kept = []
    for op in reversed(ops):
        if needed & set(op.outputs):
            needed |= set(op.values())
            kept.append(op)
    return kept[::-1]


def _source(value: Any, producers: dict[Value, Op]) -> Any:
    """A value before casts and copies."""
    while isinstance(value, Value) and value in producers and producers[value].name in _CASTS:
        value = producers[value].args[0]
    return value


def _made_by(value: Any, name: str, producers: dict[Value, Op]) -> Op | None:
    value = _source(value, producers)
    op = producers.get(value) if isinstance(value, Value) else None
    return op if op is not None and op.name == name else None


def _rms_norm(op: Op, producers: dict[Value, Op]) -> Op | None:
    """X · rsqrt(mean(x²) + ε), over the last axis."""
    if op.name != "mul" or len(op.args) < 2:
        return None
    for x, factor in (op.args[:2], op.args[1::-1]):
        root = _made_by(factor, "rsqrt", producers)
        inner = root and _made_by(root.args[0], "add", producers)
        mean = inner and _made_by(inner.args[0], "mean", producers)
        square = mean and _made_by(mean.args[0], "pow", producers)
        if not square or not mean or not isinstance(x, Value):
            continue
        dims = mean.arg(1, "dim")
        dims = dims if isinstance(dims, list | tuple) else [dims]
        same = _source(square.args[0], producers) is _source(x, producers) and square.args[1] == 2
        if same and [d % x.ndim for d in dims] == [x.ndim - 1]:
            return Op("rms_norm", (_source(x, producers), [x.shape[-1]], None), {}, op.outputs, op.place)
    return None


def _gain(op: Op, producers: dict[Value, Op], readers: Mapping[Value, int]) -> Op | None:
    """A parameter times a norm without one, LayerNorm or RMS, that nothing else reads: its gain."""
    if op.name != "mul" or len(op.args) < 2:
        return None
    for gain, x in (op.args[:2], op.args[1::-1]):
        norm = _made_by(x, "rms_norm", producers) or _made_by(x, "layer_norm", producers)
        if norm is None or norm.arg(2, "weight") is not None or norm.arg(3, "bias") is not None:
            continue
        weight = _source(gain, producers)
        fits = isinstance(weight, Value) and weight.kind == "param" and weight.shape == norm.out.shape[-1:]
        if fits and readers[norm.out] == 1:
            return Op(norm.name, (*norm.args[:2], weight), {}, op.outputs, op.place)
    return None


def _rotary(op: Op, producers: dict[Value, Op]) -> Op | None:
    """x·cos + cat(−x₂, x₁)·sin with x = (x₁, x₂) in halves of the last axis."""
    if op.name != "add" or len(op.args) < 2:
        return None
    products = [_made_by(a, "mul", producers) for a in op.args[:2]]
    if any(p is None for p in products):
        return None
    for plain, turned in (products, products[::-1]):
        assert plain is not None
        assert turned is not None
        for i in (0, 1):
            half = _made_by(turned.args[i], "cat", producers)
            if half is None or half.arg(1, "dim", 0) not in {-1, op.out.ndim - 1} or len(half.args[0]) != 2:
                continue
            negated = _made_by(half.args[0][0], "neg", producers)
            second = negated and _made_by(negated.args[0], "slice", producers)
            first = _made_by(half.args[0][1], "slice", producers)
            if not first or not second:
                continue
            x = _source(first.args[0], producers)
            halves = _is_half(first, 0) and _is_half(second, 1)
            if halves and _source(second.args[0], producers) is x and x in {_source(a, producers) for a in plain.args}:
                return Op("rotary", (x,), {}, op.outputs, op.place)
    return None


def _is_half(op: Op, which: int) -> bool:
    x = op.args[0]
    dim, start = op.arg(1, "dim", 0) % x.ndim, op.arg(2, "start", 0) or 0
    half = x.shape[-1] // 2
    start = start + x.shape[-1] if start < 0 else start
    return bool(dim == x.ndim - 1 and op.out.shape[-1] == half and start == which * half and x.shape[-1] % 2 == 0)
