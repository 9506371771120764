"""Moments of per-sample gradients: norms without the gradients where the graph allows, or in full by vmap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.measure.classes import head, map_tensors
from gaugefix.measure.parameter_uses import Node, UnknownUseError, Use, parameter_uses
from gaugefix.measure.sample_gradients import Outer, Piece, diagonal, forming_pays, squares
from gaugefix.task import Batch, Loss, Task

_CHUNK = 64
#: numbers in one block of gradients of single samples, half a gigabyte in double precision
_MEMORY = 1 << 26
#: samples on which ghost norms are held against backward passes
_CHECKED = 3


@dataclass
class Moments:
    """Sums over samples, per parameter.

    Attributes:
        total: Σ ∇ℓᵢ, by name.
        squares: ‖∇ℓᵢ‖² of every sample, by name, a list of ``(batch,)`` tensors.
        diagonal: Σ (∇ℓᵢ)² entry by entry, by name, or None if it is not wanted.
        methods: how they were found, in the order of their first use.
    """

    total: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, list[Tensor]] = field(default_factory=dict)
    diagonal: dict[str, Tensor] | None = None
    methods: list[str] = field(default_factory=list)

    def add(self, name: str, total: Tensor, squares: Tensor, diagonal: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            name: of the parameter.
            total: sum of the gradients.
            squares: ``(batch,)`` squared norms.
            diagonal: sum of the squared entries, if wanted.
        """
        self.total[name] = self.total[name].add_(total) if name in self.total else total.clone()
        self.squares.setdefault(name, []).append(squares)
        if self.diagonal is not None and diagonal is not None:
            self.diagonal[name] = self.diagonal.get(name, 0) + diagonal.reshape(total.shape)

    def used(self, method: str) -> None:
        """Note a method.

        Args:
            method: "ghost norms", "vmap" or "loop".
        """
        if method not in self.methods:
            self.methods.append(method)

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return sum(map(len, next(iter(self.squares.values()), [])))


class LossModule(nn.Module):
    """The loss as a module of its model's parameters, for `torch.func.functional_call`."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        """Per-sample losses.

        Args:
            batch: one batch.

        Returns:
            ``(n,)``.
        """
        return self.loss(self.model, batch)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name.

    Args:
        model: any module.

    Returns:
        Those with ``requires_grad``.
    """
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def split(batch: Batch, n: int) -> Iterator[Batch]:
    """The samples of a batch, each a batch of one.

    Args:
        batch: tensors with the samples along dimension 0.
        n: number of samples.

    Yields:
        Batches of one sample.
    """
    for i in range(n):
        yield map_tensors(lambda t, i=i: t[i : i + 1] if t.ndim and len(t) == n else t, batch)


def add_moments(task: Task, batch: Batch, moments: Moments, layouts: Mapping[str, tuple[int, ...]]) -> None:
    """Add a batch: by ghost norms where `ghost_layouts` found that they hold, the other parameters in full.

    Args:
        task: gives model and loss.
        batch: one batch.
        moments: what to add to.
        layouts: from `ghost_layouts`.
    """
    rest = [k for k in trainable(task.model) if k not in layouts]
    if layouts:
        rest += _ghosts(task, batch, moments, layouts)
    if rest:
        _full(task, batch, moments, rest)


