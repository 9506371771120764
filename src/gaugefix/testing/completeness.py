"""Conformance checks that third parties can run too: completeness and soundness of a search, without its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gaugefix.symmetry.generic import generator_dims, generator_span
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.verify import judgeable_parameters
from gaugefix.testing.flat import flat_directions, moving_parameters


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
    params = judgeable_parameters(model, args, kwargs or {}, torch.Generator().manual_seed(seed))
    moving = moving_parameters(model, params, trainable_only)
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
    point = judgeable_parameters(model, args, kwargs or {}, torch.Generator().manual_seed(seed))
    dims = generator_dims(found, point)
    for s, d in zip((s for s in found if s.level == "function"), dims, strict=True):
        if s.dim != d:
            raise AssertionError(f"{s.name} claims {s.dim} new directions, its generators add {d}")
