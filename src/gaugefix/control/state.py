"""Parameters and running statistics of a module as one dictionary, and the function they make, in float64."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.control.statistics import with_statistics
from gaugefix.errors import ControlError
from gaugefix.files import write_atomically
from gaugefix.symmetry import Slice, Symmetries, Symmetry, find_symmetries
from gaugefix.symmetry.graph import math_attention
from gaugefix.symmetry.groups import Diagonal, Permutation
from gaugefix.symmetry.verify import float_outputs, relative_change, to_double
from gaugefix.task import Task

State = dict[str, Tensor]

#: largest relative change of the outputs that counts as none, by precision of the parameters
PRESERVED = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True, eq=False)
class Function:
    """What a module computes at example inputs, as a function of its state: float64, on the CPU, evaluation mode.

    Attributes:
        model: a float64 copy.
        args: example arguments in float64.
        reference: outputs at the state of the copy.
    """

    model: nn.Module
    args: tuple[Any, ...]
    reference: list[Tensor] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...]) -> Function:
        """Copy a module and evaluate it once.

        Args:
            model: left as it is.
            args: example positional arguments.

        Returns:
            The function.

        Raises:
            ControlError: if the outputs are not finite.
        """
        lab = copy.deepcopy(model).double().cpu().eval().requires_grad_(False)
        inputs = to_double(pytree.tree_map(lambda a: a.cpu() if isinstance(a, Tensor) else a, args))
        with torch.no_grad(), math_attention():
            reference = float_outputs(lab, {}, inputs, {})
        if not all(bool(torch.isfinite(t).all()) for t in reference):
            raise ControlError("The model's outputs at the example inputs are not finite: check weights and inputs.")
        return cls(lab, inputs, reference)

    @property
    def state(self) -> State:
        """Parameters and running statistics, float64."""
        return state_of(self.model)

    def change(self, state: Mapping[str, Tensor]) -> float:
        """‖f(state) − f‖/‖f‖, the largest over the outputs."""
        with torch.no_grad(), math_attention():
            error = relative_change(float_outputs(self.model, state, self.args, {}), self.reference)
        return error if error == error else float("inf")


def state_of(model: nn.Module) -> State:
    """Parameters and floating buffers by name, float64 copies on the CPU.

    Args:
        model: the module.

    Returns:
        Tensors that share nothing with the module.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: t.detach().to("cpu", torch.float64, copy=True) for n, t in named if t.is_floating_point()}


