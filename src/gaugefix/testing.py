"""Conformance checks that third parties can run too: completeness and soundness of a search, without its code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.errors import MeasurementError
from gaugefix.symmetry.generic import generator_dims, generator_span
from gaugefix.symmetry.graph import math_attention
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.verify import float_outputs, laboratory_copy, random_parameters, to_double

#: ratio of the smallest kept to the largest dropped singular value above which a rank is beyond doubt
MIN_GAP = 1e3


@dataclass(frozen=True)
class FlatDirections:
    """Directions along which the function does not change, counted without knowing any symmetry.

    Attributes:
        flat: P − rank J.
        n_parameters: P.
        rank: numerical rank of the Jacobian of all outputs with respect to the parameters.
        gap: smallest kept singular value over the largest dropped one; below about 1e3 the count is not reliable.
        rows: number of Jacobian rows used.
        reliable: whether there were enough rows and a clean gap.
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
    inputs from N(0, 1), integer inputs uniformly from the range seen in the example.

    Args:
        model: any module; a copy is used.
        args: example positional arguments.
        kwargs: example keyword arguments.
        params: the point θ; by default `random_parameters`.
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
    """
    generator = torch.Generator().manual_seed(seed)
    point = dict(params) if params is not None else random_parameters(model, generator)
    moving = _moving(model, point, trainable_only)
    n = sum(p.numel() for p in moving.values())
    if n > max_parameters:
        raise MeasurementError(
            f"flat_directions needs a dense Jacobian: the model has {n} parameters, the limit is {max_parameters}. "
            "Test a narrow copy of the architecture, or raise max_parameters (the cost grows as its cube)."
        )
    lab = laboratory_copy(model)
    args, kwargs = to_double(args), to_double(dict(kwargs or {}))
    root = torch.zeros(0, n, dtype=torch.float64)  # RᵀR = JᵀJ: all that is needed of the rows so far
    rows, target, values, previous = 0, max(1.2 * n, 600.0), torch.zeros(1), -1
    full = target
    if at_least is not None:
        target = min(full, n - at_least + 32.0)
    while True:
        blocks = [root]
        while rows < target and len(blocks) <= max_draws:
            drawn = pytree.tree_map(lambda t: _redraw(t, generator), (args, kwargs))
            blocks.append(_jacobian(lab, point, moving, *drawn))
            rows += len(blocks[-1])
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


@dataclass(frozen=True)
class Completeness:
    """How many of the flat directions the symmetries explain.

    Attributes:
        measured: `FlatDirections.flat`.
        explained: dimension of the span of all generators at the same point.
        hidden: parameter -> number of independent unexplained directions in which it moves. They depend on data (dead
            units, inputs that never occur) or on something that the search does not know.
        reliable: whether the count of flat directions is.
    """

    measured: int
    explained: int
    hidden: dict[str, int]
    reliable: bool

    @property
    def complete(self) -> bool:
        """Whether nothing is hidden."""
        return self.explained == self.measured and not self.hidden


def completeness(
    found: Symmetries,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    max_parameters: int = 6000,
    trainable_only: bool = False,
) -> Completeness:
    """Compare the symmetries with the flat directions of the function, and say where the rest lies.

    Args:
        found: symmetries of the module.
        model: the module.
        args: example positional arguments.
        kwargs: example keyword arguments.
        seed: of parameters and inputs.
        max_parameters: as for `flat_directions`.
        trainable_only: if the search was.

    Returns:
        The comparison.

    Cost: `flat_directions`, which stops early if nothing is hidden, and one batched jvp for every symmetry.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gaugefix.symmetry import find_symmetries
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3))
        >>> result = completeness(find_symmetries(mlp, (torch.randn(8, 4),)), mlp, (torch.randn(8, 4),))
        >>> result.explained, result.measured, result.hidden
        (6, 6, {})
    """
    params = random_parameters(model, torch.Generator().manual_seed(seed))
    moving = _moving(model, params, trainable_only)
    span = generator_span(found, moving)
    flat = flat_directions(
        model, args, kwargs, params=params, seed=seed + 1, max_parameters=max_parameters, basis=True,
        at_least=len(span), trainable_only=trainable_only,
    )  # fmt: skip
    assert flat.basis is not None
    rest = flat.basis - flat.basis @ span.T @ span
    _, values, right = torch.linalg.svd(rest, full_matrices=False)
    unexplained = right[values > 1e-6]
    hidden, at = {}, 0
    for name, p in moving.items():
        block = unexplained[:, at : at + p.numel()]
        at += p.numel()
        rank = int(torch.linalg.matrix_rank(block, rtol=1e-6)) if float(block.norm()) > 1e-6 else 0
        if rank:
            hidden[name] = rank
    return Completeness(flat.flat, len(span), hidden, flat.reliable)


def _redraw(item: Any, generator: torch.Generator) -> Any:
    if not isinstance(item, Tensor) or item.dtype == torch.bool:
        return item
    if item.is_floating_point():
        return torch.randn(item.shape, generator=generator, dtype=item.dtype)
    low, high = int(item.min()), int(item.max())
    return torch.randint(low, high + 1, item.shape, generator=generator, dtype=item.dtype)


def _moving(model: nn.Module, params: Mapping[str, Tensor], trainable_only: bool) -> dict[str, Tensor]:
    frozen = {n for n, p in model.named_parameters() if trainable_only and not p.requires_grad}
    return {n: p for n, p in params.items() if n not in frozen}


def _jacobian(
    model: nn.Module, params: Mapping[str, Tensor], moving: Mapping[str, Tensor], args: Any, kwargs: Any
) -> Tensor:
    """All rows ∂(output entries)/∂(moving parameters) for one input, ``(entries, P)``."""
    leaves = {k: p.clone().requires_grad_() for k, p in moving.items()}
    with math_attention():
        outputs = torch.cat([o.reshape(-1) for o in float_outputs(model, {**params, **leaves}, args, kwargs)])
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


def check_symmetries(
    found: Symmetries,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> None:
    """Assert that every symmetry keeps the function and that its claimed dimension is that of its generators.

    Args:
        found: what `find_symmetries` (or your own search) returned.
        model: the module.
        args: example arguments.
        kwargs: example keyword arguments.
        seed: of parameters and group elements.

    Raises:
        AssertionError: naming the symmetry that fails.
    """
    from gaugefix.symmetry.verify import verify_symmetries

    checked = verify_symmetries(found, model, args, kwargs or {}, seed=seed)
    for failure in checked.rejected:
        raise AssertionError(f"{failure.name} changes the function by {failure.error:.1e}")
    dims = generator_dims(found, random_parameters(model, torch.Generator().manual_seed(seed)))
    for s, d in zip((s for s in found if s.level == "function"), dims, strict=True):
        if s.dim != d:
            raise AssertionError(f"{s.name} claims {s.dim} new directions, its generators add {d}")
