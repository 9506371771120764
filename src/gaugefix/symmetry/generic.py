"""Generic points of parameter space, and the dimension of what symmetries generate there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation, Symmetry
from gaugefix.symmetry.units import Params

#: limits up to which dimensions are counted numerically
MAX_GENERATORS = 1000
MAX_ENTRIES = 1_000_000


def generic_parameters(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters at which activations neither vanish nor explode.

    Matrices have standard deviation 1.7/√fan_in, gains are in [0.5, 1.5], biases have standard deviation 0.3.

    Args:
        shapes: by parameter name.
        generator: source of randomness.

    Returns:
        float64 tensors by name.
    """
    out = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) >= 2:
            out[name] = noise * 1.7 / math.sqrt(max(math.prod(shape[1:]), 1))
        elif name.rpartition(".")[2] == "weight" or not shape:  # a gain
            out[name] = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            out[name] = 0.3 * noise
    return out


def generator_dims(symmetries: Iterable[Symmetry], params: Params, *, threshold: float = 1e-7) -> list[int]:
    """How many directions each symmetry adds to those before it, measured as the rank of its generators at θ.

    Args:
        symmetries: those of the function; loss-level ones are skipped.
        params: the point, float64.
        threshold: relative size below which a direction counts as spanned already.

    Returns:
        One number for each function-level symmetry.

    Cost: one batched jvp per symmetry and a dense factorisation; for narrow models.
    """
    return count_generators(symmetries, params, threshold=threshold)[0]


def generator_span(symmetries: Iterable[Symmetry], params: Params, *, threshold: float = 1e-7) -> Tensor:
    """The span of the generators of all symmetries of the function at θ.

    Args:
        symmetries: those of the function; loss-level ones are skipped.
        params: the point, float64.
        threshold: relative size below which a direction counts as spanned already.

    Returns:
        Orthonormal rows, ``(dimension, P)``, parameters flattened in order.
    """
    return count_generators(symmetries, params, threshold=threshold)[1]


def count_generators(
    symmetries: Iterable[Symmetry], params: Params, *, threshold: float = 1e-7
) -> tuple[list[int], Tensor]:
    """`generator_dims` and `generator_span` at once."""
    names = list(params)
    basis = torch.zeros(0, sum(p.numel() for p in params.values()), dtype=torch.float64)
    dims = []
    for s in symmetries:
        if s.level != "function":
            continue
        if not (count := s.n_generators):
            dims.append(0)
            continue
        moved = s.generators(params)
        zero = {n: p.new_zeros(count, p.numel()) for n, p in params.items() if n not in moved}
        fields = torch.cat([moved[n].reshape(count, -1) if n in moved else zero[n] for n in names], dim=1)
        sizes = fields.norm(dim=1, keepdim=True)
        fields = fields / sizes.clamp_min(1e-6 * sizes.max().clamp_min(1e-300))  # a projected one may be mere rounding
        for _ in range(2):  # twice is enough
            fields = fields - fields @ basis.T @ basis
        _, values, directions = torch.linalg.svd(fields, full_matrices=False)
        new = directions[values > threshold]
        basis = torch.cat([basis, new])
        dims.append(len(new))
    return dims, basis


def settle_dims(symmetries: list[Symmetry], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Symmetry], str | None]:
    """Make dimensions exact: every direction counted once.

    The dimensions that come with the symmetries hold in the generic wide case. In narrow models groups can overlap (a
    general linear group on n units acts freely only if the weights that write or those that read them have rank n), so
    there they are counted from the generators at a generic point.

    Args:
        symmetries: with the dimensions of the wide case.
        shapes: of the parameters.

    Returns:
        The symmetries with their dimensions, and a note if they could not be settled.
    """
    alone = [s for s in symmetries if s.independent]
    symmetries = [s for s in symmetries if not s.independent]
    settled, note = _settle(symmetries, shapes)
    return [*settled, *alone], note


def additions(
    known: Iterable[Symmetry], others: Iterable[Symmetry], shapes: Mapping[str, tuple[int, ...]]
) -> list[Symmetry]:
    """Those of another search of the same function that add directions, with the number that they add.

    Args:
        known: of the first search, settled.
        others: of the second.
        shapes: of the parameters.

    Returns:
        Continuous symmetries; none if the model is too large to count.
    """
    known = list(known)
    counted = [s for s in known if s.level == "function" and not s.independent]
    more = [s for s in others if s.level == "function" and s.n_generators and not s.independent]
    if not more or not _countable([*counted, *more], shapes):
        return []
    dims = generator_dims([*counted, *more], generic_parameters(shapes, torch.Generator().manual_seed(0)))
    taken = {s.name for s in known}
    added = [(s, d) for s, d in zip(more, dims[len(counted) :], strict=True) if d]
    return [replace(s, dim=d, name=f"{s.name} (idle norm)" if s.name in taken else s.name) for s, d in added]


def _settle(symmetries: list[Symmetry], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Symmetry], str | None]:
    if all(isinstance(s, Permutation | Diagonal) for s in symmetries):
        return symmetries, None  # charges are counted exactly already
    if not _countable(symmetries, shapes):
        symmetries = [s for s in symmetries if not s.overlaps]
    if _countable(symmetries, shapes):
        dims = iter(generator_dims(symmetries, generic_parameters(shapes, torch.Generator().manual_seed(0))))
        settled = [replace(s, dim=next(dims)) if s.level == "function" else s for s in symmetries]
        return [s for s in settled if s.dim or s.units is not None or not s.n_generators], None
    if all(_acts_freely(s, shapes) for s in symmetries if isinstance(s, Rotation)):
        return symmetries, None
    return symmetries, "a linear layer is wider than both its neighbours: the number of directions is an upper bound"


def _countable(symmetries: list[Symmetry], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    n_generators = sum(s.n_generators for s in symmetries if s.level == "function")
    entries = n_generators * sum(math.prod(shape) for shape in shapes.values())
    return n_generators <= MAX_GENERATORS and entries <= MAX_ENTRIES


def _acts_freely(s: Rotation, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the weights on one side have full rank with room to spare (biases and means of a norm do not count)."""
    assert s.units is not None
    columns = {1: 0, -1: 0}
    for piece, sign in zip(s.units.slices, s.polarity, strict=True):
        shape = shapes[piece.param]
        fibers_inside = piece.index.shape[0] if any(len(p) > 1 for p in piece.others.values()) else 1
        if len(shape) > 1:
            columns[sign] += piece.index.shape[2] * math.prod(shape) // shape[piece.dim] // fibers_inside
    return (min if s.orthogonal else max)(columns.values()) > s.units.size
