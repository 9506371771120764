"""Widening: more units in a class, the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.errors import ControlError
from gaugefix.measure.widening import Wide, scaled_scores, widened_copy
from gaugefix.symmetry import Units

_TOLERANCE = 1e-9  # of the check in float64


def widen(
    model: nn.Module,
    units: Units,
    n: int = 1,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    size: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A copy of a model with ``n`` more units in every fiber of a class, computing the same function.

    The inverse of folding dead units away. New units are ghosts: their outgoing weights are zero, and with ``size=0``
    the incoming ones too. Such a unit stays where it is for ever under gradient descent (zero is a mirror plane); give
    a ``size`` to let it grow, which it does at the rate κ − λ of `gaugefix.forecast.ClassForecast` if that is positive.

    Works for hidden units, channels with their batch normalisation, ranks of adapters, gated units, and head dimensions
    of modules that read them off the shape of their weights. A model that divides scores by √(head dimension) gets its
    old queries and keys enlarged by ((e + n)/e)^{1/4} to make up for it.

    Args:
        model: any module; it is not changed.
        units: a class of ``find_symmetries(model, …).units``.
        n: number of new units in each fiber (each head, for head dimensions).
        args: positional arguments to check the function on, in float64. Without them only modules that are known to
            run at any width are widened, and nothing is evaluated.
        kwargs: keyword arguments for the check.
        size: norm of the incoming weights of every new unit.
        seed: of their directions.

    Returns:
        The wider copy, with the parameters in the same order, the same mode and the same flags.

    Raises:
        ControlError: if the class cannot be widened (residual streams, tied parameters, grouped convolutions, sizes
            built into a module), or the wider copy does not compute the same.

    Example:
        >>> from gaugefix import find_symmetries
        >>> model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
        >>> wide = widen(model, find_symmetries(model, (x,)).units[0], 2, (x,))
        >>> wide[0], torch.allclose(wide(x), model(x))
        (Linear(in_features=3, out_features=6, bias=True), True)
    """
    if empty := [name for name, p in model.named_parameters() if p.is_meta]:
        raise ControlError(f"widen: {empty[0]!r} is on the meta device and has no values.")
    try:
        wide = widened_copy(model, units, n)
    except ValueError as error:
        raise ControlError(f"widen: {error}") from error
    if args is None:
        if not (wide.safe and units.outgoing):
            raise ControlError(
                f"widen: {units.name} belongs to modules that may have its size built in. Give example arguments, "
                "widen(model, units, n, args), so that the function can be checked."
            )
    else:
        wide = _checked(model, wide, units, args, dict(kwargs or {}))
    if size:
        _seed_units(wide, size, seed)
    for a, b in zip(model.modules(), wide.model.modules(), strict=True):
        b.training = a.training
    return wide.model


def _checked(model: nn.Module, wide: Wide, units: Units, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wide:
    """The wider copy, if need be with its scores made up for, that computes the same."""
    before = _evaluate(model, args, kwargs)
    for correct in (False, True):
        candidate = scaled_scores(wide, units) if correct else wide
        try:
            after = _evaluate(candidate.model, args, kwargs)
        except Exception as error:  # a module with a built-in size raises whatever its operations raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ControlError(
                f"widen: the model does not run with {units.size + candidate.growth.n} units in {units.name} instead "
                f"of {units.size}: {lines[0]} Its size is built in outside of the weights."
            ) from error
        change = float((after - before).norm() / before.norm().clamp(min=1e-30))
        if change <= _TOLERANCE:
            return candidate
        if units.outgoing:
            break
    raise ControlError(
        f"widen: with more units in {units.name} the model computes something else (relative change {change:.1e}, "
        f"allowed {_TOLERANCE:g})."
    )


def _evaluate(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Every floating output in evaluation mode and float64, as one vector."""
    import copy

    from gaugefix.measure.classes import map_tensors, to_dtype

    clone = copy.deepcopy(model).to(torch.float64).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        out = clone(*to_dtype(args, torch.float64), **to_dtype(kwargs, torch.float64))
    found: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        if t.is_floating_point():
            found.append(t.double().reshape(-1))
        return t

    map_tensors(keep, dict(out) if hasattr(out, "keys") else out)
    return torch.cat(found)


def _seed_units(wide: Wide, size: float, seed: int) -> None:
    """Random incoming weights of norm ``size`` for the new units; the outgoing ones stay zero."""
    rng = np.random.default_rng(seed)
    added, params = wide.growth.added, dict(wide.model.named_parameters())
    incoming = [s for s in added.slices if s.role == "write"]
    if not added.outgoing:  # queries and keys: one factor only, so that the product stays zero
        incoming = [s for s in incoming if s.param == incoming[0].param and np.array_equal(s.index, incoming[0].index)]
    with torch.no_grad():
        blocks = [s.take(params[s.param]) for s in incoming]
        draws = [rng.standard_normal(b.shape) for b in blocks]
        squares = sum(np.square(d).reshape(*d.shape[:2], -1).sum(-1) for d in draws)
        for s, d in zip(incoming, draws, strict=True):
            p = params[s.param]
            value = size * d / np.sqrt(squares).reshape(*d.shape[:2], *[1] * (d.ndim - 2))
            p.copy_(s.put(p, torch.as_tensor(value, dtype=p.dtype, device=p.device)))
