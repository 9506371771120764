"""The symmetry groups: sampling, action on a dictionary of parameters, infinitesimal generators, mirrors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaugefix.symmetry.mirrors import Mirror
from gaugefix.symmetry.units import Params, Units

Element = Any


@dataclass(frozen=True, eq=False)
class Symmetry(ABC):
    """A group that acts on the parameters and leaves the function (or the loss) unchanged.

    Attributes:
        name: readable and unique within one model.
        group: "S_n", "Z_2^n", "R+^n", "O(n)", "GL(n)", "T(n)", wreath products spelled out ("S_64 wr S_12"),
            always with the actual numbers.
        dim: continuous directions that this symmetry adds to those of the ones listed before it; 0 if discrete.
        axes: the occurrences that move, as ``"param[dim]"``.
        isometric: whether every element is an orthogonal map of the parameters; only then has it mirrors and is
            its fixed set kept by SGD with weight decay.
        level: "function", or "loss" if only the loss is unchanged.
        units: the axis class, if the symmetry belongs to one.
    """

    name: str
    group: str
    dim: int
    axes: tuple[str, ...]
    isometric: bool
    level: str = "function"
    units: Units | None = None

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Element:
        """A random element away from the identity.

        Args:
            generator: source of randomness.

        Returns:
            An element for `apply`.
        """

    @abstractmethod
    def apply(self, params: Params, element: Element) -> dict[str, Tensor]:
        """The action gθ.

        Args:
            params: all parameters by name.
            element: from `sample`.

        Returns:
            A new dictionary; unchanged parameters are the same objects.
        """

    @property
    def n_generators(self) -> int:
        """Dimension of the Lie algebra as represented here (≥ `dim`; overlaps with other symmetries count)."""
        return 0

    def generator(self, params: Params, k: int) -> dict[str, Tensor]:
        """The k-th infinitesimal generator at θ, ξ_k(θ) = d/dt exp(tX_k)θ at t = 0.

        Args:
            params: all parameters by name.
            k: ``0 <= k < n_generators``.

        Returns:
            Tangent tensors for the parameters that move.

        Raises:
            IndexError: if the group is discrete or ``k`` is out of range.
        """  # noqa: DOC202
        raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")

    def mirrors(self) -> Iterator[Mirror]:
        """The reflections of the group (a basis of coordinate ones where there is a continuum).

        Returns:
            An iterator; empty for a group without isometric involutions.
        """
        return iter(())
