"""What a run is wrapped in: the model of a parallel or compiled one, the optimizers of trainers, scaled gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError

#: what wrappers put into the names of parameters
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers that keep it as one child.

    Args:
        model: what was handed over.

    Returns:
        The model itself.

    Raises:
        MeasurementError: if it is no module.
    """
    if not isinstance(model, nn.Module):
        raise MeasurementError(f"Monitor: pass a torch.nn.Module or a gaugefix.Task, got {type(model).__name__}.")
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    inner: Any = model
    while isinstance(inner, parallel) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, parallel) else inner._orig_mod
    return cast(nn.Module, inner)


def clean_name(name: str) -> str:
    """The name that a parameter has without wrappers.

    Args:
        name: in the wrapped model.

    Returns:
        The name.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def inner_optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    """The torch optimizers inside what a user or a trainer hands over.

    Args:
        given: None, an optimizer, a wrapper of one, or several of them.

    Returns:
        The optimizers.

    Raises:
        MeasurementError: if something is no optimizer.
    """
    if given is None:
        return ()
    found = []
    for optimizer in given if isinstance(given, list | tuple) else (given,):
        inner = optimizer
        while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
            inner = inner.optimizer
        if not isinstance(inner, torch.optim.Optimizer):
            raise MeasurementError(
                f"Monitor: optimizer must be a torch.optim.Optimizer or a list of them, got {type(inner).__name__}."
            )
        found.append(inner)
    return tuple(found)


def gradient_scale(scaler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> Tensor | float:
    """By what the gradients are too large.

    Args:
        scaler: the ``torch.amp.GradScaler`` in use, or None.
        optimizers: those that are about to step.

    Returns:
        A factor; a tensor where it is known on the device only.
    """
    if scaler is None or not scaler.is_enabled():
        return 1.0
    stages = getattr(scaler, "_per_optimizer_states", {})
    for optimizer in optimizers:
        if id(optimizer) in stages and "UNSCALED" in str(stages[id(optimizer)].get("stage", "")):
            return 1.0
    scale = getattr(scaler, "_scale", 1.0)  # a tensor on the device; None as long as no loss was scaled
    return 1.0 if scale is None else scale
