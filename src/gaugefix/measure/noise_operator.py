"""Gradient noise along directions: the covariance of per-sample gradients as an operator, never formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jvp

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import LossModule, differentiable_attention, trainable
from gaugefix.measure.records import Record
from gaugefix.measure.settle import first_samples
from gaugefix.task import Batch, Task


@dataclass(frozen=True, eq=False)
class DirectionalNoise(Record):
    """Per-sample gradients along k directions v.

    Attributes:
        variance: ``(k,)`` vᵀCv = Var_i(∇ℓᵢ·v), for batch size 1 and v as it was given (not of norm 1).
        mean: ``(k,)`` ∇L·v.
        stderr: ``(k,)`` standard error of the variance over the samples.
        n_samples: number of samples used.
    """

    variance: Float[np.ndarray, " k"]
    mean: Float[np.ndarray, " k"]
    stderr: Float[np.ndarray, " k"]
    n_samples: int


class NoiseOperator:
    """The covariance C of per-sample gradients at one point, C = E[∇ℓ ∇ℓᵀ] − ∇L ∇Lᵀ (arXiv 2102.05375, E0).

    C is for batch size 1, without weight decay: a minibatch of S has C/S. The model is in evaluation mode.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Attributes:
        params: the point, detached and in the precision of the measurement.
        n_samples: number of samples.

    Raises:
        MeasurementError: if no parameter is trainable.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0], lambda: [x],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> NoiseOperator(task) @ {"weight": torch.ones(1, 1)}  # the variance of x
        {'weight': tensor([[1.]], dtype=torch.float64)}
    """

    def __init__(self, task: Task, *, max_samples: int = 2048, seed: int = 0) -> None:
        self._task = exact_copy(task)
        self.params = {k: p.detach() for k, p in trainable(self._task.model).items()}
        if not self.params:
            raise MeasurementError(f"NoiseOperator: no parameter of task {task.name!r} has requires_grad=True.")
        self._batches = list(first_samples(self._task, max_samples, seed))
        self._module = LossModule(self._task.model, self._task.loss)
        self.n_samples = sum(len(self._losses(self.params, b)) for b in self._batches)

    def _losses(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return functional_call(self._module, {f"model.{k}": p for k, p in params.items()}, (batch,))  # type: ignore[no-any-return]

    def losses(self) -> Float[Tensor, " n"]:
        """Loss of every sample.

        Returns:
            ``(n_samples,)``, detached.
        """
        with torch.no_grad():
            return torch.cat([self._losses(self.params, batch) for batch in self._batches])

    def losses_along(self, vector: Mapping[str, Tensor], t: Tensor) -> Float[Tensor, " n"]:
        """Loss of every sample at θ + t·v, differentiable in t.

        Args:
            vector: v, tensors by parameter name; missing ones are zero.
            t: a scalar.

        Returns:
            ``(n_samples,)``.
        """
        moved = {k: self.params[k] + t * v.to(self.params[k]) for k, v in vector.items()}
        with differentiable_attention():
            return torch.cat([self._losses({**self.params, **moved}, batch) for batch in self._batches])

    def slopes(self, vector: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Slope of every sample's loss along a direction, ∇ℓᵢ·v.

        Args:
            vector: tensors by parameter name; missing ones are zero.

        Returns:
            ``(n_samples,)``. Cost: a forward pass with its derivative (2 forward passes); twice a backward pass
            where an operation has no forward derivative.

        Raises:
            MeasurementError: if a name is not that of a trainable parameter.
        """
        unknown = [k for k in vector if k not in self.params]
        if unknown:
            raise MeasurementError(
                f"NoiseOperator: {unknown[0]!r} is not a trainable parameter; there are {', '.join(self.params)}."
            )
        point = {k: self.params[k] for k in vector}
        tangent = {k: v.detach().to(point[k]).reshape(point[k].shape) for k, v in vector.items()}
        with differentiable_attention():
            return torch.cat([self._slopes(point, tangent, batch) for batch in self._batches]).detach()

    def _slopes(self, point: dict[str, Tensor], tangent: dict[str, Tensor], batch: Batch) -> Tensor:
        def losses(values: dict[str, Tensor]) -> Tensor:
            return self._losses(values, batch)

        try:
            return jvp(losses, (point,), (tangent,))[1]  # type: ignore[no-any-return]
        except (RuntimeError, NotImplementedError):  # no forward derivative: two backward passes
            return _reverse_jvp(losses, point, tangent)

    def __matmul__(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cv = E[(∇ℓ·v − ∇L·v) ∇ℓ]; parameters that the dictionary lacks count as zero."""
        slopes = self.slopes(vector)
        weights = (slopes - slopes.mean()) / self.n_samples
        total = {k: torch.zeros_like(p) for k, p in self.params.items()}
        leaves = {k: p.clone().requires_grad_() for k, p in self.params.items()}
        start = 0
        for batch in self._batches:
            losses = self._losses(leaves, batch)
            part = weights[start : start + len(losses)]
            start += len(losses)
            grads = torch.autograd.grad(losses, list(leaves.values()), part, allow_unused=True, materialize_grads=True)
            for name, g in zip(leaves, grads, strict=True):
                total[name] += g
        return total


def _reverse_jvp(
    function: Callable[[dict[str, Tensor]], Tensor], point: dict[str, Tensor], tangent: dict[str, Tensor]
) -> Tensor:
    """Jv as the derivative of uᵀJ·v for u, by two backward passes."""
    leaves = {k: p.clone().requires_grad_() for k, p in point.items()}
    value = function(leaves)
    u = torch.zeros_like(value, requires_grad=True)
    pulled = torch.autograd.grad(
        value, list(leaves.values()), u, create_graph=True, allow_unused=True, materialize_grads=True
    )
    inner = torch.stack([(g * tangent[k]).sum() for k, g in zip(leaves, pulled, strict=True)]).sum()
    return torch.autograd.grad(inner, u)[0]


def noise_matvec(
    task: Task, vector: Mapping[str, Tensor], *, max_samples: int = 2048, seed: int = 0
) -> dict[str, Tensor]:
    """One product of the gradient covariance with a tangent vector, Cv = E[(∇ℓ·v − ∇L·v) ∇ℓ].

    Args:
        task: gives model, loss and data.
        vector: tensors by parameter name; missing ones are zero.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        Tensors by name for every trainable parameter. Cost: 5 forward passes; for several products keep a
        `NoiseOperator`.
    """
    return NoiseOperator(task, max_samples=max_samples, seed=seed) @ vector


def directional_variance(
    task: Task | NoiseOperator,
    directions: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    *,
    max_samples: int = 2048,
    seed: int = 0,
) -> DirectionalNoise:
    """Variance of the per-sample gradients along directions, vᵀCv = Var_i(∇ℓᵢ·v), exact for the samples used.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        directions: one tangent vector as tensors by parameter name (missing ones are zero), or several.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        Variance and mean of every direction, for batch size 1. Cost: 2 forward passes per direction, no per-sample
        gradient is formed (arXiv 2102.05375).

    Example:
        >>> from gaugefix import load_task
        >>> task = load_task("digits-mlp")
        >>> found = directional_variance(task, {"0.bias": torch.ones(64)}, max_samples=480)
        >>> found.n_samples, found.variance.shape
        (480, (1,))
    """
    operator = task if isinstance(task, NoiseOperator) else NoiseOperator(task, max_samples=max_samples, seed=seed)
    several = [directions] if isinstance(directions, Mapping) else list(directions)
    rows = [operator.slopes(v).double().cpu().numpy() for v in several]
    each = np.stack(rows) if rows else np.zeros((0, operator.n_samples))
    n = each.shape[1]
    deviations = (each - each.mean(axis=1, keepdims=True)) ** 2
    stderr = deviations.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else np.full(len(each), np.nan)
    return DirectionalNoise(deviations.mean(axis=1), each.mean(axis=1), stderr, n)
