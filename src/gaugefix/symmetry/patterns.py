"""Compound operations that models write out by hand, recognised as one: normalisations, rotary embeddings.

What is not recognised falls to the rules of the primitive operations, which are sound on their own.
"""

from __future__ import annotations

from collections import Counter

from gaugefix.symmetry.graph import Graph, Op, Value
from gaugefix.symmetry.producers import Producers
from gaugefix.symmetry.written_norms import gain_of_norm, written_norm
from gaugefix.symmetry.written_rotary import written_rotary


def recognise(graph: Graph) -> Graph:
    """Rewrite known patterns in place and drop what is then unused.

    Args:
        graph: just read.

    Returns:
        The same graph.
    """
    made = Producers({v: op for op in graph.ops for v in op.outputs})
    readers = Counter(v for op in graph.ops for v in op.values())
    replaced: list[Op] = []
    for op in graph.ops:
        new = written_norm(op, made) or gain_of_norm(op, made, readers) or written_rotary(op, made) or op
        made.replace(new)
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
