"""The symmetry groups: sampling, action on a dictionary of parameters, infinitesimal generators, mirrors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gaugefix.symmetry.mirrors import Mirror
from gaugefix.symmetry.units import Params, Slice, Units

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
    independent: ClassVar[bool] = False  # moves what nothing else moves, so that its dimension is exact
    overlaps: ClassVar[bool] = False  # shares directions with others: listed only where dimensions are counted

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

    def path(self, k: int, t: Tensor) -> Element:
        """1 + tX_k, the one-parameter subgroup of the k-th generator to first order in t: affine in t.

        Args:
            k: ``0 <= k < n_generators``.
            t: a scalar tensor.

        Returns:
            An element for `apply`.

        Raises:
            IndexError: if the group is discrete or ``k`` is out of range.
        """  # noqa: DOC202
        raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")

    def generator(self, params: Params, k: int) -> dict[str, Tensor]:
        """The k-th infinitesimal generator at θ, ξ_k(θ) = d/dt exp(tX_k)θ at t = 0.

        Args:
            params: all parameters by name.
            k: ``0 <= k < n_generators``.

        Returns:
            Tangent tensors by name; parameters that do not move are left out. Cost: one jvp of `apply`.
        """
        first = next(iter(params.values()))
        zero = torch.zeros((), dtype=first.dtype, device=first.device)
        moved = [n for n in self.parameters if n in params]

        def act(t: Tensor) -> tuple[Tensor, ...]:
            new = self.apply(params, self.path(k, t))
            return tuple(new[n] for n in moved)

        tangents = torch.func.jvp(act, (zero,), (torch.ones_like(zero),))[1]
        return dict(zip(moved, tangents, strict=True))

    def generators(self, params: Params) -> dict[str, Tensor]:
        """Every infinitesimal generator at θ.

        Args:
            params: all parameters by name.

        Returns:
            Tangent tensors ``(n_generators, *shape)`` by name; parameters that do not move are left out. Cost: one
            batched jvp of `apply`, or one jvp each where `apply` has an operation that vmap does not know.
        """
        n = self.n_generators
        if not n:
            return {}
        first = next(iter(params.values()))
        zero, one = torch.zeros((), dtype=first.dtype), torch.ones((), dtype=first.dtype)
        moved = [m for m in self.parameters if m in params]
        identity = self.path(0, zero)
        directions = torch.stack([self.path(k, one) for k in range(n)]) - identity

        def push(direction: Tensor) -> tuple[Tensor, ...]:
            def act(element: Tensor) -> tuple[Tensor, ...]:
                new = self.apply(params, element)
                return tuple(new[m] for m in moved)

            change: tuple[Tensor, ...] = torch.func.jvp(act, (identity,), (direction,))[1]
            return change

        try:
            tangents: tuple[Tensor, ...] = torch.func.vmap(push)(directions)
        except RuntimeError:
            one_by_one = [self.generator(params, k) for k in range(n)]
            tangents = tuple(torch.stack([g[m] for g in one_by_one]) for m in moved)
        return dict(zip(moved, tangents, strict=True))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that move."""
        return tuple(dict.fromkeys(axis.rpartition("[")[0] for axis in self.axes))

    def mirrors(self) -> Iterator[Mirror]:
        """The reflections of the group (a basis of coordinate ones where there is a continuum).

        Returns:
            An iterator; empty for a group without isometric involutions.
        """
        return iter(())


