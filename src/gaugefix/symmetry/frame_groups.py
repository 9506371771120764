"""Changes of basis around normalisations: how they act on parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.stream_groups import VectorSymmetry
from gaugefix.symmetry.units import Params, Slice


def turn(out: dict[str, Tensor], s: Slice, matrix: Tensor) -> None:
    """Multiply a slice along its units."""
    block = s.take(out[s.param])
    out[s.param] = s.put(out[s.param], torch.einsum("ij,fj...->fi...", matrix.to(block), block))


def _vector(params: Params, gain: Slice | None, like: Tensor, size: int) -> Tensor:
    """The gain on its part of an axis; ones without a gain."""
    return like.new_ones(size) if gain is None else gain.take(params[gain.param]).reshape(-1).to(like)


@dataclass(frozen=True, eq=False)
class Shear(VectorSymmetry):
    """x → (1 + U M Kᵀ)x for everything on an axis that is linear but for its normalisations. Elements: M.

    A centred normalisation that reads x removes what is added along U = 1; one that writes γ⊙x̂ + β has
    Kᵀ(γ⊙x̂) = 0 for K = 1/γ, so that γ stays and β moves with the writers. Without a reader of that kind U is the
    identity, without a writer K is.

    Attributes:
        covariant: slices that are multiplied by A = 1 + U M Kᵀ.
        contravariant: slices that are multiplied by A⁻ᵀ.
        size: d.
        removed: centred normalisations read the axis: U = 1.
        written: centred normalisations write on it: K = 1/γ.
        gain: γ, if there is one.
    """

    covariant: tuple[Slice, ...] = ()
    contravariant: tuple[Slice, ...] = ()
    size: int = 0
    removed: bool = False
    written: bool = False
    gain: Slice | None = None

    def sample(self, generator: torch.Generator) -> Tensor:
        """Small Gaussian M, so that the map is invertible."""
        return 0.3 * super().sample(generator) / self.size

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Multiply every slice."""
        eye = torch.eye(self.size, dtype=element.dtype)
        u = element.new_ones(self.size, 1) if self.removed else eye
        k = 1 / _vector(params, self.gain, element, self.size)[:, None] if self.written else eye
        mk = element.reshape(u.shape[1], k.shape[1]) @ k.T
        forward = eye + u @ mk
        small = torch.eye(u.shape[1], dtype=element.dtype) + mk @ u
        backward = (eye - u @ torch.linalg.solve(small, mk)).T
        out = dict(params)
        for slices, matrix in ((self.covariant, forward), (self.contravariant, backward)):
            for s in slices:
                turn(out, s, matrix)
        return out


@dataclass(frozen=True, eq=False)
class StreamRotation(Symmetry):
    """O(d) on an axis that is read only linearly and by normalisations. Elements: orthogonal ``(d, d)``.

    What is linear in the axis turns by Q; behind a normalisation with gain g the axis turns by M = diag(g) Q diag(1/g),
    its shift by M and its readers by M⁻ᵀ. With LayerNorm Q keeps the vector of ones. The axis may be a part of what is
    normalised: Q leaves its norm and its sum alone.

    Attributes:
        turned: slices that turn by Q.
        behind: per normalisation with a gain: the gain, slices that turn by M, slices that turn by M⁻ᵀ.
        centred: Q keeps the vector of ones.
        size: d.
    """

    turned: tuple[Slice, ...] = ()
    behind: tuple[tuple[Slice, tuple[Slice, ...], tuple[Slice, ...]], ...] = ()
    centred: bool = False
    size: int = 0

    @property
    def _n(self) -> int:
        return self.size - self.centred

    @property
    def n_generators(self) -> int:
        """Pairs of axes orthogonal to the vector of ones, if that is kept."""
        return self._n * (self._n - 1) // 2

    def _frame(self, like: Tensor) -> Tensor:
        """Orthonormal columns spanning what may turn."""
        if not self.centred:
            return torch.eye(self.size, dtype=like.dtype)
        full = torch.eye(self.size, dtype=like.dtype)
        full[:, 0] = 1
        frame: Tensor = torch.linalg.qr(full)[0][:, 1:]
        return frame

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random orthogonal matrix near no particular point."""
        z = torch.randn(self._n, self._n, generator=generator, dtype=torch.float64)
        return self._embed(torch.linalg.qr(z)[0])

    def _embed(self, q: Tensor) -> Tensor:
        frame = self._frame(q)
        return frame @ q @ frame.T + torch.eye(self.size, dtype=q.dtype) - frame @ frame.T

    def path(self, k: int, t: Tensor) -> Tensor:
        """1 + t(E_ij − E_ji) in the frame."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        i, j = torch.triu_indices(self._n, self._n, 1)[:, k].tolist()
        skew = torch.zeros(self._n, self._n, dtype=t.dtype)
        skew[i, j], skew[j, i] = 1, -1
        frame = self._frame(skew)
        turned: Tensor = torch.eye(self.size, dtype=t.dtype) + t * (frame @ skew @ frame.T)
        return turned

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Turn every slice."""
        out = dict(params)
        for s in self.turned:
            turn(out, s, element)
        for gain, covariant, contravariant in self.behind:
            g = _vector(params, gain, element, self.size)
            for s in covariant:
                turn(out, s, g[:, None] * element / g)
            for s in contravariant:
                turn(out, s, element / g[:, None] * g)  # M⁻ᵀ = diag(1/g) Q diag(g)
        return out
