"""The arguments that all verbs share, checked before anything is changed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaugefix.errors import ControlError
from gaugefix.symmetry import Symmetries


def check_strength(strength: float) -> float:
    """A finite number ≥ 0."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise ControlError(f"strength must be a number in [0, inf), got {strength!r}.")
    return float(strength)


def check_spread(spread: float) -> float:
    """A finite number > 0: at 0 both factors of a zero weight vanish, and stay."""
    if not isinstance(spread, int | float) or not math.isfinite(spread) or spread <= 0:
        raise ControlError(f"spread must be a number in (0, inf), got {spread!r}; the default is 0.1.")
    return float(spread)


def check_finite(name: str, tensor: Tensor) -> None:
    """Values, none of them NaN or infinite."""
    if tensor.is_meta:
        raise ControlError(f"{name!r} is on the meta device and has no values to split into factors.")
    if not bool(torch.isfinite(tensor).all()):
        raise ControlError(f"{name!r} has entries that are not finite, and those have no factors.")


def holder(module: nn.Module, tensor_name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor and its name there, if the tensor can be factorised.

    Args:
        module: holds the tensor, or contains the module that does.
        tensor_name: ``"weight"``, or a dotted name such as ``"encoder.0.weight"``.

    Returns:
        The innermost module and the last part of the name.

    Raises:
        ControlError: if there is no such module or parameter, or it is shared, frozen, not floating point, parametrised
            already, or inside a recurrent module that reads its weights another way.
    """
    if not isinstance(module, nn.Module) or not isinstance(tensor_name, str):
        raise ControlError(
            "A module and the name of one of its parameters are needed, (model, 'encoder.0.weight'); got "
            f"({type(module).__name__}, {tensor_name!r})."
        )
    parameters = dict(module.named_parameters(remove_duplicate=False))
    path, _, last = tensor_name.rpartition(".")
    submodules = dict(module.named_modules())
    inner = submodules.get(path)
    if inner is not None and parametrize.is_parametrized(inner, last):
        raise ControlError(
            f"{tensor_name!r} is parametrised already. Take the parametrisation off first, with impose.collapse_ or "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    if inner is None or inner._parameters.get(last) is None:
        raise ControlError(
            f"{type(module).__name__} has no parameter {tensor_name!r}. {_nearest(tensor_name, parameters)}"
        )
    parameter = parameters[tensor_name]
    if not parameter.is_floating_point():
        raise ControlError(f"{tensor_name!r} has dtype {parameter.dtype}; only floating-point parameters have factors.")
    if not parameter.requires_grad:
        raise ControlError(
            f"{tensor_name!r} is frozen (requires_grad=False), so its factors would not train. Unfreeze it."
        )
    twins = [name for name, p in parameters.items() if p is parameter and name != tensor_name]
    if twins:
        raise ControlError(
            f"{tensor_name!r} is the same parameter as {', '.join(map(repr, twins))}. Factorising one would untie "
            f"them; "
            "give the other a copy first."
        )
    if isinstance(inner, nn.RNNBase):
        raise ControlError(
            f"{type(inner).__name__} reads its weights from a flat list, which a parametrisation does not reach. "
            "Use cells (nn.LSTMCell, nn.GRUCell, nn.RNNCell) instead."
        )
    return inner, last


def check_same_model(model: nn.Module, symmetries: object) -> None:
    """Refuse the search result of a model with other shapes: it would reach a part of the units.

    Args:
        model: to be constrained.
        symmetries: a search result, or classes of units, which know no shapes.

    Raises:
        ControlError: if a tensor has another shape than when it was searched.
    """
    shapes = symmetries.shapes if isinstance(symmetries, Symmetries) else {}
    for name, parameter in model.named_parameters():
        if name in shapes and tuple(parameter.shape) != tuple(shapes[name]):
            raise ControlError(
                f"{name!r} has shape {tuple(parameter.shape)}, and had {tuple(shapes[name])} in the search. Find the "
                "symmetries of this model again."
            )


def _nearest(name: str, parameters: Mapping[str, object]) -> str:
    """A hint for a name that is not there."""
    near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.4)
    near = near or [p for p in parameters if p.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    if near:
        return f"Did you mean {', '.join(map(repr, near))}?"
    return f"It has {', '.join(map(repr, list(parameters)[:8])) or 'no parameters'}."
