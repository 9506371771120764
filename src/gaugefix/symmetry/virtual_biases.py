"""Weights without a bias that can take up a constant all the same, because what they read satisfies a constraint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaugefix.symmetry.constraints import Constraints
from gaugefix.symmetry.dead import Place, read_place, uses_of
from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.records import Operand, Product
from gaugefix.symmetry.shift_action import relabel
from gaugefix.symmetry.units import Params


class _Lazy(Mapping[str, Tensor]):
    """Generic vectors, made when asked for: a big model is not filled with numbers to look at its gains."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return 0.5 + torch.rand(self._shapes[name], generator=generator, dtype=torch.float64)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a parameter; the one of `Mapping` would make it to find out."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(eq=False)
class VirtualBiases:
    """Weights without a bias that can take up a constant: aᵀx = α ≠ 0, so W + vaᵀ/α adds v to what they give.

    Attributes:
        flow: who makes and reads what.
        places: product -> the weight.
    """

    flow: Flow
    places: dict[Product, tuple[Operand, Place]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the readers of centred normalisations that have a shift."""
        shapes = {n: v.shape for n, v in self.flow.classes.cells.lower.graph.params.items()}
        at = Constraints(self.flow, _Lazy(shapes), dense=False)
        uses = uses_of(self.flow)
        for record in self.flow.classes.cells.lower.records:
            if not isinstance(record, Product):
                continue
            for w in record.factors:
                if w.value.kind != "param" or uses[w.value] != 1:
                    continue
                place = read_place(self.flow, record, w)
                if place is None or place.source is None or place.bias is not None:
                    continue
                if bool(at.known(*place.source)[1].any()):
                    self.places[record] = (w, place)

    def weights(self) -> dict[Product, Operand]:
        """The weights, by the product in which they are read."""
        return {record: w for record, (w, _) in self.places.items()}

    def take_up(self, record: Product, constant: Tensor, params: Params) -> tuple[str, Tensor]:
        """The change of a weight that adds a constant to what it gives.

        Args:
            record: the product.
            constant: in the layout of its output.
            params: all parameters, those that the normalisation uses at their new values.

        Returns:
            The name of the weight and its change.
        """
        w, place = self.places[record]
        assert place.source is not None
        n, alpha = Constraints(self.flow, params, dense=False).known(*place.source)
        a = n @ alpha / (alpha @ alpha * place.scale)
        rows = [k for k in w.groups if k in record.out.groups]
        v = relabel(constant, record.out, Operand(w.value, {k: w.groups[k] for k in rows}))
        inner = [place.shape[d] if d in place.inner else 1 for d in range(len(place.shape))]
        order = sorted(range(len(place.inner)), key=lambda i: place.inner[i])
        block = a.reshape([place.shape[d] for d in place.inner]).permute(order).reshape(inner)
        return place.param, v * block
