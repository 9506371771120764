"""The loss that a step of gradient descent really follows, as a function that can be differentiated again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gaugefix.errors import MeasurementError

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
