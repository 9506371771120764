"""A backward pass that reads the gradients of single samples off as soon as what they need has arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaugefix.measure.parameter_uses import Node, UnknownUseError, Use
from gaugefix.measure.sample_gradients import Piece, RowNorms, Sum, diagonal, squares


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
        uses: of every parameter, by name; they are dropped as they are done with.
        layouts: as for `pieces_of`, by name.
        n: number of samples.
        summed: the parameters whose gradients are formed, sample by sample, and summed here.
        diagonals: whether the squares of all entries are summed too.

    Attributes:
        squares: ``(n,)`` squared norms, by name; a parameter whose uses do not fit is not there.
        totals: sum over the samples of the gradients, in the shape of the parameter.
        fresh: the parameters whose total nobody else reads.
        diagonals: ``(entries,)`` sums of squares.
    """

    def __init__(
        self,
        uses: dict[str, list[Use]],
        layouts: Mapping[str, Sequence[int]],
        n: int,
        *,
        summed: set[str],
        diagonals: bool = False,
    ) -> None:
        self.squares: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.diagonals: dict[str, Tensor] = {}
        self.fresh = set(summed)
        self._uses, self._layouts, self._n = uses, layouts, n
        self._summed, self._wants_diagonals = summed, diagonals
        self._deltas: dict[Node, Tensor] = {}
        self._readers: dict[Node, set[str]] = {}
        for name, found in uses.items():
            for use in found:
                self._readers.setdefault(use.node, set()).add(name)

    def run(self, losses: Tensor, params: Mapping[str, Tensor]) -> None:
        """The pass; it frees the graph.

        Args:
            losses: ``(n,)``, of single samples.
            params: leaves, at least those with uses.
        """
        asked = [k for k in self._uses if k not in self._summed]
        met = {u.node for k in asked for u in self._uses[k]}
        # the pass stops above a node below which nothing is wanted: its output gradient must be asked for
        edges = {u.node: u.edge for k in self._summed for u in self._uses[k] if u.node not in met}
        inputs: list[Any] = [*(params[k] for k in asked), *edges.values()]
        handles = [node.register_prehook(partial(self._arrived, node)) for node in self._readers]
        try:
            grads = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
        finally:
            for handle in handles:  # a hook that knows its node would keep the graph alive
                handle.remove()
        with torch.no_grad():
            for node, delta in zip(edges, grads[len(asked) :], strict=True):
                self._arrived(node, (delta,))
        owners = Counter(_memory(g) for g in grads if g is not None)
        for name, grad in zip(asked, grads, strict=False):
            if grad is None:
                continue
            self.totals[name] = grad
            if grad.is_contiguous() and owners[_memory(grad)] == 1:  # not of zero strides, nor that of two leaves
                self.fresh.add(name)

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
        found = self._uses.pop(name)
        pieces = pieces_of(found, self._deltas, self._n, self._layouts[name])
        if pieces is not None:
            total = Sum() if name in self._summed else None
            self.squares[name] = squares(pieces, total, norms)
            if total is not None:
                self.totals[name] = total.value
            if self._wants_diagonals:
                self.diagonals[name] = diagonal(pieces)
        for node in {u.node for u in found}:
            self._readers[node].remove(name)
            if not self._readers[node]:
                del self._readers[node], self._deltas[node]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
