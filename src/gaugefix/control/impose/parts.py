"""The parametrisation of a part of a tensor, for constraints on units that live in several tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gaugefix.control.impose.factors import Factorised


class UnitScales(nn.Module):
    """One scalar factor for every unit, shared by all tensors in which the unit has entries."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


class PartFactors(Factorised):
    """Some entries of a tensor are factors: on their own, or times the scale of their unit; the rest is as it was.

    Args:
        strength: weight decay λ of the part and of the scales.
        positions: of the entries in the flattened tensor; None means all of them.
        scales: of the units; None for entries that are factors on their own.
        labels: which scale belongs to each of the entries, ``(positions,)``.
        owner: whether the scales are counted as parameters here. Only one tensor of a model has them, so that a state
            dictionary has them once; the others refer to the same object.
    """

    decayed = (0,)
    positions: Tensor | None
    labels: Tensor | None

    def __init__(
        self,
        strength: float,
        positions: Tensor | None,
        scales: UnitScales | None = None,
        labels: Tensor | None = None,
        *,
        owner: bool = False,
    ) -> None:
        super().__init__(strength)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.__dict__["shared"] = scales  # a plain attribute: not in the state dictionary
        self.owner = owner
        if owner and scales is not None:
            self.scales = scales

    def own_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The scales, where they are counted.

        Yields:
            Name and parameter.
        """
        if self.owner:
            yield "scales", self.scales.value

    def _scale(self) -> Tensor | None:
        scales: UnitScales | None = self.__dict__["shared"]
        return None if scales is None or self.labels is None else scales.value[self.labels]

    def forward(self, part: Tensor, rest: Tensor | None = None) -> Tensor:
        """The tensor from its part and the rest."""
        scale = self._scale()
        if rest is None or self.positions is None:
            return part if scale is None else part * scale.view_as(part)
        values = part if scale is None else part * scale
        return rest.flatten().index_copy(0, self.positions, values).view_as(rest)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Divide by the scales as they are; the rest keeps zeros in place of the part."""
        scale = self._scale()
        if self.positions is None:
            return weight if scale is None else weight / scale.view_as(weight)
        part = weight.flatten()[self.positions]
        rest = weight.flatten().index_fill(0, self.positions, 0.0).view_as(weight)
        return part if scale is None else part / scale, rest

    def sizes(self, weight: Tensor, n: int) -> Tensor:
        """Σ of the squared entries for each unit, ``(n,)``."""
        flat = weight.flatten() if self.positions is None else weight.flatten()[self.positions]
        if self.labels is None:
            return weight.new_zeros(n)
        return weight.new_zeros(n).index_add_(0, self.labels, flat.square())


def same_scales(one: PartFactors, other: PartFactors) -> bool:
    """Whether two tensors share the scales of their units."""
    return one.__dict__["shared"] is not None and one.__dict__["shared"] is other.__dict__["shared"]


def unit_scales(kind: PartFactors) -> Tensor | None:
    """The scales that a tensor is multiplied by, if it is."""
    scales: UnitScales | None = kind.__dict__["shared"]
    return None if scales is None else scales.value


def positions_of(mask: Tensor) -> Tensor | None:
    """Flat positions of the true entries; None if all are."""
    return None if bool(mask.all()) else torch.nonzero(mask.flatten()).flatten()
