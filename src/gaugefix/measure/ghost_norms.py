"""Ghost norms: moments of per-sample gradients read off the autograd graph of one backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gaugefix.measure.classes import head
from gaugefix.measure.ghost_pass import GhostPass, pieces_of
from gaugefix.measure.gradient_graph import GradientGraph
from gaugefix.measure.parameter_uses import Node, Use
from gaugefix.measure.perexample import Moments, trainable
from gaugefix.measure.sample_gradients import Outer, Piece, squares
from gaugefix.task import Batch, Task

#: samples that go through the model to hold ghost norms against backward passes of all but one of them
_CHECKED = 3


def ghost_layouts(task: Task, batch: Batch) -> dict[str, tuple[int, ...]]:
    """The parameters whose per-sample norms can be read off the graph, checked against backward passes.

    Three samples go through the model; the norms of the gradients of two of them from the pieces that the graph keeps
    must be those of one backward pass each. The check also tells whether samples or positions come first where a
    layer sees both in one dimension. A parameter whose gradient is zero on the samples, so that both fit, is left out.

    Args:
        task: gives model and loss.
        batch: one batch.

    Returns:
        By name, for every use of the parameter: 0 if the samples come first, 1 if the positions do.
    """
    params = trainable(task.model)
    losses = task.loss(task.model, head(batch, _CHECKED))
    n = len(losses)
    if losses.grad_fn is None or n < 2:
        return {}
    uses = {k: u for k, u in GradientGraph(losses).uses(params).items() if u}
    deltas = _output_gradients(losses, uses)
    rows = [
        torch.autograd.grad(
            losses[i], [params[k] for k in uses], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for i in range(min(n, _CHECKED - 1))
    ]
    truth = {k: torch.stack([torch.linalg.vector_norm(row[j]) ** 2 for row in rows]) for j, k in enumerate(uses)}
    small = 1e4 * torch.finfo(losses.dtype).eps
    floor = small**2 * float(torch.stack([t.max() for t in truth.values()]).max()) if truth else 0.0
    fitting: dict[str, list[tuple[int, ...]]] = {}
    for name, found in uses.items():
        fits = []
        for layout in _candidates(len(found)):
            with torch.no_grad():
                pieces = pieces_of(found, deltas, n, layout)
                if pieces is None:
                    continue
                error = (squares(pieces)[: len(rows)] - truth[name]).abs()
            if bool((error <= small * truth[name] + floor).all()):
                fits.append(layout)
                if _one_position(pieces):  # both layouts are one
                    break
        fitting[name] = fits
    return _unambiguous(uses, fitting)


def add_ghosts(
    task: Task, batch: Batch, params: Mapping[str, Tensor], moments: Moments, layouts: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Add a batch by ghost norms.

    Args:
        task: gives model and loss.
        batch: one batch.
        params: the trainable ones.
        moments: what to add to.
        layouts: from `ghost_layouts`, of a batch with the same shapes.

    Returns:
        The parameters for which the graph of this batch did not allow it; nothing was added for them.
    """
    params = {k: params[k] for k in layouts}
    losses = task.loss(task.model, batch)
    n = len(losses)
    graph = GradientGraph(losses)
    uses = {k: u for k, u in graph.uses(params).items() if u and len(u) == len(layouts[k])}
    if not uses:
        return list(layouts)
    reading = GhostPass(uses, params, layouts, n, moments)
    reading.run(losses, graph)
    return [k for k in layouts if k not in reading.read]


def _unambiguous(
    uses: Mapping[str, list[Use]], fitting: Mapping[str, list[tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """The one layout that fits, or else the one that another parameter of the same nodes has."""
    sure = {k: fits[0] for k, fits in fitting.items() if len(fits) == 1}
    nodes: dict[Node, int] = {u.node: i for k, layout in sure.items() for u, i in zip(uses[k], layout, strict=True)}
    for name, fits in fitting.items():
        known = tuple(nodes.get(u.node, -1) for u in uses[name])
        if name not in sure and known in fits:
            sure[name] = known
    return sure


def _one_position(pieces: Sequence[Piece]) -> bool:
    return all(isinstance(p, Outer) and p.right.shape[2] == 1 for p in pieces)


def _candidates(count: int) -> list[tuple[int, ...]]:
    if count > 4:
        return [(0,) * count, (1,) * count]
    return sorted(itertools.product((0, 1), repeat=count), key=lambda c: len(set(c)))


def _output_gradients(losses: Tensor, uses: Mapping[str, Sequence[Use]]) -> dict[Node, Tensor | None]:
    """Gradients of the sum of the losses for the outputs of all nodes."""
    edges = {u.node: u.edge for found in uses.values() for u in found}
    grads = torch.autograd.grad(losses.sum(), list(edges.values()), retain_graph=True, allow_unused=True)
    return dict(zip(edges, grads, strict=True))