@dataclass(frozen=True, eq=False)
class Permutation(Symmetry):
    """S_n on every fiber of an axis class, independently. Elements: index arrays ``(fibers, n)``."""

    def _class(self) -> Units:
        assert self.units is not None
        return self.units

    def sample(self, generator: torch.Generator) -> Tensor:
        """A uniform permutation for every fiber."""
        units = self._class()
        return torch.rand(units.fibers, units.size, generator=generator, dtype=torch.float64).argsort(dim=1)

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Unit i of the result is unit ``element[a, i]`` of the argument."""
        out = dict(params)
        rows = torch.arange(len(element))[:, None]
        for s in self._class().slices:
            out[s.param] = s.put(out[s.param], s.take(out[s.param])[rows, element])
        return out

    def mirrors(self) -> Iterator[Mirror]:
        """Every transposition."""
        units = self._class()
        for a in range(units.fibers):
            for i in range(units.size):
                for j in range(i + 1, units.size):
                    v = np.zeros(units.size)
                    v[i], v[j] = np.sqrt(0.5), -np.sqrt(0.5)
                    yield Mirror(f"{_member(units, a, i)} = {j}", units.slices, a, v, "swap")


def _member(units: Units, fiber: int, unit: int) -> str:
    return f"{units.name}: {unit}" if units.fibers == 1 else f"{units.name}[{fiber}]: {unit}"


@dataclass(frozen=True, eq=False)
class Diagonal(Symmetry):
    """Rescaling exp(qc) or sign flip c^q of every slice by its integer (or rational) charge q.

    Elements: ``(fibers, n)``, the log-scales c for "scale", ±1 for "sign". With ``mean_zero`` (a normalisation fixes
    the overall scale) only c that average to zero over every index are in the group.

    Attributes:
        charges: slices with their charges.
        shape: sizes of the indices on which c depends; their product is ``fibers * n``.
        kind: "scale" or "sign".
        mean_zero: see above.
    """

    charges: tuple[tuple[Slice, float], ...] = ()
    shape: tuple[int, ...] = ()
    kind: str = "scale"
    mean_zero: bool = False

    @property
    def _fibers_units(self) -> tuple[int, int]:
        fibers, units, _ = self.charges[0][0].index.shape
        return int(fibers), int(units)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Log-scales of standard deviation 0.3, or random signs."""
        shape = self._fibers_units
        if self.kind == "sign":
            return torch.randint(2, shape, generator=generator).double() * 2 - 1
        return self._centre(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64))

    def _centre(self, c: Tensor) -> Tensor:
        if not self.mean_zero:
            return c
        full = c.reshape(self.shape)
        for d in range(full.ndim):
            full = full - full.mean(dim=d, keepdim=True)
        return full.reshape(c.shape)

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Multiply every slice."""
        out = dict(params)
        for s, q in self.charges:
            block = s.take(out[s.param])
            factor = element.to(block) if self.kind == "sign" else torch.exp(q * element.to(block))
            out[s.param] = s.put(out[s.param], block * factor.reshape(*factor.shape, *[1] * (block.ndim - 2)))
        return out

    @property
    def n_generators(self) -> int:
        """One for every entry of c, if continuous."""
        return int(np.prod(self._fibers_units)) if self.kind == "scale" else 0

    def path(self, k: int, t: Tensor) -> Tensor:
        """C = t at entry k (less its means, if those are fixed)."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        unit = torch.zeros(self._fibers_units, dtype=t.dtype)
        unit.view(-1)[k] = 1
        return t * self._centre(unit)

    def generators(self, params: Params) -> dict[str, Tensor]:
        """ξ_k(θ) = q c_k θ on every slice."""
        n = self.n_generators
        if not n:
            return {}
        first = next(iter(params.values()))
        units = torch.stack([self.path(k, first.new_ones(())) for k in range(n)])
        out: dict[str, Tensor] = {}
        for s, q in self.charges:
            block = s.take(params[s.param])
            change = q * units.reshape(*units.shape, *[1] * (block.ndim - 2)) * block
            zero = torch.zeros_like(params[s.param])
            field = torch.func.vmap(lambda c, s=s, zero=zero: s.put(zero, c))(change)
            out[s.param] = out[s.param] + field if s.param in out else field
        return out

    def mirrors(self) -> Iterator[Mirror]:
        """For sign flips: every single unit. Rescalings have no linear mirror."""
        if self.kind != "sign":
            return
        fibers, n = self._fibers_units
        for a in range(fibers):
            for i in range(n):
                v = np.zeros(n)
                v[i] = 1.0
                yield Mirror(f"{self.name}: {i} = 0", tuple(s for s, _ in self.charges), a, v, "sign")


@dataclass(frozen=True, eq=False)
class Rotation(Symmetry):
    """GL(n) or O(n) on every fiber: A on covariant slices, A⁻ᵀ on contravariant ones. Elements: ``(fibers, n, n)``.

    Attributes:
        polarity: +1 or −1 for every slice of `units`.
        orthogonal: O(n), because some operation contracts the axis with itself.
    """

    polarity: tuple[int, ...] = ()
    orthogonal: bool = False

    def _class(self) -> Units:
        assert self.units is not None
        return self.units

    def sample(self, generator: torch.Generator) -> Tensor:
        """1 + ½·Gaussian/√n per fiber, or its orthogonal factor."""
        n = self._class().size
        noise = torch.randn(self._class().fibers, n, n, generator=generator, dtype=torch.float64)
        matrix = torch.eye(n, dtype=torch.float64) + 0.5 * noise / n**0.5
        orthogonal: Tensor = torch.linalg.qr(matrix)[0]
        return orthogonal if self.orthogonal else matrix

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Multiply along every slice."""
        out = dict(params)
        inverse = element.transpose(1, 2) if self.orthogonal else torch.linalg.inv(element)
        for s, sign in zip(self._class().slices, self.polarity, strict=True):
            block = s.take(out[s.param])
            matrix = (element if sign > 0 else inverse.transpose(1, 2)).to(block)
            out[s.param] = s.put(out[s.param], torch.einsum("fij,fj...->fi...", matrix, block))
        return out

    @property
    def n_generators(self) -> int:
        """n² per fiber, or n(n−1)/2."""
        n = self._class().size
        return self._class().fibers * (n * (n - 1) // 2 if self.orthogonal else n * n)

    def path(self, k: int, t: Tensor) -> Tensor:
        """1 + tE_ij, or 1 + t(E_ij − E_ji)."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        fibers, n = self._class().fibers, self._class().size
        fiber, rest = divmod(k, self.n_generators // fibers)
        unit = torch.zeros(fibers, n, n, dtype=t.dtype)
        if self.orthogonal:
            i, j = (int(x[rest]) for x in np.triu_indices(n, 1))
            unit[fiber, i, j], unit[fiber, j, i] = 1, -1
        else:
            unit[fiber, rest // n, rest % n] = 1
        moved: Tensor = torch.eye(n, dtype=t.dtype) + t * unit
        return moved

    def mirrors(self) -> Iterator[Mirror]:
        """The coordinate reflections; any unit vector v gives one."""
        units = self._class()
        for a in range(units.fibers):
            for i in range(units.size):
                v = np.zeros(units.size)
                v[i] = 1.0
                yield Mirror(f"{_member(units, a, i)} dropped", units.slices, a, v, "rank")
