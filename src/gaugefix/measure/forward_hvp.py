"""A Hessian-vector product as the gradient of a forward derivative, Hv = ∇(∇L·v).

It is the cheapest single product: the gradients of the weights themselves are never computed. Two things stand against
it. Some operations have no forward derivative, or one whose gradient is wrong (the softmax inside fused attention), so
that the first result of a task is held against two backward passes on two samples. And a linear layer is charged for
the derivative of an input that does not move, which `_Linear` saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gaugefix.measure.classes import checks, head, structure
from gaugefix.measure.perexample import LossModule, differentiable_attention, trainable
from gaugefix.task import Batch, Task

Tensors = dict[str, Tensor]


def forward_hvp(copy: Task, vector: Mapping[str, Tensor], *, max_samples: int, seed: int) -> Tensors | None:
    """One product of the Hessian of the mean data loss with a tangent vector.

    Args:
        copy: from `exact_copy`.
        vector: tensors by parameter name; missing ones are zero.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        Tensors by name, or None if it cannot be had or trusted in this way.
    """
    if not any(k in vector for k in trainable(copy.model)):
        return None
    known, key = checks(copy), ("forward derivative", *structure(copy.model), *vector)
    mean: Tensors = {}
    n = 0
    for batch in copy.batch_iter(seed):
        try:
            if key not in known:
                known[key] = _agrees(copy, vector, head(batch, 2))
            if not known[key]:
                return None
            part, count = _mean_product(copy, vector, batch)
        except (RuntimeError, NotImplementedError):  # no forward derivative
            known[key] = False
            return None
        n += count
        mean = {k: t.lerp(part[k], count / n) for k, t in mean.items()} or part
        if n >= max_samples:
            break
    return mean


def _agrees(copy: Task, vector: Mapping[str, Tensor], batch: Batch) -> bool:
    """Whether two backward passes give the same product."""
    found, _ = _mean_product(copy, vector, batch)
    params = trainable(copy.model)
    with differentiable_attention():
        mean = copy.loss(copy.model, batch).mean()
    values = list(params.values())
    grads = torch.autograd.grad(mean, values, create_graph=True, allow_unused=True, materialize_grads=True)
    pairs = [(g, vector[k].to(g)) for k, g in zip(params, grads, strict=True) if k in vector and g.requires_grad]
    if not pairs:
        return all(float(t.abs().max()) == 0 for t in found.values())
    outputs, weights = zip(*pairs, strict=True)
    product = torch.autograd.grad(outputs, values, weights, allow_unused=True, materialize_grads=True)
    scale = max(float(t.abs().max()) for t in product)
    error = max(float((found[k] - t).abs().max()) for k, t in zip(params, product, strict=True))
    return error <= 1e4 * torch.finfo(product[0].dtype).eps * scale


def _mean_product(copy: Task, vector: Mapping[str, Tensor], batch: Batch) -> tuple[Tensors, int]:
    """The product for the mean loss of a batch, and the number of its samples."""
    module = LossModule(copy.model, copy.loss)
    leaves = {k: p.detach().requires_grad_() for k, p in trainable(copy.model).items()}
    point = {k: p for k, p in leaves.items() if k in vector}
    rest = {f"model.{k}": p for k, p in leaves.items() if k not in vector}

    def loss(values: Tensors) -> tuple[Tensor, Tensor]:
        moved = {f"model.{k}": p for k, p in values.items()}
        each: Tensor = functional_call(module, {**rest, **moved}, (batch,))
        return each.mean(), each.detach()

    tangent = {k: vector[k].detach().to(p) for k, p in point.items()}
    with differentiable_attention(), _FixedInputs():
        found: Any = jvp(loss, (point,), (tangent,), has_aux=True)
    _, slope, each = found
    if not slope.requires_grad:
        return {k: torch.zeros_like(p) for k, p in leaves.items()}, len(each)
    grads = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), len(each)


class _Linear(torch.autograd.Function):
    """`functional.linear` without the product for an input that has no tangent."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*inputs[:2])
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None) -> Tensor | None:
        x, weight = ctx.saved_tensors
        parts: list[Tensor] = []
        if weight_t is not None:
            parts.append(functional.linear(x, weight_t, bias_t))
        elif bias_t is not None:
            parts.append(bias_t.expand(*x.shape[:-1], -1))
        if x_t is not None:
            parts.append(functional.linear(x_t, weight))
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            rows.mT @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class _FixedInputs(TorchFunctionMode):
    """Linear layers by `_Linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and args[0].ndim > 1:
            return _Linear.apply(*args, *([None] * (3 - len(args))))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
