"""The loss that a step of gradient descent really follows, as a function that can be differentiated again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.perexample import differentiable_attention, trainable
from gaugefix.task import Batch, Task

Params = Mapping[str, Tensor]
LossOfParameters = Callable[[Params], Tensor]


def backward_error_loss(loss: LossOfParameters, *, lr: float, n_substeps: float = math.inf) -> LossOfParameters:
    """φ_n = ℓ + (η/4)(1 − 1/n)‖∇ℓ‖²: n steps of size η/n on φ_n do what one step of size η does on ℓ, up to O(η³).

    For n → ∞ it is the loss whose gradient flow passes through the points of gradient descent, and its mean over
    minibatches is the entropic loss of `entropic_loss`.

    Args:
        loss: a twice differentiable scalar function of tensors by name, with its weight decay if there is any.
        lr: η, of the step on ``loss``.
        n_substeps: n; inf for the flow.

    Returns:
        φ_n as such a function; its gradient costs two of ``loss``.

    Raises:
        MeasurementError: if ``lr`` is not positive or ``n_substeps`` < 1.

    Source: arXiv 2505.12387.

    Example:
        >>> phi = backward_error_loss(lambda p: p["x"].square().sum() / 2, lr=0.1)
        >>> phi({"x": torch.tensor([2.0])}).item()  # 2 + 0.1/4·4
        2.0999999046325684
    """
    if not (math.isfinite(lr) and lr > 0):
        raise MeasurementError(f"backward_error_loss: lr must be a positive number, got {lr!r}.")
    if not n_substeps >= 1:
        raise MeasurementError(f"backward_error_loss: n_substeps must be at least 1, got {n_substeps!r}.")
    factor = lr / 4 * (1 - 1 / n_substeps)

    def modified(params: Params) -> Tensor:
        gradient: dict[str, Tensor]
        value: Tensor
        gradient, value = torch.func.grad_and_value(loss)(params)
        square: Tensor = torch.stack([g.square().sum() for g in gradient.values()]).sum()
        return value + factor * square

    return modified


def backward_error_objective(task: Task, batch: Batch, *, n_substeps: float = math.inf) -> Float[Tensor, ""]:
    """`backward_error_loss` of one batch of a task, with its graph: φ_n = ℓ + (η/4)(1 − 1/n)‖∇ℓ‖².

    Here ℓ is the mean loss of the batch with its penalty (λ/2)‖θ‖². The end points differ by O(η³), those of n small
    steps on ℓ itself by O(η²); n → ∞ is gradient flow. The mean of φ_∞ over batches is the entropic loss, and this is
    its differentiable form: a regulariser that gives small steps the preference of large ones.

    Args:
        task: gives model, loss, learning rate and weight decay.
        batch: one batch.
        n_substeps: n ≥ 1; at 1 it is ℓ.

    Returns:
        A scalar with its graph, for ``backward``. Cost: one gradient; its own gradient takes two more.

    Raises:
        MeasurementError: if ``n_substeps`` < 1.

    Source: arXiv 2505.12387, result 2.

    Example:
        >>> from torch import nn
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0] ** 2, lambda: [],
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> _ = nn.init.ones_(task.model.weight)
        >>> round(backward_error_objective(task, torch.ones(1, 1)).item(), 6)  # w² + 0.1/4·(2w)²
        1.1
    """
    if not n_substeps >= 1:
        raise MeasurementError(f"backward_error_objective: n_substeps must be at least 1, got {n_substeps!r}.")
    params = list(trainable(task.model).values())
    with differentiable_attention():
        loss = task.loss(task.model, batch).mean()
        if task.weight_decay:
            loss = loss + task.weight_decay / 2 * torch.stack([p.square().sum() for p in params]).sum()
        found = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    square = torch.stack([g.square().sum() for g in found if g is not None]).sum()
    total: Tensor = loss + task.lr / 4 * (1 - 1 / n_substeps) * square
    return total
