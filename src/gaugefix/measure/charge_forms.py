"""Quadratic forms θᵀAθ of the symmetric generators A of a symmetry: its Noether charges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.symmetry import Slice, Symmetry, Units
from gaugefix.symmetry.groups import Diagonal, Rotation

_Sides = Sequence[tuple[Slice, float]]


@dataclass(frozen=True, eq=False)
class ChargeForm:
    """The charges of one symmetry as a bilinear form.

    Attributes:
        name: of the symmetry or the class.
        group: the group, for people.
        inner: ``inner(a, b)`` of two dictionaries of tensors: ``(n,)`` for rescalings of n units, ``(fibers, n, n)``
            for a general linear group; ``inner(θ, θ)`` is the charge.
        size: the largest Σ|A|θ² of one unit or fiber, what rounding of a charge is relative to.
        parameters: names that it reads.
    """

    name: str
    group: str
    inner: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], np.ndarray]
    size: Callable[[Mapping[str, Tensor]], float]
    parameters: tuple[str, ...]


def unit_form(units: Units) -> ChargeForm:
    """⟨a_u, b_u⟩ − ⟨a_w, b_w⟩ of every unit of a class: its two sides have opposite charges.

    Args:
        units: a class with incoming and outgoing slices.

    Returns:
        The form.
    """
    names = tuple(dict.fromkeys(s.param for s in units.slices if s.role != "gain"))
    sides = [(s, 1.0 if s.role == "read" else -1.0) for s in units.slices if s.role != "gain"]
    return ChargeForm(units.name, "R+", lambda a, b: _scale(sides, a, b).reshape(-1), _size(sides), names)


def symmetry_form(symmetry: Symmetry) -> ChargeForm | None:
    """The charges of a rescaling or of a general linear group.

    Args:
        symmetry: any symmetry.

    Returns:
        The form; None if the symmetry is discrete, orthogonal (its generators are antisymmetric and conserve
        nothing that noise could move) or a shift.
    """
    if isinstance(symmetry, Diagonal) and symmetry.kind == "scale":
        sides = list(symmetry.charges)

        def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> np.ndarray:
            found = _scale(sides, a, b)
            return np.asarray(symmetry._centre(torch.from_numpy(found)).numpy()).reshape(-1)

        return ChargeForm(symmetry.name, symmetry.group, inner, _size(sides), symmetry.parameters)
    if isinstance(symmetry, Rotation) and not symmetry.orthogonal and symmetry.units is not None:
        pairs = list(zip(symmetry.units.slices, map(float, symmetry.polarity), strict=True))
        return ChargeForm(
            symmetry.name, symmetry.group, lambda a, b: _matrix(pairs, a, b), _size(pairs), symmetry.parameters
        )
    return None


def _size(sides: _Sides) -> Callable[[Mapping[str, Tensor]], float]:
    absolute = [(s, abs(q)) for s, q in sides]
    return lambda a: float(_scale(absolute, a, a).max(initial=0.0))


def _scale(sides: _Sides, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> np.ndarray:
    """Σ over slices of charge times ⟨a, b⟩, ``(fibers, n)``."""
    total: Tensor = sum(  # type: ignore[assignment]
        q * (side_rows(s, a) * side_rows(s, b)).sum(2) for s, q in sides
    )
    return np.asarray(total.cpu().numpy())


def _matrix(sides: _Sides, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> np.ndarray:
    """Σ over slices of ±abᵀ, symmetrised, ``(fibers, n, n)``."""
    total: Tensor = sum(q * side_rows(s, a) @ side_rows(s, b).mT for s, q in sides)  # type: ignore[assignment]
    return np.asarray(((total + total.mT) / 2).cpu().numpy())


def side_rows(s: Slice, tensors: Mapping[str, Tensor]) -> Tensor:
    """Entries of every unit of a slice.

    Args:
        s: the slice.
        tensors: by parameter name.

    Returns:
        ``(fibers, n, entries)`` in float64.
    """
    return s.take(tensors[s.param].detach()).double().flatten(2)
