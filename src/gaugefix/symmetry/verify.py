"""Is the function really unchanged? Random group elements on random parameters, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from gaugefix.symmetry.capture import named_outputs
from gaugefix.symmetry.generic import generic_parameters
from gaugefix.symmetry.symmetries import Symmetries, Verification
from gaugefix.symmetry.written_norms import LARGEST_EPS

TOLERANCE = 1e-9
#: points drawn at most until one can be judged
REDRAWS = 20
_GROUPED = {
    f for f in (getattr(torch, "_grouped_mm", None), getattr(nn.functional, "grouped_mm", None)) if f is not None
}
_HIGH = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
_HIGH_CASTS = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}
_EPS_NAMES = ("eps", "variance_epsilon", "layer_norm_eps", "epsilon")
_NO_EPS = 1e-30
#: function -> position of ε, for models that write it into the call
_EPS_AT: dict[Any, int] = {torch.layer_norm: 4, torch.group_norm: 4, torch.rms_norm: 3, torch.batch_norm: 7}
_NORM_CALLS = {F.layer_norm, F.group_norm, F.rms_norm, F.batch_norm, F.instance_norm}
_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}


def laboratory_copy(model: nn.Module) -> nn.Module:
    """A float64 copy for checks: no dropout, negligible ε, BatchNorm on batch statistics, gradients of padding rows.

    Args:
        model: left as it is.

    Returns:
        The copy, in eval mode but for BatchNorm.
    """
    copied = copy.deepcopy(model).double().eval()
    for module in copied.modules():
        for name in _EPS_NAMES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, _NO_EPS)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.padding_idx = None  # it hides the gradient of a row that the function does read
    return copied.requires_grad_(False)


def random_parameters(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """`generic_parameters` of a module.

    Args:
        model: for names and shapes.
        generator: source of randomness.

    Returns:
        float64 tensors by name.
    """
    return generic_parameters({n: tuple(p.shape) for n, p in model.named_parameters()}, generator)


def judgeable_parameters(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """`random_parameters`, drawn again where the example shows a normalisation equal numbers (see `Degenerate`).

    Args:
        model: a copy is run.
        args: example arguments.
        kwargs: example keyword arguments.
        generator: source of randomness.

    Returns:
        float64 tensors by name; the last of `REDRAWS` draws if none was better.
    """
    lab = laboratory_copy(model).to("cpu")
    noise = Degenerate(lab)
    args, kwargs = to_double(args), to_double(dict(kwargs))
    params: dict[str, Tensor] = {}
    with torch.no_grad():
        for _ in range(REDRAWS):
            params = random_parameters(model, generator)
            if not noise.during(lambda point=params: lab_outputs(lab, point, args, kwargs))[1]:  # type: ignore[misc]
                break
    return params


def to_double(tree: Any) -> Any:
    """Floating tensors of a pytree in float64."""
    return pytree.tree_map(
        lambda t: t.detach().double() if isinstance(t, Tensor) and t.is_floating_point() else t, tree
    )


def no_lower(argument: Any) -> Any:
    """float64 in the place of a lower floating type; any other argument as it is."""
    return _HIGH.get(argument, argument) if isinstance(argument, torch.dtype) else argument


class _Float64(TorchFunctionMode):
    """Requests for lower precision inside a model (a norm that casts to float32) get float64 instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _HIGH_CASTS.get(func, func)  # called for every operation, so only what can hold a dtype is looked at
        args = [no_lower(a) for a in args]
        kwargs = {k: no_lower(a) for k, a in (kwargs or {}).items()}
        if func in _GROUPED:  # torch has it in low precision only
            return _grouped_mm(*args, **kwargs)
        return func(*args, **kwargs)


