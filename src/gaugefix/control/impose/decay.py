"""How weight decay reaches the factors: parameter groups, an optimizer that fits, a penalty, and a ramp."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gaugefix.control.impose.factors import imposed
from gaugefix.errors import ControlError

T = TypeVar("T", bound=torch.optim.Optimizer)


def factors(model: nn.Module) -> tuple[tuple[str, nn.Parameter], ...]:
    """The parameters of a model that feel the weight decay of a constraint.

    Args:
        model: with constraints imposed.

    Returns:
        Names for people, such as ``"0.weight: factor 1"``, and parameters.
    """
    return tuple((name, parameter) for name, parameter, _ in _factors(model))


def _factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    found = [(name, p, tensor.kind.strength) for tensor in imposed(model) for name, p in tensor.factors]
    if not found:
        raise ControlError("No constraint is imposed on this model; call impose.sparse or another verb first.")
    yield from found


def parameter_groups(
    model: nn.Module, *, weight_decay: float = 0.0, factor_lr: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: every factor gets the strength of its constraint as weight decay.

    The optimizer must add weight decay to the gradient (`torch.optim.SGD`, `torch.optim.Adam`), because only then are
    its fixed points the stationary points of the penalised loss; `optimizer` builds one and checks.

    Args:
        model: with constraints imposed.
        weight_decay: of all other parameters.
        factor_lr: learning rate of the factors, by default that of the others. A weight u·v moves with the learning
            rate lr·(u² + v²), about 2|w|·lr, so SGD wants several times that of the dense network: ten from trained
            weights, four from the start on digits; at twenty training diverges there.
        **options: put into every group, for example ``lr``.

    Returns:
        A group for the other parameters and one for each strength, with the key "imposed".

    Raises:
        ControlError: if no constraint is imposed.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(4, 3), "weight", strength=1e-3)
        >>> [(len(g["params"]), g["weight_decay"]) for g in impose.parameter_groups(layer)]
        [(1, 0.0), (2, 0.001)]
    """  # noqa: DOC502
    by_strength: dict[float, list[nn.Parameter]] = {}
    for _, parameter, strength in _factors(model):
        by_strength.setdefault(strength, []).append(parameter)
    taken = {id(p) for group in by_strength.values() for p in group}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [{"params": rest, "weight_decay": weight_decay, **options}] if rest else []
    if factor_lr is not None:
        options["lr"] = factor_lr
    return groups + [
        {"params": group, "weight_decay": strength, "imposed": strength, **options}
        for strength, group in by_strength.items()
    ]


def optimizer(
    kind: type[T], model: nn.Module, *, weight_decay: float = 0.0, factor_lr: float | None = None, **options: Any
) -> T:
    """Build an optimizer in which every factor has the weight decay of its constraint.

    Args:
        kind: class such as `torch.optim.SGD` or `torch.optim.Adam`.
        model: with constraints imposed.
        weight_decay: of all other parameters.
        factor_lr: learning rate of the factors, see `parameter_groups`.
        **options: given to the class.

    Returns:
        The optimizer.

    Raises:
        ControlError: if it decouples weight decay from the gradient (AdamW), has none (LBFGS), or no constraint is
            imposed.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(4, 3), "weight", strength=1e-3)
        >>> type(impose.optimizer(torch.optim.Adam, layer, lr=1e-2)).__name__
        'Adam'
        >>> impose.optimizer(torch.optim.AdamW, layer, lr=1e-2)
        Traceback (most recent call last):
        ...
        gaugefix.errors.ControlError: AdamW decouples weight decay from the gradient...
    """
    groups = parameter_groups(model, weight_decay=weight_decay, factor_lr=factor_lr)
    if "weight_decay" not in inspect.signature(kind).parameters:
        raise ControlError(
            f"{kind.__name__} has no weight decay. Add impose.penalty(model) to the loss and give it all parameters."
        )
    built: T = kind(groups, **options)
    check_optimizer(model, built)
    return built


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer solves the penalised problem: every factor decays, through its gradient.

    Args:
        model: with constraints imposed.
        optimizer: as it will be used.

    Raises:
        ControlError: if a factor is not in it or has another weight decay, or weight decay is decoupled: at rest, where
            the gradient is −λθ, it must not move. AdamW and its kin do.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter, strength in _factors(model):
        group = groups.get(id(parameter))
        if group is None:
            raise ControlError(f"{name} is not in the optimizer. Build it after the constraint, with impose.optimizer.")
        decay = group.get("imposed", group.get("weight_decay", 0.0))
        if not math.isclose(decay, strength):
            raise ControlError(
                f"{name} has weight_decay {decay:g} in the optimizer and strength {strength:g} in the model. Build the "
                "optimizer with impose.optimizer or impose.parameter_groups, or use impose.penalty and weight_decay=0."
            )
        if strength > 0 and not couples_decay(optimizer, group):
            raise ControlError(
                f"{type(optimizer).__name__} decouples weight decay from the gradient, and then the factors do not "
                f"go to "
                "the minimum of loss + penalty. Use torch.optim.Adam(…, weight_decay=…) or torch.optim.SGD, both of "
                "which couple it, or add impose.penalty(model) to the loss with weight_decay=0 for the factors."
            )