def ghost_layouts(task: Task, batch: Batch) -> dict[str, tuple[int, ...]]:
    """The parameters whose per-sample norms can be read off the graph, checked against backward passes.

    Three samples go through the model; the norms of their gradients from the pieces that the graph keeps must be those
    of one backward pass each. The check also tells whether samples or positions come first where a layer sees
    both in one dimension. A parameter whose gradient is zero on the samples, so that both fit, is left out.

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
    uses = {k: u for k, u in parameter_uses(losses, params).items() if u}
    deltas = _output_gradients(losses, uses)
    rows = [
        torch.autograd.grad(
            losses[i], [params[k] for k in uses], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for i in range(min(n, _CHECKED))
    ]
    truth = {k: torch.stack([row[j].square().sum() for row in rows]) for j, k in enumerate(uses)}
    small = 1e4 * torch.finfo(losses.dtype).eps
    floor = small**2 * float(torch.stack([t.max() for t in truth.values()]).max()) if truth else 0.0
    fitting: dict[str, list[tuple[int, ...]]] = {}
    for name, found in uses.items():
        fits = []
        for layout in _candidates(len(found)):
            pieces = _pieces(found, deltas, n, layout)
            if pieces is None:
                continue
            error = (squares(pieces)[: len(rows)] - truth[name]).abs()
            if bool((error <= small * truth[name] + floor).all()):
                fits.append(layout)
                if _one_position(pieces):  # both layouts are one
                    break
        fitting[name] = fits
    return _unambiguous(uses, fitting)


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


def _output_gradients(
    losses: Tensor, uses: Mapping[str, Sequence[Use]], also: Sequence[Tensor] = ()
) -> dict[Node, Tensor | None]:
    """Gradients of the sum of the losses for the outputs of all nodes, and for some parameters."""
    edges = {u.node: u.edge for found in uses.values() for u in found}
    grads = torch.autograd.grad(losses.sum(), [*edges.values(), *also], retain_graph=True, allow_unused=True)
    return dict(zip([*edges, *also], grads, strict=True))


def _pieces(
    uses: Sequence[Use], deltas: Mapping[Node, Tensor | None], n: int, layout: Sequence[int]
) -> list[Piece] | None:
    """What the uses of a parameter leave, or None if they do not fit this layout or each other."""
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


def _ghosts(task: Task, batch: Batch, moments: Moments, layouts: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Add a batch by ghost norms; returns the parameters for which the graph of this batch did not allow it."""
    params = {k: p for k, p in trainable(task.model).items() if k in layouts}
    losses = task.loss(task.model, batch)
    n = len(losses)
    uses = {k: u for k, u in parameter_uses(losses, params).items() if u and len(u) == len(layouts[k])}
    forming = {k for k, u in uses.items() if _forms(u, n)}
    deltas = _output_gradients(losses, uses, [params[k] for k in uses if k not in forming])
    failed = [k for k in layouts if k not in uses]
    for name, found in uses.items():
        pieces = _pieces(found, deltas, n, layouts[name])
        if pieces is None:
            failed.append(name)
            continue
        sums: list[Tensor] = []
        norms = squares(pieces, _summer(sums) if name in forming else None)
        total = sums[0].reshape(params[name].shape) if sums else deltas[params[name]]
        assert total is not None
        moments.add(name, total, norms, diagonal(pieces) if moments.diagonal is not None else None)
        moments.used("ghost norms")
    return failed


def _forms(uses: Sequence[Use], n: int) -> bool:
    """Whether forming the gradients is the shorter way: their sum need not come from the backward pass then."""
    sizes = [u.outer for u in uses if u.outer is not None]
    if not sizes or len(sizes) < len(uses):
        return all(u.formed for u in uses)
    return forming_pays(sum(rows for rows, _, _ in sizes) // n, *sizes[0][1:])


def _summer(sums: list[Tensor]) -> Callable[[Tensor], None]:
    """Keeps the sum over the samples of what it is given, as the only item of the list."""

    def visit(rows: Tensor) -> None:
        part = rows.sum(0)
        sums[:] = [sums[0].add_(part) if sums else part]

    return visit


def per_sample_gradients(task: Task, batch: Batch, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The gradients of single samples in full, some samples at a time, by ``vmap(grad)`` or else one by one.

    Args:
        task: gives model and loss.
        batch: one batch.
        names: of the parameters.

    Yields:
        "vmap" or "loop", and ``(samples, *shape)`` by name.
    """
    params = trainable(task.model)
    entries = sum(params[k].numel() for k in names)
    for part in _chunks(batch, max(1, min(_CHUNK, _MEMORY // max(entries, 1)))):
        try:
            yield "vmap", _vmapped(task, part, names)
        except (RuntimeError, ValueError, IndexError):
            yield "loop", _looped(task, part, names)


def _full(task: Task, batch: Batch, moments: Moments, names: Sequence[str]) -> None:
    for method, each in per_sample_gradients(task, batch, names):
        moments.used(method)
        for name, rows in each.items():
            flat = rows.flatten(1)
            entries = flat.square().sum(0) if moments.diagonal is not None else None
            moments.add(name, rows.sum(0), flat.square().sum(1), entries)


def _vmapped(task: Task, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    module = LossModule(task.model, task.loss)
    params = trainable(task.model)

    def loss(values: dict[str, Tensor], sample: Batch) -> Tensor:
        one = map_tensors(lambda t: t.unsqueeze(0), sample)
        return functional_call(module, values, (one,)).sum()  # type: ignore[no-any-return]

    wanted = {f"model.{k}": params[k].detach() for k in names}
    with sdpa_kernel(SDPBackend.MATH):
        each = vmap(grad(loss), in_dims=(None, 0), randomness="different")(wanted, batch)
    return {k.removeprefix("model."): g.detach() for k, g in each.items()}


def _looped(task: Task, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    params = [trainable(task.model)[k] for k in names]
    with torch.no_grad():
        n = len(task.loss(task.model, batch))
    rows = [
        torch.autograd.grad(task.loss(task.model, one).sum(), params, allow_unused=True, materialize_grads=True)
        for one in split(batch, n)
    ]
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(names)}


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    sizes: list[int] = []
    map_tensors(lambda t: sizes.append(len(t)) if t.ndim else None, batch)
    n = sizes[0] if sizes else 0
    if n <= size or any(s != n for s in sizes):
        yield batch
        return
    for i in range(0, n, size):
        yield map_tensors(lambda t, i=i: t[i : i + size] if t.ndim else t, batch)
