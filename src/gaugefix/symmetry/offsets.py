"""Parameters that are read as w + c with a constant c: a gain stored as its difference from one.

The sum is the parameter that the function knows. It is searched in place of w, and a group that moves it acts on w by
w → g(w + c) − c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from gaugefix.symmetry.graph import Graph, Op, Value
from gaugefix.symmetry.groups import Diagonal, Element, Permutation, Rotation, Symmetry
from gaugefix.symmetry.mirrors import Mirror
from gaugefix.symmetry.producers import Producers
from gaugefix.symmetry.units import Params


def absorb_offsets(graph: Graph) -> dict[str, float]:
    """Let w + c stand for a parameter w that nothing reads in another way.

    Args:
        graph: just read; changed in place.

    Returns:
        Parameter -> c.
    """
    made = Producers({v: op for op in graph.ops for v in op.outputs})
    sums: dict[Value, list[tuple[Op, float]]] = {p: [] for p in graph.params.values()}
    readers: dict[Value, int] = dict.fromkeys(sums, 0)
    for op in graph.ops:
        found = _offset(op, made)
        for source in {made.source(v) for v in op.values()} & sums.keys():
            if not made.is_cast(op):
                readers[source] += 1
        if found is not None and found[0] in sums:
            sums[found[0]].append((op, found[1]))
    offsets: dict[str, float] = {}
    for name, p in graph.params.items():
        constants = {c for _, c in sums[p]}
        if len(constants) == 1 and readers[p] == len(sums[p]) and p not in graph.outputs:
            offsets[name] = constants.pop()
            _stand_in(graph, name, [op for op, _ in sums[p]])
    return offsets


def _offset(op: Op, made: Producers) -> tuple[Value, float] | None:
    """(w, c) if an operation is w + c with a constant number c."""
    if op.name != "add" or len(op.args) < 2 or op.in_place or op.arg(2, "alpha", 1) != 1:
        return None
    for w, c in (op.args[:2], op.args[1::-1]):
        if isinstance(w, Value) and isinstance(c, int | float) and c:
            return made.source(w), float(c)
    return None


def _stand_in(graph: Graph, name: str, sums: list[Op]) -> None:
    """The first sum becomes the parameter, the others become copies of it."""
    value = sums[0].out
    value.kind, value.name = "param", name
    copies = {op: Op("alias", (value,), {}, op.outputs, op.place) for op in sums[1:]}
    graph.ops = [copies.get(op, op) for op in graph.ops if op is not sums[0]]
    graph.params[name] = value


def move_offsets(symmetry: Symmetry, offsets: Mapping[str, float]) -> Symmetry:
    """A symmetry of the function of w + c as one of the function of w.

    Args:
        symmetry: of the search.
        offsets: parameter -> c.

    Returns:
        The symmetry itself if it has nothing to do with them, or only permutes units (c is the same for all).
    """
    local = isinstance(symmetry, Diagonal | Rotation)  # these read only what they move; others may read gains
    if not offsets or isinstance(symmetry, Permutation) or (local and offsets.keys().isdisjoint(symmetry.parameters)):
        return symmetry
    own = {f.name: getattr(symmetry, f.name) for f in fields(Symmetry)}
    if not offsets.keys().isdisjoint(symmetry.parameters):
        own["isometric"] = False
    return Offset(**own, inner=symmetry, offsets=offsets)


@dataclass(frozen=True, eq=False)
class Offset(Symmetry):
    """w → g(w + c) − c.

    Where g fixes zero this fixes w = −c: weight decay does not keep that plane, so it is no mirror.

    Attributes:
        inner: the group that acts on w + c.
        offsets: parameter -> c.
    """

    inner: Symmetry = field(kw_only=True)
    offsets: Mapping[str, float] = field(kw_only=True)

    def sample(self, generator: torch.Generator) -> Element:
        """An element of the inner group."""
        return self.inner.sample(generator)

    def _known(self, params: Params) -> dict[str, Tensor]:
        return {**params, **{n: params[n] + c for n, c in self.offsets.items()}}

    def apply(self, params: Params, element: Element) -> dict[str, Tensor]:
        """Act on the sums, then take the constants off."""
        out = self.inner.apply(self._known(params), element)
        moved = set(self.parameters)
        return {**out, **{n: out[n] - c if n in moved else params[n] for n, c in self.offsets.items()}}

    @property
    def n_generators(self) -> int:
        """Those of the inner group."""
        return self.inner.n_generators

    def path(self, k: int, t: Tensor) -> Element:
        """As for the inner group."""
        return self.inner.path(k, t)

    def generators(self, params: Params) -> dict[str, Tensor]:
        """Those of the inner group at w + c."""
        return self.inner.generators(self._known(params))

    def mirrors(self) -> Iterator[Mirror]:
        """Those of the inner group if it moves no w + c."""
        return self.inner.mirrors() if self.offsets.keys().isdisjoint(self.parameters) else iter(())
