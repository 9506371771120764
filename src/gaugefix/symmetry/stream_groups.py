"""The groups around normalisations: how they act on parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.units import Params, Slice

T = TypeVar("T")


@dataclass(eq=False)
class LastPoint(Generic[T]):
    """What was computed at one point of parameter space, kept for the next generator at the same point."""

    _point: tuple[Tensor, ...] = ()
    _value: list[T] = field(default_factory=list)

    def __call__(self, params: Params, compute: Callable[[], T]) -> T:
        """The value at a point, computed if the last one was another (by identity of the tensors)."""
        point = tuple(params.values())
        known = self._value and len(point) == len(self._point)
        if not known or any(a is not b for a, b in zip(point, self._point, strict=True)):
            self._point, self._value = point, [compute()]
        return self._value[0]


@dataclass(frozen=True, eq=False)
class VectorSymmetry(Symmetry):
    """A group whose elements are vectors, the identity zero, acting to first order linearly.

    Attributes:
        length: entries of an element.
    """

    length: int = 0

    @property
    def n_generators(self) -> int:
        """One for each entry."""
        return self.length

    def sample(self, generator: torch.Generator) -> Tensor:
        """Gaussian entries."""
        return torch.randn(self.length, generator=generator, dtype=torch.float64)

    def path(self, k: int, t: Tensor) -> Tensor:
        """The entry k is t."""
        if not 0 <= k < self.length:
            raise IndexError(f"{self.name}: generator {k} of {self.length}.")
        unit = torch.zeros(self.length, dtype=t.dtype)
        unit[k] = 1
        return t * unit


@dataclass(frozen=True, eq=False)
class FreeParameter(VectorSymmetry):
    """A parameter that no operation reads. Elements: what is added to it, flattened."""

    independent = True
    param: str = ""

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Add."""
        p = params[self.param]
        return {**params, self.param: p + element.to(p).reshape(p.shape)}


@dataclass(frozen=True, eq=False)
class MeanShift(VectorSymmetry):
    """W → W + 1vᵀ for weights that write only into centred normalisations. Elements: v, the other entries of W.

    Attributes:
        where: the slice of the weight; the vector of ones runs over its units.
    """

    where: Slice | None = None

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Add the same row to every unit."""
        assert self.where is not None
        w = params[self.where.param]
        block = self.where.take(w)
        shifted = block + element.to(block).reshape(1, 1, *block.shape[2:])
        return {**params, self.where.param: self.where.put(w, shifted)}


@dataclass(frozen=True, eq=False)
class Unread(VectorSymmetry):
    """W → W + NE with N spanning what the linear readers of W's output cannot see. Elements: E before projection.

    Attributes:
        writer: the slice that changes.
        readers: all slices that read it.
    """

    writer: Slice | None = None
    readers: tuple[Slice, ...] = ()

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Project on the null space of the readers and add."""
        assert self.writer is not None
        n = self.writer.index.shape[1]
        read = torch.cat([s.take(params[s.param]).reshape(n, -1) for s in self.readers], dim=1)
        basis = torch.linalg.qr(read)[0]
        w = params[self.writer.param]
        block = self.writer.take(w)
        change = element.to(block).reshape(n, -1)
        change = change - basis @ (basis.T @ change)
        return {**params, self.writer.param: self.writer.put(w, block + change.reshape(block.shape))}


@dataclass(frozen=True, eq=False)
class NullDirection(VectorSymmetry):
    """A reader of a LayerNorm may change along 1/g, which its output β + g⊙x̂ does not see because Σ x̂ = 0.

    W → W + v(1/g)ᵀ and b → b − c·ΣvΣβ/g, the outer sum over groups and positions of the kernel, c = `times`. Elements:
    v for every group of a GroupNorm and every position of a kernel. Without a bias that takes the constant back, the
    sum is made zero.

    Attributes:
        reader: the slice of W that is contracted with the output.
        gain: name of g.
        shift: name of β.
        bias: name of b.
        rows: entries of b; the other entries of v are positions of a kernel.
        times: how often the product sums a constant: for every position if it sums over them.
    """

    reader: Slice | None = None
    gain: str | None = None
    shift: str | None = None
    bias: str | None = None
    rows: int = 1
    times: float = 1.0

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Change the reader and take the constant back in the bias."""
        assert self.reader is not None
        out = dict(params)
        groups, n, _ = self.reader.index.shape
        w = params[self.reader.param]
        g = params[self.gain].reshape(groups, n) if self.gain is not None else w.new_ones(groups, n)
        block = self.reader.take(w)  # (groups, n, 1, *rest)
        v = element.to(w).reshape(groups, self.rows, -1)
        if self.shift is not None:
            total = (params[self.shift].reshape(groups, n) / g).sum(1).reshape(groups, 1, 1)
            constant = (total * v).sum((0, 2))
            if self.bias is not None:
                b = params[self.bias]
                out[self.bias] = b - self.times * constant.reshape(b.shape)
            else:
                v = v - total * constant[:, None] / (total.square().sum() * v.shape[2])
        v = v.reshape(block[:, 0].shape)
        out[self.reader.param] = self.reader.put(w, block + torch.einsum("fn,f...->fn...", 1 / g, v))
        return out


@dataclass(frozen=True, eq=False)
class RotaryPairs(Symmetry):
    """SO(2) on every rotary pair (j, j + half) of queries and keys together. Elements: angles ``(fibers, half)``.

    Attributes:
        pairs: first and second halves of each weight or bias.
    """

    pairs: tuple[tuple[Slice, Slice], ...] = ()

    @property
    def _shape(self) -> tuple[int, int]:
        fibers, half, _ = self.pairs[0][0].index.shape
        return int(fibers), int(half)

    @property
    def n_generators(self) -> int:
        """One angle for each pair of each fiber."""
        return self._shape[0] * self._shape[1]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Random angles."""
        return torch.rand(self._shape, generator=generator, dtype=torch.float64) * 6.28

    def path(self, k: int, t: Tensor) -> Tensor:
        """One angle is t."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        return t * torch.eye(self.n_generators, dtype=t.dtype)[k].reshape(self._shape)

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Turn every pair."""
        out = dict(params)
        for a, b in self.pairs:
            first, second = a.take(out[a.param]), b.take(out[b.param])
            angle = element.to(first).reshape(*self._shape, *[1] * (first.ndim - 2))
            c, s = torch.cos(angle), torch.sin(angle)
            out[a.param] = a.put(out[a.param], c * first - s * second)
            out[b.param] = b.put(out[b.param], s * first + c * second)
        return out
