"""The modules that read a class of units: what they see of it, and the bias that can take a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.state import Function, State
from gaugefix.symmetry import Slice, Units
from gaugefix.symmetry.graph import math_attention
from gaugefix.symmetry.verify import float_outputs, random_parameters

Inputs = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Reader:
    """A module that contracts a class with its weight.

    Attributes:
        name: of the module.
        slice: of the class in its weight.
        axis: of its input on which the units lie.
        takes_bias: whether a constant can go to its bias.
    """

    name: str
    slice: Slice
    axis: int
    takes_bias: bool


def readers_of(units: Units, model: nn.Module) -> list[Reader] | None:
    """The modules behind the "read" slices.

    Args:
        units: the class.
        model: the module.

    Returns:
        One reader per slice, or None if some slice is not the weight of a linear or convolutional module.
    """
    out = []
    for s in units.outgoing:
        owner, _, leaf = s.param.rpartition(".")
        module = model.get_submodule(owner)
        if leaf != "weight" or s.others:
            return None
        if (isinstance(module, nn.Linear) and s.dim == 1) or (
            hasattr(module, "nf") and hasattr(module, "nx") and s.dim == 0
        ):
            out.append(Reader(owner, s, -1, True))
        elif (
            isinstance(module, nn.modules.conv._ConvNd) and not module.transposed and module.groups == 1 and s.dim == 1
        ):
            padded = module.padding if isinstance(module.padding, tuple) else (1,)
            out.append(Reader(owner, s, 1, not any(padded) or module.padding_mode == "replicate"))
        else:
            return None
    return out or None


def seen_values(function: Function, state: State, readers: Sequence[Reader], inputs: Inputs) -> list[list[Tensor]]:
    """What every reader sees of the class, call by call: ``(fibers, units, entries, samples of all inputs)`` each."""
    calls = [_seen(function, state, readers, args) for args in inputs]
    return [
        [torch.cat(parts, dim=3) for parts in zip(*(c[i] for c in calls), strict=True)] for i in range(len(readers))
    ]


def _seen(function: Function, state: State, readers: Sequence[Reader], inputs: tuple[Any, ...]) -> list[list[Tensor]]:
    seen: dict[str, list[Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, []).append(args[0].detach())

        return hook

    handles = [
        function.model.get_submodule(name).register_forward_pre_hook(record(name))
        for name in dict.fromkeys(r.name for r in readers)
    ]
    try:
        with torch.no_grad(), math_attention():
            float_outputs(function.model, state, inputs, {})
    finally:
        for handle in handles:
            handle.remove()
    out = []
    for r in readers:
        index = torch.from_numpy(r.slice.index)
        out.append([x.movedim(r.axis, 0)[index].flatten(3) for x in seen.get(r.name, [])])
    return out


def constant_values(
    function: Function, state: State, zero: Sequence[tuple[Slice, Tensor]], readers: Sequence[Reader], inputs: Inputs
) -> tuple[Tensor, list[Tensor]]:
    """Units whose value does not depend on the input because of the entries that are zero, whatever the others are.

    All other parameters are drawn at random twice: a unit that is constant there is constant by structure, not
    because the inputs at hand happen to leave a ReLU off. Its value is then read at the actual parameters.

    Args:
        function: the module.
        state: its tensors, in which the zeros are zero.
        zero: slices with masks ``(fibers, units)`` of their zero units.
        readers: of the class.
        inputs: two or more different sets of random arguments.

    Returns:
        Mask ``(fibers, units)``, and for every reader the constants ``(fibers, units, entries)``.
    """
    generator = torch.Generator().manual_seed(0)
    constant: Tensor | None = None
    for _ in range(2):
        drawn = {**state, **random_parameters(function.model, generator)}
        for s, mask in zero:
            block = s.take(drawn[s.param])
            keep = (~mask).to(block).reshape(*mask.shape, *[1] * (block.ndim - 2))
            drawn[s.param] = s.put(drawn[s.param], block * keep)
        for calls in seen_values(function, drawn, readers, inputs):
            for x in calls:
                flat = x.amax(3) - x.amin(3) <= 1e-12 * x.abs().amax().clamp_min(1e-300)
                fixed = flat.all(2)
                constant = fixed if constant is None else constant & fixed
    actual = seen_values(function, state, readers, inputs)
    fibers, size = readers[0].slice.index.shape[:2]
    mask = torch.zeros(fibers, size, dtype=torch.bool) if constant is None else constant
    values = []
    for calls in actual:
        first = calls[0][..., 0]
        for x in calls:  # a module that is called twice must see one constant
            same = (x - first[..., None]).abs().amax(3) <= 1e-9 * first.abs().amax().clamp_min(1e-300)
            mask = mask & same.all(2)
        values.append(first)
    return mask, values
