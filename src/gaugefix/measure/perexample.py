"""Per-sample gradients: their squared norms without forming them where the layers allow, or in full by vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gaugefix.measure.classes import map_tensors
from gaugefix.task import Batch, Loss, Task

_CHUNK = 64


@dataclass
class Moments:
    """Sums over samples, per parameter.

    Attributes:
        total: Σ ∇ℓᵢ, by name.
        squares: ‖∇ℓᵢ‖² of every sample, by name, a list of ``(batch,)`` tensors.
    """

    total: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, squares: Tensor) -> None:
        """Add one batch.

        Args:
            name: of the parameter.
            total: sum of the gradients.
            squares: ``(batch,)`` squared norms.
        """
        self.total[name] = self.total[name].add_(total) if name in self.total else total
        self.squares.setdefault(name, []).append(squares)


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


def ghost_moments(task: Task, batch: Batch, moments: Moments, *, check: bool = True) -> bool:
    """Add a batch by ghost norms: ‖Σ_t δ_t h_tᵀ‖² from Gram matrices of inputs h and output gradients δ.

    One forward and one backward pass; the gradients of single samples are never formed. It needs every trainable
    parameter to be the weight or bias of an `nn.Linear` that is called once. That h and δ are the whole story is what
    ``check`` verifies: Σ δ hᵀ must be the gradient of autograd, compared on a random vector.

    Args:
        task: gives model and loss.
        batch: one batch.
        moments: what to add to.
        check: verify on this batch; the first one of a pass is enough.

    Returns:
        False, with nothing added, where it does not apply.
    """
    params = trainable(task.model)
    layers = _linear_layers(task.model, params)
    if layers is None:
        return False
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    handles = [layer.register_forward_hook(_recorder(calls[name])) for name, layer in layers.items()]
    try:
        losses = task.loss(task.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    n = len(losses)
    if any(len(c) != 1 or c[0][0].shape[0] != n for c in calls.values()):
        return False
    outputs = [calls[name][0][1] for name in layers]
    grads = torch.autograd.grad(losses.sum(), [*outputs, *params.values()], allow_unused=True, materialize_grads=True)
    totals = dict(zip(params, grads[len(outputs) :], strict=True))
    squares: dict[str, Tensor] = {}
    for (name, layer), delta in zip(layers.items(), grads, strict=False):
        h, d = calls[name][0][0].detach().reshape(n, -1, layer.in_features), delta.reshape(n, -1, layer.out_features)
        if (weight := f"{name}.weight") in totals:
            squares[weight] = _gram_norms(h, d)
        if (bias := f"{name}.bias") in totals:
            squares[bias] = _squared(d.sum(1) if d.shape[1] > 1 else d[:, 0])
        if check and not _explains(h.flatten(0, 1), d.flatten(0, 1), totals.get(weight), totals.get(bias)):
            return False
    for name, total in totals.items():
        moments.add(name, total, squares[name])
    return True


def full_moments(task: Task, batch: Batch, moments: Moments) -> str:
    """Add a batch by forming the gradient of every sample, in chunks, by ``vmap(grad)`` or else one by one.

    Args:
        task: gives model and loss.
        batch: one batch.
        moments: what to add to.

    Returns:
        "vmap" or "loop", whichever worked.
    """
    names = list(trainable(task.model))
    method = "vmap"
    for part in _chunks(batch):
        try:
            each = _vmapped(task, part)
        except (RuntimeError, ValueError, IndexError):
            each, method = _looped(task, part), "loop"
        for name in names:
            moments.add(name, each[name].sum(0), each[name].flatten(1).square().sum(1))
    return method


def _vmapped(task: Task, batch: Batch) -> dict[str, Tensor]:
    module = LossModule(task.model, task.loss)
    params = {f"model.{k}": p.detach() for k, p in trainable(task.model).items()}

    def loss(values: dict[str, Tensor], sample: Batch) -> Tensor:
        one = map_tensors(lambda t: t.unsqueeze(0), sample)
        return functional_call(module, values, (one,)).sum()  # type: ignore[no-any-return]

    each = vmap(grad(loss), in_dims=(None, 0), randomness="different")(params, batch)
    return {k.removeprefix("model."): g for k, g in each.items()}


def _looped(task: Task, batch: Batch) -> dict[str, Tensor]:
    params = trainable(task.model)
    with torch.no_grad():
        n = len(task.loss(task.model, batch))
    rows = [
        torch.autograd.grad(
            task.loss(task.model, one).sum(), list(params.values()), allow_unused=True, materialize_grads=True
        )
        for one in split(batch, n)
    ]
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(params)}


def _chunks(batch: Batch) -> Iterator[Batch]:
    sizes: list[int] = []
    map_tensors(lambda t: sizes.append(len(t)) if t.ndim else None, batch)
    n = sizes[0] if sizes else 0
    if n <= _CHUNK or any(s != n for s in sizes):
        yield batch
        return
    for i in range(0, n, _CHUNK):
        yield map_tensors(lambda t, i=i: t[i : i + _CHUNK] if t.ndim else t, batch)


def _linear_layers(model: nn.Module, params: dict[str, nn.Parameter]) -> dict[str, nn.Linear] | None:
    """The Linear layers by name if they own every trainable parameter and none is shared."""
    layers = {k: m for k, m in model.named_modules() if type(m) is nn.Linear}
    owned = {f"{k}.{n}" for k, m in layers.items() for n, _ in m.named_parameters()}
    shared = len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters()))
    if shared or not params.keys() <= owned:
        return None
    return {k: m for k, m in layers.items() if any(p.requires_grad for p in m.parameters())}


def _recorder(calls: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((args[0], output))

    return hook


def _gram_norms(h: Tensor, d: Tensor) -> Tensor:
    """‖Σ_t d_t h_tᵀ‖² of every sample, the cheaper of two ways."""
    t = h.shape[1]
    if t == 1:
        return _squared(h[:, 0]) * _squared(d[:, 0])
    if 2 * t * t <= h.shape[2] * d.shape[2]:
        return ((h @ h.mT) * (d @ d.mT)).sum((1, 2))
    return _squared((d.mT @ h).flatten(1))


def _squared(rows: Tensor) -> Tensor:
    """Squared norm of every row, in one pass over memory."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square()


def _explains(h: Tensor, d: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether Σ δ hᵀ is the gradient of the weight, seen on a random vector, and Σ δ that of the bias."""
    v = torch.randn(h.shape[1], generator=torch.Generator().manual_seed(0)).to(h)
    pairs = [] if weight is None else [(d * (h @ v)[:, None], weight @ v)]
    pairs += [] if bias is None else [(d, bias)]
    small = 1e3 * torch.finfo(h.dtype).eps
    return all(bool((parts.sum(0) - total).norm() <= small * parts.norm(dim=1).sum()) for parts, total in pairs)
