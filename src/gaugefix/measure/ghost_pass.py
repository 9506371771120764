"""A backward pass that reads the gradients of single samples off as soon as what they need has arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gaugefix.measure.gradient_graph import GradientGraph
from gaugefix.measure.parameter_uses import Node, UnknownUseError, Use
from gaugefix.measure.perexample import Moments
from gaugefix.measure.sample_gradients import Piece, RowNorms, Sum, diagonal, forming_pays, squares


def pieces_of(
    uses: Sequence[Use], deltas: Mapping[Node, Tensor | None], n: int, layout: Sequence[int]
) -> list[Piece] | None:
    """What the uses of a parameter leave of the gradients of single samples.

    Args:
        uses: of one parameter.
        deltas: gradients of the outputs of their nodes.
        n: number of samples.
        layout: 0 for every use whose samples come first, 1 if the positions do.

    Returns:
        One for every use, or None if they do not fit this layout or each other.
    """
    found: list[Piece] = []
    for use, k in zip(uses, layout, strict=True):
        delta = deltas[use.node]
        if delta is None:
            return None
        try:
            found.append(use.build(delta, n, k))
        except (UnknownUseError, RuntimeError, IndexError):
            return None
    return found if len({type(p) for p in found}) == 1 else None


class GhostPass:
    """Norms of the gradients of single samples, taken while a backward pass goes through the graph.

    The gradient of what leaves a layer is read when the pass meets it, while it is in the cache, and let go of when no
    other parameter needs it, so that the pass takes hardly more memory than that of the gradient alone.

    Args:
        uses: of parameters, by name; they are dropped as they are done with.
        params: leaves, at least those with uses.
        layouts: as for `pieces_of`, by name.
        n: number of samples.
        moments: what to add to.

    Attributes:
        read: the parameters that were added; a parameter whose uses do not fit is not among them.
    """

    def __init__(
        self,
        uses: dict[str, list[Use]],
        params: Mapping[str, Tensor],
        layouts: Mapping[str, Sequence[int]],
        n: int,
        moments: Moments,
    ) -> None:
        self.read: set[str] = set()
        self._uses, self._params, self._layouts, self._n, self._moments = uses, params, layouts, n, moments
        self._forming = {k for k, found in uses.items() if _forms(found, n)}
        self._here = self._forming | {k for k, found in uses.items() if all(u.total is not None for u in found)}
        self._norms: dict[str, tuple[Tensor, Tensor | None]] = {}  # of those whose sum the pass itself brings
        self._deltas: dict[Node, Tensor] = {}
        self._readers: dict[Node, set[str]] = {}
        for name, found in uses.items():
            for use in found:
                self._readers.setdefault(use.node, set()).add(name)

    def run(self, losses: Tensor, graph: GradientGraph) -> None:
        """The pass; it frees the graph.

        Args:
            losses: ``(n,)``, of single samples.
            graph: of the losses.
        """
        asked = [k for k in self._uses if k not in self._here]
        met = {u.node for k in asked for u in self._uses[k]}
        # a pass does not enter a node below which nothing is wanted: what arrives there must be asked for
        edges = [GradientEdge(node, 0) for node in graph.lowest(self._readers) if node not in met]
        inputs: list[Any] = [*(self._params[k] for k in asked), *edges]
        handles = [node.register_prehook(partial(self._arrived, node)) for node in self._readers]
        try:
            grads = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
        finally:
            for handle in handles:  # a hook that knows its node would keep the graph alive
                handle.remove()
        with torch.no_grad():
            for edge, delta in zip(edges, grads[len(asked) :], strict=True):
                self._arrived(edge.node, (delta,))
        owners = Counter(_memory(g) for g in grads if g is not None)
        for name, grad in zip(asked, grads, strict=False):
            if grad is not None and name in self._norms:
                fresh = grad.is_contiguous() and owners[_memory(grad)] == 1  # neither expanded nor that of two leaves
                self._add(name, grad, *self._norms[name], fresh=fresh)

    def _arrived(self, node: Node, grads: Sequence[Tensor | None]) -> None:
        delta = grads[0]
        if delta is None or node not in self._readers:
            return
        self._deltas[node] = delta
        norms = RowNorms()
        for name in list(self._readers[node]):
            if all(u.node in self._deltas for u in self._uses[name]):
                self._read(name, norms)

    def _read(self, name: str, norms: RowNorms) -> None:
        """Everything that the uses of one parameter leave; all of it has arrived."""
        found = self._uses.pop(name)
        pieces = pieces_of(found, self._deltas, self._n, self._layouts[name])
        if pieces is not None:
            formed = Sum() if name in self._forming else None
            each = squares(pieces, formed, norms)
            entries = diagonal(pieces) if self._moments.diagonal is not None else None
            if name not in self._here:
                self._norms[name] = each, entries
            else:
                total = self._product(name, found) if formed is None else formed.value.reshape(self._params[name].shape)
                self._add(name, total, each, entries, fresh=True)
        for node in {u.node for u in found}:
            self._readers[node].remove(name)
            if not self._readers[node]:
                del self._readers[node], self._deltas[node]

    def _product(self, name: str, found: Sequence[Use]) -> Tensor:
        """The sum of the gradients from a product of matrices that adds to the one of former batches."""
        total = self._moments.growing(name)
        for use in found:
            assert use.total is not None
            total = use.total(self._deltas[use.node], total)
        assert total is not None
        return total

    def _add(self, name: str, total: Tensor, each: Tensor, entries: Tensor | None, *, fresh: bool) -> None:
        self._moments.add(name, total, each, entries, fresh=fresh)
        self._moments.used("ghost norms")
        self.read.add(name)


def _forms(uses: Sequence[Use], n: int) -> bool:
    """Whether forming the gradients is the shorter way: their sum need not come from the backward pass then."""
    sizes = [u.outer for u in uses if u.outer is not None]
    if not sizes or len(sizes) < len(uses):
        return all(u.formed for u in uses)
    return forming_pays(sum(rows for rows, _, _ in sizes) // n, *sizes[0][1:])


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
