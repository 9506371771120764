"""A plain copy: parametrisations, weight norm and pruning masks evaluated and taken off."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, prune


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters are ordinary ones, with the same function.

    Args:
        model: left as it is.

    Returns:
        The copy.
    """
    out = copy.deepcopy(model)
    for module in list(out.modules()):
        if parametrize.is_parametrized(module):
            _own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                # with gradients on: that a tensor has one is how torch knows that it is to be a parameter
                with torch.enable_grad():
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        with torch.no_grad():
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)
                elif hasattr(hook, "compute_weight") and hasattr(hook, "name"):  # weight_norm, spectral_norm as hooks
                    _remove_norm_hook(module, hook)
    return out


def _remove_norm_hook(module: nn.Module, hook: object) -> None:
    name = str(hook.name)  # type: ignore[attr-defined]
    if f"{name}_g" in module._parameters:
        nn.utils.remove_weight_norm(module, name)
    else:
        nn.utils.remove_spectral_norm(module, name)


def _own_class(module: nn.Module) -> None:
    """A class that no other module has: the one made by parametrize is shared by copies, and loses its properties."""
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
