"""Gradients of single samples in full, by ``vmap(grad)`` or one by one, and the sums that are made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.measure.classes import map_tensors
from gaugefix.task import Batch, Loss, Task

_CHUNK = 64
#: numbers in one block of gradients of single samples, half a gigabyte in double precision
_MEMORY = 1 << 26


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
    _own: set[str] = field(default_factory=set)  # totals made here, which may grow in place

    def add(
        self, name: str, total: Tensor, squares: Tensor, diagonal: Tensor | None = None, *, fresh: bool = False
    ) -> None:
        """Add one batch.

        Args:
            name: of the parameter.
            total: sum of the gradients, which is kept; or what `growing` gave, if that has grown already.
            squares: ``(batch,)`` squared norms.
            diagonal: sum of the squared entries, if wanted.
            fresh: whether nobody else reads ``total``, so that it may grow in place; else it is not changed.
        """
        if total is self.total.get(name):
            pass
        elif name in self._own:
            self.total[name] += total
        else:
            self.total[name] = self.total[name] + total if name in self.total else total
            if fresh or self.total[name] is not total:
                self._own.add(name)
        self.squares.setdefault(name, []).append(squares)
        if self.diagonal is not None and diagonal is not None:
            self.diagonal[name] = self.diagonal.get(name, 0) + diagonal.reshape(total.shape)

    def growing(self, name: str) -> Tensor | None:
        """The total so far, to be added to in place.

        Args:
            name: of a parameter.

        Returns:
            None if there is none, or if somebody else reads it.
        """
        return self.total[name] if name in self._own else None

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


@contextlib.contextmanager
def differentiable_attention() -> Iterator[None]:
    """Attention by operations that have forward, second and batched derivatives; fused kernels lack them.

    Yields:
        Nothing.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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


def _vmapped(task: Task, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    module = LossModule(task.model, task.loss)
    params = trainable(task.model)

    def loss(values: dict[str, Tensor], sample: Batch) -> Tensor:
        one = map_tensors(lambda t: t.unsqueeze(0), sample)
        return functional_call(module, values, (one,)).sum()  # type: ignore[no-any-return]

    wanted = {f"model.{k}": params[k].detach() for k in names}
    with differentiable_attention():
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
