"""Units: an axis class with every place where its members live in the parameters.

Folding, alignment, monitors and forecasts all walk over these; none of them needs to know the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Role = Literal["write", "read", "gain"]
Params = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Slice:
    """One occurrence of an axis class in one dimension of one parameter.

    Attributes:
        param: dotted name of the parameter, as in ``named_parameters()``.
        dim: the dimension of that parameter along which the units are laid out.
        index: ``(fibers, units, entries)`` positions along ``dim``; unit ``i`` of fiber ``a`` owns
            ``index[a, i]``. ``entries`` > 1 when a unit owns a block (a head, a flattened channel).
        role: "write" if the entries produce the unit (rows of a Linear, its bias), "read" if they consume it
            (columns of the next Linear), "gain" if they multiply or shift it elementwise (norm weights).
        others: restriction of other dimensions to some positions (a part of a fused weight), per fiber where the
            fibers lie in that dimension (the experts of a stacked weight); empty means all of them.
    """

    param: str
    dim: int
    index: Int[np.ndarray, "fibers units entries"]
    role: Role
    others: Mapping[int, Int[np.ndarray, "fibers_or_1 positions"]] = field(default_factory=dict)

    def take(self, tensor: Tensor) -> Tensor:
        """Entries of every unit, as ``(fibers, units, entries, *other dims)``, or flat behind units if restricted."""
        if self.others:
            return tensor.reshape(-1)[self._flat(tensor)]
        return tensor.movedim(self.dim, 0)[_index(self.index, tensor)]

    def put(self, tensor: Tensor, value: Tensor) -> Tensor:
        """A copy of ``tensor`` in which the entries of every unit are ``value`` (the shape of `take`)."""
        if self.others:  # out of place, so that many elements can act at once under vmap
            return tensor.reshape(-1).index_put((self._flat(tensor),), value).reshape(tensor.shape)
        moved = tensor.movedim(self.dim, 0).index_put((_index(self.index, tensor),), value)
        return moved.movedim(0, self.dim).contiguous()

    def only(self, fiber: int, units: Sequence[int] | np.ndarray) -> Slice:
        """The slice of some units of one fiber, as a slice with one fiber."""
        others = {d: p[[fiber]] if len(p) > 1 else p for d, p in self.others.items()}
        return Slice(self.param, self.dim, self.index[fiber : fiber + 1, np.asarray(units)], self.role, others)

    def _flat(self, tensor: Tensor) -> Tensor:
        """Flat positions ``(fibers, units, entries * the rest)`` in a contiguous tensor."""
        fibers, units, entries = self.index.shape
        strides = np.cumprod([1, *tensor.shape[:0:-1]])[::-1]
        flat = (self.index * strides[self.dim]).reshape(fibers, units, entries, 1)
        for d, n in enumerate(tensor.shape):
            if d == self.dim:
                continue
            positions = self.others.get(d, np.arange(n)[None])
            step = (positions * strides[d]).reshape(len(positions), 1, 1, -1)
            flat = (flat[..., None] + step[..., None, :]).reshape(fibers, units, entries, -1)
        return torch.from_numpy(flat.reshape(fibers, units, -1)).to(tensor.device)


def _index(index: np.ndarray, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(tensor.device)


@dataclass(frozen=True, eq=False)
class Units:
    """An axis class: ``size`` interchangeable units in each of ``fibers`` independent copies.

    A hidden layer of 32 neurons has ``size=32, fibers=1``; the head dimension of 8 heads has ``size=head_dim,
    fibers=8``; the heads themselves are units of another class with ``size=8, fibers=1``.

    Attributes:
        name: readable and unique within one model: the module that writes it, ``"net.0"``.
        size: number of units in each fiber.
        fibers: number of independent copies.
        slices: every occurrence in the parameters.
        activation: what happens elementwise between the writing and the reading side: "identity", "relu",
            "leaky_relu", "tanh", "gelu", … or "mixed" when there is more than one.
        kind: "hidden", "residual", "head", "head_dim", "channel", or "other"; a label for people.
    """

    name: str
    size: int
    fibers: int
    slices: tuple[Slice, ...]
    activation: str = "identity"
    kind: str = "hidden"
    flags: frozenset[str] = field(default_factory=frozenset)

    @property
    def incoming(self) -> tuple[Slice, ...]:
        """Slices that write the unit: incoming weights and bias."""
        return tuple(s for s in self.slices if s.role == "write")

    @property
    def outgoing(self) -> tuple[Slice, ...]:
        """Slices that read the unit."""
        return tuple(s for s in self.slices if s.role == "read")

    @property
    def gains(self) -> tuple[Slice, ...]:
        """Elementwise gains and shifts of the unit."""
        return tuple(s for s in self.slices if s.role == "gain")

    @property
    def homogeneous(self) -> bool:
        """Whether the activation is positively homogeneous: φ(cx) = cφ(x) for every c > 0."""
        return self.activation in {"identity", "relu", "leaky_relu"}

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters the class occurs in, without repeats."""
        return tuple(dict.fromkeys(s.param for s in self.slices))

    def rows(self, params: Params, role: Role | None = None) -> Tensor:
        """One row per unit with all its entries: ``(fibers * size, entries)``.

        Args:
            params: parameters (or gradients) by name.
            role: restrict to the slices of one role; by default all of them.

        Returns:
            The rows, ordered by fiber, then unit; columns in the order of `slices`. ``(fibers * size, 0)`` if
            there is no such slice.
        """
        parts = [
            s.take(params[s.param]).reshape(self.fibers * self.size, -1)
            for s in self.slices
            if role is None or s.role == role
        ]
        if parts:
            return torch.cat(parts, dim=1)
        return next(iter(params.values())).new_zeros(self.fibers * self.size, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs (fiber, unit)."""
        return ((a, i) for a in range(self.fibers) for i in range(self.size))

    def __len__(self) -> int:
        return self.fibers * self.size
