"""The bar for candidates: the same outputs as the original, at the example inputs and at random ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.control.state import Function
from gaugefix.errors import ControlError
from gaugefix.symmetry.capture import named_outputs
from gaugefix.symmetry.graph import math_attention
from gaugefix.symmetry.verify import float_outputs, relative_change

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Bench:
    """The original function, and the largest change that a candidate may make.

    Attributes:
        functions: one per set of inputs, in float64.
        original: tells the precision that the result will have.
        args: example inputs as they were given.
        random_args: other inputs of the same shapes, in the precision of the example; different from each other.
        limit: largest relative change.
    """

    functions: list[Function]
    original: nn.Module
    args: tuple[Any, ...]
    random_args: list[tuple[Any, ...]]
    limit: float

    @classmethod
    def of(cls, model: nn.Module, original: nn.Module, args: tuple[Any, ...], limit: float) -> Bench:
        """Evaluate a plain module at its example inputs and at random ones.

        Args:
            model: plain copy.
            original: what it was copied from.
            args: example inputs.
            limit: largest relative change.

        Returns:
            The bench.
        """
        functions, drawn = [Function.of(model, args)], []
        for seed in (1, 2, 3):
            other = _random_like(args, seed)
            if other is None:
                break
            try:
                functions.append(Function.of(model, other))
            except (*_FAILURES, ControlError):  # these numbers mean something to the model: a mask, an index
                continue
            drawn.append(other)
        return cls(functions[:3], original, args, drawn, limit)

    def error(self, candidate: nn.Module) -> float:
        """Largest relative change of a float64 candidate."""
        worst = 0.0
        with torch.no_grad(), math_attention():
            for f in self.functions:
                new = float_outputs(candidate, {}, f.args, {})
                if [t.shape for t in new] != [t.shape for t in f.reference]:
                    return math.inf
                change = relative_change(new, f.reference)
                worst = max(worst, change if change == change else math.inf)
        return worst

    def judge(self, candidate: nn.Module) -> str:
        """Why a float64 candidate will not do, or ""; it must also run in the precision that it will have."""
        try:
            error = self.error(candidate)
            if error > self.limit:
                return f"the outputs would change by {error:.1e}"
            with torch.no_grad():
                in_precision(copy.deepcopy(candidate), self.original)(*self.args)
        except _FAILURES as failure:
            return (
                f"the forward pass does not take it ({(str(failure).strip() or repr(failure)).splitlines()[0][:120]})"
            )
        return ""


def _random_like(args: tuple[Any, ...], seed: int) -> tuple[Any, ...] | None:
    """Gaussian numbers for floats and shuffled integers; None if nothing in the arguments can vary."""
    generator = torch.Generator().manual_seed(seed)
    varied = False

    def draw(t: Any) -> Any:
        nonlocal varied
        if not isinstance(t, Tensor) or t.dtype == torch.bool or t.is_complex():
            return t
        if t.is_floating_point():
            varied = True
            scale = float(t.double().std(correction=0)) if t.numel() > 1 else 0.0
            return ((scale or 1.0) * torch.randn(t.shape, generator=generator)).to(t)
        varied = varied or bool((t != t.reshape(-1)[0]).any())
        return t.reshape(-1)[torch.randperm(t.numel(), generator=generator).to(t.device)].reshape(t.shape)

    found: tuple[Any, ...] = pytree.tree_map(draw, args)
    return found if varied else None


def in_precision(model: nn.Module, like: nn.Module) -> nn.Module:
    """Put a float64 module into the precision and on the device of another one, trainable where that is.

    Args:
        model: changed in place.
        like: the other one; may have more parameters.

    Returns:
        The same module.
    """
    dtypes = {n: t.dtype for n, t in [*like.named_parameters(), *like.named_buffers()] if t.is_floating_point()}
    frozen = {n for n, p in like.named_parameters() if not p.requires_grad}
    main = next(iter(dtypes.values()), torch.float32)
    device = next((p.device for p in like.parameters()), torch.device("cpu"))
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_floating_point():
            t.data = t.data.to(device, dtypes.get(name, main))
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen and p.is_floating_point())
    return model


def own_error(new: nn.Module, old: nn.Module, inputs: list[tuple[Any, ...]]) -> float:
    """Relative change of the outputs in the models' own precision, the largest over some inputs."""
    worst = 0.0
    for args in inputs:
        with torch.no_grad():
            a, b = ([t.double() for t in named_outputs(m.eval()(*args)).values()] for m in (new, old))
        change = relative_change(a, b)
        worst = max(worst, change if change == change else math.inf)
    return worst
