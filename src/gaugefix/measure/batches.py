"""The stream of minibatches that a run sees, and derivatives of the loss of one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import map_tensors
from gaugefix.task import Batch, Task


def endless(task: Task, seed: int) -> Iterator[Batch]:
    """The batches of one pass after the other, the stream that a run with this seed sees.

    Args:
        task: any task.
        seed: of the first pass; pass k has ``seed + k``.

    Yields:
        Batches, without end.
    """
    while True:
        yield from task.batch_iter(seed)
        seed += 1


def first_batches(task: Task, n_batches: int, seed: int) -> list[Batch]:
    """The first batches of the stream.

    Args:
        task: any task.
        n_batches: how many.
        seed: of the first pass.

    Returns:
        A list.

    Raises:
        MeasurementError: if ``n_batches`` < 1.
    """
    if n_batches < 1:
        raise MeasurementError(f"n_batches must be at least 1, got {n_batches!r}.")
    stream = endless(task, seed)
    return [next(stream) for _ in range(n_batches)]


def joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Successive batches of the same kind as one, for what treats every sample on its own.

    Args:
        batches: with the samples along the first dimension of every tensor.

    Yields:
        Fewer batches with the same samples in the same order; batches that differ in more than their number of samples
        (sequences of another length) stay apart.

    Example:
        >>> [tuple(b.shape) for b in joined([torch.ones(1, 3), torch.ones(2, 3), torch.ones(1, 4)])]
        [(3, 3), (1, 4)]
    """
    for _, group in groupby(batches, key=_kind):
        members = list(group)
        if len(members) == 1:
            yield members[0]
            continue
        columns = iter([torch.cat(column) for column in zip(*map(_tensors, members), strict=True)])
        yield map_tensors(lambda _, columns=columns: next(columns), members[0])


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(found.append, batch)
    return found


def _kind(batch: Batch) -> Batch:
    """Equal for batches that can be joined: nesting, and of every tensor all but the number of samples."""
    return map_tensors(lambda t: (t.shape[1:], t.dtype, t.device) if t.ndim else object(), batch)


def batch_gradient(
    task: Task, batch: Batch, params: Mapping[str, Tensor], *, create_graph: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss of a batch and its gradient.

    Args:
        task: gives model and loss.
        batch: one batch.
        params: leaves of the model.
        create_graph: keep the graph for a second derivative.

    Returns:
        The loss, detached, and tensors by name.
    """
    with sdpa_kernel(SDPBackend.MATH):
        loss = task.loss(task.model, batch).mean()
        found = torch.autograd.grad(
            loss, list(params.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return loss.detach(), dict(zip(params, found, strict=True))


def gradient_and_product(
    task: Task, batch: Batch, params: Mapping[str, Tensor], *, weight_decay: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient g of a batch and H g, both of the loss with its penalty.

    Args:
        task: gives model and loss.
        batch: one batch.
        params: leaves of the model.
        weight_decay: λ of the penalty.

    Returns:
        g and Hg, detached.
    """
    _, data = batch_gradient(task, batch, params, create_graph=True)
    full = {k: g + weight_decay * params[k] for k, g in data.items()}
    with sdpa_kernel(SDPBackend.MATH):
        half = torch.stack([g.square().sum() for g in full.values()]).sum() / 2
        if half.requires_grad:
            found = torch.autograd.grad(half, list(params.values()), allow_unused=True, materialize_grads=True)
        else:  # a loss that is linear in the parameters
            found = tuple(torch.zeros_like(p) for p in params.values())
    return {k: g.detach() for k, g in full.items()}, dict(zip(params, found, strict=True))


def squared_norm(tensors: Mapping[str, Tensor]) -> float:
    """Squared norm of all tensors together, in float64.

    Args:
        tensors: by name.

    Returns:
        Σ‖t‖².
    """
    return sum(float(t.detach().double().square().sum()) for t in tensors.values())
