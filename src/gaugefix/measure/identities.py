"""What a continuous symmetry says about gradient and Hessian at one point: exact identities (arXiv 2512.21447).

A generator ξ(θ) of a symmetry has ∇L·ξ = 0, and differentiating that once more Hξ = −(Dξ)ᵀ∇L. So ξ is flat at
stationary points, and away from them the right-hand side bounds the largest curvature from below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.equivariance import Generator, predicted_products
from gaugefix.measure.records import Record
from gaugefix.symmetry import Symmetries, Symmetry
from gaugefix.symmetry.dead import DeadDirections
from gaugefix.symmetry.stream_groups import NullDirection, Unread
from gaugefix.task import Task

_TOLERANCE = 1e-8
_DENSE = 20_000_000
#: symmetries whose generators are a basis of a null space of other weights
_BASES = (DeadDirections, NullDirection, Unread)


@dataclass(frozen=True)
class IdentityCheck(Record):
    """Residuals of one identity over the generators of one symmetry.

    Attributes:
        name: of the symmetry.
        group: the group.
        order: 1 for ∇L·ξ = 0, 2 for Hξ = −(Dξ)ᵀ∇L.
        residual: largest relative residual over the generators that were tried.
        generators: how many were tried.
        size: largest side of the identity that was compared, in units of what it is relative to; 0 if both vanish.
        passed: whether the residual is below 1e-8.
        n_samples: number of samples in the loss.
    """

    name: str
    group: str
    order: int
    residual: float
    generators: int
    size: float
    passed: bool
    n_samples: int


@dataclass(frozen=True)
class SharpnessBound(Record):
    """A lower bound on the largest |eigenvalue| of the Hessian, without the Hessian.

    Attributes:
        value: max over the generators of ‖(Dξ)ᵀ∇L‖/‖ξ‖.
        symmetry: the one that gives it, "" if there is none.
        generators: how many were tried.
    """

    value: float
    symmetry: str
    generators: int


def check_first_order(
    task: Task | HessianOperator,
    symmetries: Symmetries | Generator | Sequence[Generator],
    *,
    max_generators: int = 8,
    max_samples: int = 2048,
    seed: int = 0,
) -> tuple[IdentityCheck, ...]:
    """∇L·ξ = 0 for the generators of every continuous symmetry, relative to ‖∇L‖‖ξ‖.

    For generators of your own that change the output by η(f), ∇L·ξ = E⟨ℓ', η(f)⟩.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        symmetries: what `find_symmetries` gave; or generators of your own, which need a task.
        max_generators: per symmetry, spread evenly.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        One entry per continuous symmetry of trainable parameters, or per generator. Cost: one gradient; three for a
        generator.

    Raises:
        MeasurementError: if generators are given for an operator instead of a task.
    """  # noqa: DOC502
    if not isinstance(symmetries, Symmetries):
        return tuple(_check(task, g, 1, max_samples, seed) for g in _listed(symmetries))
    h = _operator(task, max_samples, seed)
    gradient, found = h.gradient(), []
    for s in _continuous(symmetries, h):
        residual, size, count = 0.0, 0.0, 0
        for k in _spread(s.n_generators, max_generators):
            xi = s.generator(h.params, k)
            terms = {n: (gradient[n] * x).sum() for n, x in xi.items()}
            total = float(torch.stack(list(terms.values())).sum())
            scale = _norm(xi) * _norm({n: gradient[n] for n in xi})
            residual = max(residual, abs(total) / scale if scale > 0 else 0.0)
            size, count = max(size, max(abs(float(t)) for t in terms.values()) / (scale or 1.0)), count + 1
        found.append(IdentityCheck(s.name, s.group, 1, residual, count, size, residual < _TOLERANCE, h.n_samples))
    return tuple(found)


def check_second_order(
    task: Task | HessianOperator,
    symmetries: Symmetries | Generator | Sequence[Generator],
    *,
    max_generators: int = 4,
    max_samples: int = 2048,
    seed: int = 0,
) -> tuple[IdentityCheck, ...]:
    """Hξ = −(Dξ)ᵀ∇L for the generators of every continuous symmetry, relative to ‖Hξ‖ + ‖(Dξ)ᵀ∇L‖ + ‖∇L‖.

    Directions that nothing reads are left out: their generators are a basis of a null space, which has no derivative.
    For generators of your own that change the output by η(f), Hξ = ∇E⟨ℓ', η(f)⟩ − (Dξ)ᵀ∇L.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        symmetries: what `find_symmetries` gave; or generators of your own, which need a task.
        max_generators: per symmetry, spread evenly.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        One entry per continuous symmetry of trainable parameters, or per generator. Cost: one HVP per generator.

    Raises:
        MeasurementError: if generators are given for an operator instead of a task.
    """  # noqa: DOC502
    if not isinstance(symmetries, Symmetries):
        return tuple(_check(task, g, 2, max_samples, seed) for g in _listed(symmetries))
    h = _operator(task, max_samples, seed)
    gradient, found = h.gradient(), []
    norm = _norm(gradient)
    for s in _continuous(symmetries, h, smooth=True):
        residual, size, count = 0.0, 0.0, 0
        for k in _spread(s.n_generators, max_generators):
            image, pulled = h @ s.generator(h.params, k), _pulled(s, k, h.params, gradient)
            both = {n: t + pulled[n] if n in pulled else t for n, t in image.items()}
            scale = _norm(image) + _norm(pulled) + norm
            residual, count = max(residual, _norm(both) / scale if scale > 0 else 0.0), count + 1
            size = max(size, _norm(image) / scale if scale > 0 else 0.0)
        found.append(IdentityCheck(s.name, s.group, 2, residual, count, size, residual < _TOLERANCE, h.n_samples))
    return tuple(found)


def sharpness_lower_bound(
    task: Task | HessianOperator,
    symmetries: Symmetries,
    *,
    max_generators: int = 64,
    max_samples: int = 2048,
    seed: int = 0,
) -> SharpnessBound:
    """‖H‖₂ ≥ ‖(Dξ)ᵀ∇L‖/‖ξ‖ for every generator of a symmetry: a bound on the sharpness that costs one gradient.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        symmetries: what `find_symmetries` gave.
        max_generators: per symmetry, spread evenly.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The best bound; 0 without a continuous symmetry or at a stationary point.
    """
    h = _operator(task, max_samples, seed)
    gradient, count = h.gradient(), 0
    best = (0.0, "")
    for s in _continuous(symmetries, h, smooth=True):
        for k in _spread(s.n_generators, max_generators):
            count += 1
            length = _norm(s.generator(h.params, k))
            if length > 0:
                best = max(best, (_norm(_pulled(s, k, h.params, gradient)) / length, s.name))
    return SharpnessBound(best[0], best[1], count)


def flat_directions(params: dict[str, Tensor], symmetries: Symmetries) -> tuple[Float[Tensor, "p d"], tuple[str, ...]]:
    """Orthonormal basis of the directions along which no symmetry changes the function, at one point.

    Args:
        params: all parameters by name.
        symmetries: what `find_symmetries` gave.

    Returns:
        ``(P, d)`` with the parameters flattened in the order of the names, and the names; d is at most
        `Symmetries.flat_dim`. Cost: one jvp per generator and an SVD.

    Raises:
        MeasurementError: if the generators have more than 20 million entries together.
    """
    params = {k: p.detach().double() for k, p in params.items()}
    size = sum(p.numel() for p in params.values())
    groups = [s for s in symmetries if s.n_generators and s.level == "function"]
    count = sum(s.n_generators for s in groups)
    if size * count > _DENSE:
        raise MeasurementError(
            f"flat_directions: {count} generators of {size} parameters are too many for a dense basis "
            f"({_DENSE} numbers); pass some of the symmetries."
        )
    columns = [
        torch.cat([xi.get(n, torch.zeros_like(p)).reshape(-1) for n, p in params.items()])
        for s in groups
        for xi in (s.generator(params, k) for k in range(s.n_generators))
    ]
    if not columns:
        return torch.zeros(size, 0, dtype=torch.float64), tuple(params)
    matrix = torch.stack(columns, dim=1)
    norms = matrix.norm(dim=0)
    matrix = matrix[:, norms > 0] / norms[norms > 0]
    u, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > 1e-10 * values[:1].sum()).sum())
    return u[:, :rank], tuple(params)


def _listed(generators: Generator | Sequence[Generator]) -> Sequence[Generator]:
    return [generators] if isinstance(generators, Generator) else generators


def _check(
    task: Task | HessianOperator, generator: Generator, order: int, max_samples: int, seed: int
) -> IdentityCheck:
    """Both sides of an identity for a generator with a known effect on the output."""
    if isinstance(task, HessianOperator):
        raise MeasurementError("Generators need a task: what they do to the output is followed through its loss.")
    h = _operator(task, max_samples, seed)
    slope, product = predicted_products(task, generator, max_samples=max_samples, seed=seed)
    gradient, xi = h.gradient(), generator.at(h.params)
    if order == 1:
        gap = abs(float(torch.stack([(gradient[k] * x).sum() for k, x in xi.items() if k in gradient]).sum()) - slope)
        size, scale = abs(slope), abs(slope) + _norm(xi) * _norm(gradient)
    else:
        image = h @ xi
        gap = _norm({k: image[k] - product[k] for k in product})
        size, scale = _norm(image), _norm(image) + _norm(product) + _norm(gradient)
    residual = gap / scale if scale > 0 else 0.0
    return IdentityCheck(
        generator.title, "generator", order, residual, 1, size / (scale or 1.0), residual < _TOLERANCE, h.n_samples
    )


def _operator(task: Task | HessianOperator, max_samples: int, seed: int) -> HessianOperator:
    return task if isinstance(task, HessianOperator) else HessianOperator(task, max_samples=max_samples, seed=seed)


def _continuous(symmetries: Symmetries, h: HessianOperator, *, smooth: bool = False) -> Iterator[Symmetry]:
    """Symmetries with generators, all of whose parameters are trained."""
    trained = h.gradient()
    found = (s for s in symmetries if s.n_generators and all(p in trained for p in s.parameters))
    return (s for s in found if not (smooth and isinstance(s, _BASES)))


def _spread(n: int, limit: int) -> list[int]:
    return sorted({int(k) for k in np.linspace(0, n - 1, min(n, limit)).round()})


def _pulled(s: Symmetry, k: int, params: dict[str, Tensor], gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """(Dξ)ᵀ∇L, the gradient of ⟨ξ(θ), g⟩ at fixed g."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}  # ξ may depend on what does not move
    xi = s.generator(leaves, k)
    inner = torch.stack([(x * gradient[n]).sum() for n, x in xi.items()]).sum()
    if not inner.requires_grad:  # a shift does not depend on the point
        return {n: torch.zeros_like(p) for n, p in leaves.items()}
    grads = torch.autograd.grad(inner, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def _norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().square().sum()) for t in tensors.values()))
