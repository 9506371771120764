"""How long until the factors die: the closed form of a weight without gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.impose.collapse import sizes_of
from gaugefix.control.impose.decay import check_optimizer
from gaugefix.control.impose.factors import Imposed, imposed
from gaugefix.errors import ControlError
from gaugefix.measure import Record
from gaugefix.theory.redundant_factors import steps_to_zero


@dataclass(frozen=True)
class StepsForecast(Record):
    """Steps until what dies in one tensor is below the tolerance.

    Attributes:
        name: of the tensor.
        strength: weight decay λ of its factors.
        lr: learning rate η, as it is now.
        momentum: μ.
        start: root mean square of the sizes (entries, norms of groups, singular values) now.
        tolerance: what counts as zero.
        time_constant: (1 − μ)/(ηλ) steps; the run must be several times as long.
        steps: for a size ``start`` whose loss gradient is zero; with |g| < λ it takes λ/(λ − |g|) times as long, so
            this is the least that a run must have.
        valid: whether the closed form holds for this optimizer and tensor.
        reason: why not.
    """

    name: str
    strength: float
    lr: float
    momentum: float
    start: float
    tolerance: float
    time_constant: float
    steps: float
    valid: bool
    reason: str = ""


def predict_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, tolerance: float = 1e-6
) -> tuple[StepsForecast, ...]:
    """How many steps training needs until the weights that die are dead, log(start/tolerance)·(1 − μ)/(2ηλ).

    Args:
        model: with constraints imposed.
        optimizer: SGD as it will be used, with its learning rate at a typical value.
        tolerance: size that counts as zero.

    Returns:
        One forecast for each constrained tensor. With an adaptive optimizer the number is NaN and ``valid`` is False.

    Raises:
        ControlError: if ``tolerance`` is not positive, or the optimizer does not couple weight decay.

    Source: arXiv 2210.01212; see `gaugefix.theory.steps_to_zero`.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(64, 64), "weight", strength=1e-3)
        >>> sgd = impose.optimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
        >>> forecast, = impose.predict_steps(layer, sgd)
        >>> round(forecast.time_constant)
        1000
    """
    if not tolerance > 0:
        raise ControlError(f"tolerance must be positive, got {tolerance!r}.")
    check_optimizer(model, optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tensors = imposed(model)
    sgd = isinstance(optimizer, torch.optim.SGD)
    return tuple(
        _forecast(tensor, groups[id(tensor.factors[0][1])], sizes_of(tensor, tensors), tolerance, sgd=sgd)
        for tensor in tensors
    )


def _forecast(
    tensor: Imposed, group: dict[str, Any], sizes: Tensor | None, tolerance: float, *, sgd: bool
) -> StepsForecast:
    lr, momentum, strength = float(group["lr"]), float(group.get("momentum", 0.0)), tensor.kind.strength
    start = float(sizes.square().mean().sqrt()) if sizes is not None else float("nan")
    reason = ""
    if not sgd or group.get("nesterov") or group.get("dampening"):
        reason = "the closed form is for SGD with heavy-ball momentum"
    elif sizes is None:
        reason = "the tensor is itself a factor; its product with the other side has no size here"
    steps = float("nan") if reason else float(steps_to_zero(start, tolerance, strength, lr, momentum=momentum))
    constant = (1 - momentum) / (lr * strength) if lr * strength > 0 else float("inf")
    return StepsForecast(
        tensor.name, strength, lr, momentum, start, tolerance, constant, steps, valid=not reason, reason=reason
    )