class _NoEps(TorchFunctionMode):
    """The ε that is written into a call, or added under a root by hand, is negligible too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NORM_CALLS:
            kwargs = {**kwargs, "eps": _NO_EPS}
        elif (at := _EPS_AT.get(func)) is not None and len(args) > at:
            args = (*args[:at], _NO_EPS, *args[at + 1 :])
        elif func in _ADDITIONS and any(isinstance(a, float) and 0 < a <= LARGEST_EPS for a in args):
            args = tuple(_NO_EPS if isinstance(a, float) else a for a in args)
        return func(*args, **kwargs)


def _grouped_mm(x: Tensor, weight: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """Consecutive rows of x times consecutive matrices, in any precision."""
    ends = [int(end) for end in offs]
    return torch.cat([x[a:b] @ w for a, b, w in zip([0, *ends], ends, weight, strict=False)])


def float_outputs(
    model: nn.Module, params: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], noise: int = 0
) -> list[Tensor]:
    """Floating output tensors of a functional call, in order; what the model draws at random is fixed by ``noise``."""
    with _Float64(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(noise)
        result = torch.func.functional_call(model, dict(params), args, dict(kwargs))
    return list(named_outputs(result).values())


def lab_outputs(
    model: nn.Module, params: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], noise: int = 0
) -> list[Tensor]:
    """`float_outputs` of a `laboratory_copy`: the ε that is written into calls and sums is negligible too."""
    with _NoEps():
        return float_outputs(model, params, args, kwargs, noise)


def relative_change(new: list[Tensor], old: list[Tensor]) -> float:
    """‖new − old‖/‖old‖, the largest over the outputs."""
    worst = 0.0
    for a, b in zip(new, old, strict=True):
        scale = float(b.norm())
        change = float((a - b).norm())
        worst = max(worst, change / scale if scale > 0 else change)
    return worst


class Degenerate:
    """Notes whether a normalisation met a set of equal numbers: what it makes of them is rounding noise.

    Units that are dead on a whole batch do that to a BatchNorm. No symmetry can be judged at such a point.
    """

    def __init__(self, lab: nn.Module) -> None:
        self.met = False
        for module in lab.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
                module.register_forward_pre_hook(self._look)

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        (x,) = args
        if isinstance(module, nn.LayerNorm):
            rows = x.reshape(-1, math.prod(module.normalized_shape))
        elif isinstance(module, nn.GroupNorm):
            rows = x.reshape(x.shape[0] * module.num_groups, -1)
        else:
            rows = x.transpose(0, 1).reshape(x.shape[1], -1)
        spread = rows.var(dim=1, unbiased=False)
        self.met |= bool((spread <= 1e-20 * rows.square().mean(dim=1)).any())

    def during(self, call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], bool]:
        """The result of a call, and whether it met one.

        Args:
            call: runs the module.

        Returns:
            Both.
        """
        self.met = False
        return call(), self.met


def verify_symmetries(
    found: Symmetries,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    seed: int = 0,
    trials: int = 2,
    tolerance: float = TOLERANCE,
    prefix: str = "",
) -> Symmetries:
    """Check every symmetry and drop those that fail.

    Points at which a normalisation meets equal numbers only (see `Degenerate`) are drawn again.

    Args:
        found: the claims.
        model: the module; a copy is used.
        args: example arguments.
        kwargs: example keyword arguments.
        seed: of parameters and group elements.
        trials: random (parameters, element) pairs for each symmetry.
        tolerance: largest allowed ‖f(gθ) − f(θ)‖/‖f(θ)‖.
        prefix: put before the names that the claims use to get the module's own.

    Returns:
        The symmetries that passed, with `verification` and `rejected` filled in.
    """
    generator = torch.Generator().manual_seed(seed)
    lab = laboratory_copy(model).to("cpu")
    noise = Degenerate(lab)
    args, kwargs = to_double(args), to_double(dict(kwargs))
    errors = dict.fromkeys((s.name for s in found), 0.0)
    with torch.no_grad():

        def outputs(point: Mapping[str, Tensor]) -> tuple[list[Tensor], bool]:
            return noise.during(lambda: lab_outputs(lab, {prefix + n: p for n, p in point.items()}, args, kwargs))

        for _ in range(trials):
            for _ in range(REDRAWS):
                params = {n.removeprefix(prefix): p for n, p in random_parameters(model, generator).items()}
                reference, bad = outputs(params)
                if not bad:
                    break
            for s in found:
                if s.level != "function":
                    continue
                for _ in range(REDRAWS):
                    moved, bad = outputs(s.apply(params, s.sample(generator)))
                    error = relative_change(moved, reference)
                    if not bad or error <= tolerance:
                        break
                errors[s.name] = max(errors[s.name], error if math.isfinite(error) else math.inf)
    checks = [
        Verification(s.name, errors[s.name], tolerance, trials, errors[s.name] <= tolerance)
        for s in found
        if s.level == "function"
    ]
    failed = {c.name for c in checks if not c.passed}
    return replace(
        found,
        symmetries=tuple(s for s in found if s.name not in failed),
        verification=tuple(c for c in checks if c.passed),
        rejected=tuple(c for c in checks if not c.passed),
    )