def write_state(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy a state into a module, in its own precision, where it differs.

    Args:
        model: changed in place.
        state: by name; shapes as in the module.

    Returns:
        Names of what changed.
    """
    changed = []
    with torch.no_grad():
        for name, target in [*model.named_parameters(), *model.named_buffers()]:
            new = state.get(name)
            if new is not None and not torch.equal(target.detach().double().cpu(), new):
                target.copy_(new)
                changed.append(name)
    return tuple(changed)


def save_weights(model: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write parameters and buffers as safetensors; tensors that are shared are written once.

    Args:
        model: the module.
        path: of the file.
        metadata: text that goes into the head of the file.

    Returns:
        The absolute path.
    """
    from safetensors.torch import save_model

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(model, str(file), metadata=dict(metadata or {}))
        return write_atomically(path, file.read_bytes())


def as_args(model: nn.Module | Task, example_inputs: Any, caller: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module and its example arguments.

    Args:
        model: a module, or a task that brings its own inputs.
        example_inputs: a tensor or a tuple of positional arguments; may be None for a task.
        caller: named in errors.

    Returns:
        Module and arguments.

    Raises:
        ControlError: if there are no inputs, or ``model`` is neither module nor task.
    """
    if isinstance(model, Task):
        module = model.model
        found = model.inputs(model.first_batch()) if example_inputs is None else example_inputs
    elif isinstance(model, nn.Module):
        module, found = model, example_inputs
    else:
        raise ControlError(f"{caller}: model must be an nn.Module or a gaugefix.Task, got {type(model).__name__}.")
    if found is None:
        raise ControlError(
            f"{caller}: example_inputs are needed to check that the function does not change: "
            "pass a tensor or a tuple of positional arguments, or a Task instead of the module."
        )
    return module, found if isinstance(found, tuple) else (found,)


def check_model(model: nn.Module, symmetries: Symmetries | None, caller: str) -> None:
    """Refuse modules that a real group cannot act on, and symmetries of another module.

    Args:
        model: the module.
        symmetries: what was found, if anything.
        caller: named in errors.

    Raises:
        ControlError: if a parameter is not floating point or on the meta device, or shapes disagree.
    """
    params = dict(model.named_parameters())
    for name, p in params.items():
        if not p.is_floating_point():
            raise ControlError(f"{caller}: parameter {name!r} has dtype {p.dtype}; only floating point can be moved.")
        if p.is_meta:
            raise ControlError(f"{caller}: parameter {name!r} is on the meta device and has no values.")
    if symmetries is None:
        return
    for s in symmetries:
        for name in s.parameters if s.level == "function" else ():
            if name not in params:
                raise ControlError(
                    f"{caller}: symmetry {s.name!r} moves {name!r}, which this model does not have. "
                    "The symmetries are those of another model: find them again."
                )
    for name, shape in symmetries.shapes.items():
        if name in params and tuple(params[name].shape) != tuple(shape):
            raise ControlError(
                f"{caller}: parameter {name!r} has shape {tuple(params[name].shape)}, the symmetries were found for "
                f"{tuple(shape)}. Find them again."
            )


def resolve(
    model: nn.Module | Task, symmetries: Symmetries | None, example_inputs: Any, caller: str
) -> tuple[nn.Module, tuple[Any, ...], Symmetries]:
    """Module, arguments and symmetries of a control function, checked.

    Args:
        model: a module or a task.
        symmetries: what was found; None to search now.
        example_inputs: as in `as_args`.
        caller: named in errors.

    Returns:
        The three.
    """
    module, args = as_args(model, example_inputs, caller)
    check_model(module, symmetries, caller)
    found = find_symmetries(module, args, verify=False) if symmetries is None else symmetries
    return module, args, found


def exact_symmetries(
    symmetries: Symmetries, function: Function, *, kinds: tuple[type[Symmetry], ...], tolerance: float = 1e-11
) -> tuple[list[Symmetry], dict[str, str]]:
    """The symmetries of this very function: evaluation mode, its running statistics, its ε.

    A search neglects ε and lets BatchNorm use the batch; elements far from the identity at the model's own state tell.

    Args:
        symmetries: what was found.
        function: the function.
        kinds: classes of symmetries wanted.
        tolerance: largest relative change.

    Returns:
        Those that hold, and why others were left out, by name.
    """
    generator, kept, left = torch.Generator().manual_seed(0), [], {}
    state = function.state
    for found in symmetries:
        if found.level != "function":
            continue
        if not isinstance(found, kinds):
            left[found.name] = f"{type(found).__name__} is not a gauge that this can fix"
            continue
        s = with_statistics(found, function.model)
        error = max(function.change(s.apply(state, element)) for element in _elements(s, generator))
        if error <= tolerance:
            kept.append(s)
        else:
            left[found.name] = (
                f"holds in training only up to ε or running statistics: changes the function by {error:.0e}"
            )
    return kept, left


def _elements(s: Symmetry, generator: torch.Generator) -> list[Any]:
    """Elements that move everything: a random permutation or sign may be the identity, a random scale close to it."""
    drawn = s.sample(generator)
    if isinstance(s, Permutation):
        return [drawn, torch.arange(drawn.shape[1]).roll(1).expand(drawn.shape)]
    if isinstance(s, Diagonal):
        return [drawn, -torch.ones_like(drawn)] if s.kind == "sign" else [5 * drawn, -5 * drawn]
    return [drawn]


def flat_positions(s: Slice, tensor: Tensor) -> np.ndarray:
    """Flat positions of every unit's entries in a contiguous tensor, ``(fibers, units, entries)``.

    Args:
        s: the slice.
        tensor: the parameter.

    Returns:
        Integers.
    """
    ids = torch.arange(tensor.numel()).reshape(tensor.shape)
    return s.take(ids).reshape(*s.index.shape[:2], -1).numpy()