def couples_decay(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether a parameter at rest, gradient −λθ, stays there: tried out on one number.

    Args:
        optimizer: whose class is tried.
        group: its settings, except the learning rate and the weight decay.

    Returns:
        True if weight decay is part of the gradient, or the class cannot be tried out and has no flag that says no.
    """
    if group.get("decoupled_weight_decay") or group.get("weight_decouple"):
        return False
    known = inspect.signature(type(optimizer)).parameters
    plain: dict[str, Any] = {
        k: v for k, v in group.items() if k in known and isinstance(v, int | float | bool | tuple | type(None))
    }
    plain |= {"lr": 1e-2, "weight_decay": 0.1}
    probe = nn.Parameter(torch.ones(1))
    try:
        trial: Any = type(optimizer)([probe], **{**plain, "fused": None} if "fused" in known else plain)
        for _ in range(3):
            probe.grad = torch.full((1,), -0.1)
            trial.step()
    except (TypeError, ValueError, RuntimeError):
        return True  # cannot be tried out; the flags above are all there is
    return abs(float(probe.detach()) - 1.0) < 1e-6


def penalty(model: nn.Module, *, scale: float = 1.0) -> Tensor:
    """The penalty on the factors, Σ (strength/2)‖factor‖², to be added to the loss.

    For optimizers without coupled weight decay (LBFGS, AdamW with ``weight_decay=0`` for the factors). At its minimum
    over the factors of a given tensor it is strength·‖W‖₁, the group norm, or the nuclear norm.

    Args:
        model: with constraints imposed.
        scale: common multiple, such as `Ramp.value`.

    Returns:
        A scalar with gradient.

    Raises:
        ControlError: if no constraint is imposed.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(4, 3), "weight", strength=0.1)
        >>> bool(impose.penalty(layer) >= 0.1 * layer.weight.abs().sum())
        True
    """  # noqa: DOC502
    terms = [strength * p.square().sum() for _, p, strength in _factors(model)]
    return scale / 2 * torch.stack(terms).sum()


class Ramp:
    """Raise the strength of all constraints linearly from a fraction to its full value.

    The network first learns with weak constraints, so that fewer weights die for want of a signal.

    Args:
        optimizer: built with `optimizer` or `parameter_groups`; the weight decay of its constrained groups is set. None
            if the penalty is in the loss: multiply it with ``value``.
        steps: calls of `step` until the full strength.
        start: fraction of the strength at the first step.

    Attributes:
        value: the fraction now.

    Raises:
        ControlError: if a number is out of range, or no group of the optimizer is constrained.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(4, 3), "weight", strength=1e-3)
        >>> ramp = impose.Ramp(impose.optimizer(torch.optim.SGD, layer, lr=0.1), steps=10)
        >>> for _ in range(5):
        ...     ramp.step()  # after optimizer.step()
        >>> ramp.value
        0.5
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None, *, steps: int, start: float = 0.0) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise ControlError(f"steps must be an integer >= 1, got {steps!r}.")
        if not 0.0 <= start <= 1.0:
            raise ControlError(f"start must be in [0, 1], got {start!r}.")
        if optimizer is not None and not any("imposed" in group for group in optimizer.param_groups):
            raise ControlError("No group of the optimizer is constrained. Build it with impose.optimizer.")
        self._optimizer, self._steps, self._start, self._done = optimizer, steps, start, 0
        self._set()

    @property
    def value(self) -> float:
        """Fraction of the full strength, in [0, 1]."""
        return self._start + (1 - self._start) * min(self._done / self._steps, 1.0)

    def step(self) -> None:
        """Go on by one step."""
        self._done += 1
        self._set()

    def _set(self) -> None:
        for group in self._optimizer.param_groups if self._optimizer is not None else ():
            if "imposed" in group:
                group["weight_decay"] = self.value * group["imposed"]

    def state_dict(self) -> dict[str, int]:
        """Where the ramp is."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where a ramp was."""
        self._done = int(state["done"])
        self._set()
