"""Directions in which a function does not change, counted without knowing any symmetry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.errors import MeasurementError
from gaugefix.symmetry.graph import math_attention
from gaugefix.symmetry.verify import (
    REDRAWS,
    Degenerate,
    judgeable_parameters,
    lab_outputs,
    laboratory_copy,
    to_double,
)

#: ratio of the smallest kept to the largest dropped singular value above which a rank is beyond doubt
MIN_GAP = 1e3
#: entry of a Jacobian above which a normalisation with negligible ε met a vanishing input
MAX_DERIVATIVE = 1e9
#: standard deviations of inputs on which a direction must stay flat to be one of the function
SPREADS = (1.0, 3.0, 10.0)


@dataclass(frozen=True)
class FlatDirections:
    """Directions along which the function does not change, counted without knowing any symmetry.

    Attributes:
        flat: P − rank J.
        n_parameters: P.
        rank: numerical rank of the Jacobian of all outputs with respect to the parameters.
        gap: smallest kept singular value over the largest dropped one; below about 1e3 the count is not reliable.
        rows: number of Jacobian rows used.
        reliable: whether there were enough rows, a clean gap, and inputs at which the function is differentiable.
        basis: orthonormal flat directions ``(flat, P)`` at the point of measurement, if asked for.
    """

    flat: int
    n_parameters: int
    rank: int
    gap: float
    rows: int
    reliable: bool
    basis: Tensor | None = field(default=None, repr=False, compare=False)


def flat_directions(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    threshold: float = 1e-9,
    max_parameters: int = 6000,
    max_draws: int = 400,
    basis: bool = False,
    at_least: int | None = None,
    trainable_only: bool = False,
) -> FlatDirections:
    """P − rank J, with J = ∂f(x_i; θ)/∂θ stacked over random inputs x_i, in float64 at a generic θ.

    Inputs are drawn anew until J has 1.2 P rows (600 at least) and twice as many do not raise its rank: floating
    inputs from N(0, 1), integer inputs uniformly from the range seen in the example, and what the model draws itself.
    Inputs at which a normalisation meets equal numbers only, or zeros, have no derivative and are drawn again; if there
    are no others at this θ (a unit that is dead on all data before a BatchNorm), the count is not reliable.

    Args:
        model: any module; a copy is used.
        args: example positional arguments.
        kwargs: example keyword arguments.
        params: the point θ; by default a random one at which no normalisation of the example is degenerate.
        seed: of parameters and inputs.
        threshold: singular values below ``threshold`` times the largest count as zero.
        max_parameters: refuse larger models; the cost grows as P³.
        max_draws: batches of inputs drawn at most in each round.
        basis: return the directions too.
        at_least: directions known to be flat at θ (the span of checked generators). The count can only fall with more
            inputs, so drawing stops when it is down to this number, which is much cheaper; ``basis`` then shows
            whether the known directions are those.
        trainable_only: directions of the parameters with ``requires_grad`` only; P is their number.

    Returns:
        The count with its quality.

    Raises:
        MeasurementError: if the model is too large for a dense Jacobian.

    Cost: a few P vector-Jacobian products and SVDs of P x P matrices.

    Source: 2309.16932.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3))
        >>> flat_directions(mlp, (torch.randn(8, 4),)).flat
        11
    """  # noqa: DOC502
    n = countable(model, max_parameters=max_parameters, trainable_only=trainable_only)
    generator = torch.Generator().manual_seed(seed)
    point = dict(params) if params is not None else judgeable_parameters(model, args, kwargs or {}, generator)
    moving = moving_parameters(model, point, trainable_only)
    lab = laboratory_copy(model)
    noise = Degenerate(lab)
    args, kwargs = to_double(args), to_double(dict(kwargs or {}))
    root = torch.zeros(0, n, dtype=torch.float64)  # RᵀR = JᵀJ: all that is needed of the rows so far
    rows, target, values, previous = 0, max(1.2 * n, 600.0), torch.zeros(1), -1
    full = target
    if at_least is not None:
        target = min(full, n - at_least + 32.0)
    while True:
        blocks = [root]
        while rows < target and len(blocks) <= max_draws:
            block = jacobian_block(lab, point, moving, args, kwargs, noise, generator)
            if block is None:
                return FlatDirections(n, n, 0, 1.0, rows, False, torch.eye(n, dtype=torch.float64) if basis else None)
            blocks.append(block)
            rows += len(block)
        stacked = torch.cat(blocks)
        root = torch.linalg.qr(stacked, mode="r")[1] if len(stacked) > n else stacked
        values = torch.linalg.svdvals(root)
        rank = int((values > threshold * values[0]).sum()) if len(values) and values[0] > 0 else 0
        kept = float(values[rank - 1]) if rank else 0.0
        dropped = float(values[rank]) if rank < len(values) else 0.0
        gap = kept / dropped if dropped > 0 else math.inf
        if rank == previous or rows < target or (n - rank == at_least and gap > MIN_GAP):
            break
        previous, target = rank, max(2.0 * rows, full)  # more inputs may still show more directions
    directions = torch.linalg.svd(root, full_matrices=True)[2][rank:] if basis else None
    return FlatDirections(n - rank, n, rank, gap, rows, rows >= target and gap > MIN_GAP, directions)


def redraw(item: Any, generator: torch.Generator, spread: float = 1.0) -> Any:
    """Random data like an example: N(0, spread²), or integers uniformly from the range seen in it."""
    if not isinstance(item, Tensor) or item.dtype == torch.bool:
        return item
    if item.is_floating_point():
        return spread * torch.randn(item.shape, generator=generator, dtype=item.dtype)
    low, high = int(item.min()), int(item.max())
    return torch.randint(low, high + 1, item.shape, generator=generator, dtype=item.dtype)


def countable(model: nn.Module, *, max_parameters: int = 6000, trainable_only: bool = False) -> int:
    """The number of parameters that count; refuses a model that is too large for a dense Jacobian."""
    n = sum(p.numel() for p in moving_parameters(model, dict(model.named_parameters()), trainable_only).values())
    if n > max_parameters:
        raise MeasurementError(
            f"flat_directions needs a dense Jacobian: the model has {n} parameters, the limit is {max_parameters}. "
            "Test a narrow copy of the architecture, or raise max_parameters (the cost grows as its cube)."
        )
    return n


def moving_parameters(model: nn.Module, params: Mapping[str, Tensor], trainable_only: bool) -> dict[str, Tensor]:
    """The parameters that count: all, or those that are not frozen."""
    frozen = {n for n, p in model.named_parameters() if trainable_only and not p.requires_grad}
    return {n: p for n, p in params.items() if n not in frozen}


def jacobian_block(
    lab: nn.Module, point: Mapping[str, Tensor], moving: Mapping[str, Tensor], args: Any, kwargs: Any,
    degenerate: Degenerate, generator: torch.Generator, spread: float = 1.0,
) -> Tensor | None:  # fmt: skip
    """Jacobian rows for random inputs at which there is a derivative; None if no such inputs turn up."""
    for _ in range(REDRAWS):
        some, named = pytree.tree_map(lambda t: redraw(t, generator, spread), (args, kwargs))
        seed = int(torch.randint(2**31, (), generator=generator))
        rows = _jacobian(lab, point, moving, some, named, seed, degenerate)
        if rows is not None and bool((rows.abs() < MAX_DERIVATIVE).all()):
            return rows
    return None


def _jacobian(
    model: nn.Module, params: Mapping[str, Tensor], moving: Mapping[str, Tensor], args: Any, kwargs: Any, seed: int,
    degenerate: Degenerate,
) -> Tensor | None:  # fmt: skip
    """All rows ∂(output entries)/∂(moving parameters) for one input, ``(entries, P)``; None if it is degenerate."""
    leaves = {k: p.clone().requires_grad_() for k, p in moving.items()}
    with math_attention():
        results, bad = degenerate.during(lambda: lab_outputs(model, {**params, **leaves}, args, kwargs, seed))
    if bad:
        return None
    outputs = torch.cat([o.reshape(-1) for o in results])
    if not outputs.requires_grad:
        return outputs.new_zeros(len(outputs), sum(p.numel() for p in moving.values()))
    with math_attention():
        identity = torch.eye(len(outputs), dtype=outputs.dtype)
        grads = torch.autograd.grad(outputs, list(leaves.values()), identity, is_grads_batched=True, allow_unused=True)
    rows = [
        p.new_zeros(len(outputs), p.numel()) if g is None else g.reshape(len(outputs), -1)
        for p, g in zip(moving.values(), grads, strict=True)
    ]
    return torch.cat(rows, dim=1).detach()
