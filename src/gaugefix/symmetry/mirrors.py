"""Mirrors: orthogonal reflections in the symmetry group, and the planes that training falls onto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import SymmetryError
from gaugefix.symmetry.units import Params, Slice


@dataclass(frozen=True, eq=False)
class Mirror:
    """The reflection R = I − 2vvᵀ of one fiber of an axis class, acting on every occurrence of the axis.

    Its plane {θ : Rθ = θ} is invariant under SGD; being on it is the constraint:

    ========================  =============================  =====================
    ``v``                     symmetry it comes from         constraint Oᵀθ = 0
    ========================  =============================  =====================
    eᵢ                        sign flip                      unit i is zero
    (eᵢ − eⱼ)/√2              permutation                    units i and j are equal
    any unit vector           GL(n), O(n)                    joint rank drops by one
    ========================  =============================  =====================

    An axis that occurs twice in one parameter (a square matrix on the residual stream) is reflected on both
    sides. Normal coordinates z = Oᵀθ are read in the basis in which v is a coordinate axis: the entries with an
    odd number of indices on that axis change sign, and they are z.

    Attributes:
        name: for reports, for example ``"net.0: 3 = 7"``.
        slices: the occurrences that change (a sign flip leaves out those of even charge).
        fiber: which fiber of the slices.
        v: unit vector over the units, ``(size,)``.
        kind: "sign", "swap" or "rank".

    Raises:
        SymmetryError: if ``v`` is not a finite unit vector of the right length, or there is no slice.
    """

    name: str
    slices: tuple[Slice, ...]
    fiber: int
    v: Float[np.ndarray, " size"]
    kind: str

    def __post_init__(self) -> None:
        """Check the vector against the slices."""
        if not self.slices:
            raise SymmetryError(f"Mirror {self.name!r} has no slice: it would not move any parameter.")
        size = self.slices[0].index.shape[1]
        if self.v.shape != (size,):
            raise SymmetryError(f"Mirror {self.name!r}: v must have shape ({size},), got {self.v.shape}.")
        norm = float(np.linalg.norm(self.v))
        if not np.isfinite(norm) or abs(norm - 1.0) > 1e-6:
            raise SymmetryError(f"Mirror {self.name!r}: v must be a unit vector, its norm is {norm:g}.")

    @property
    def is_signed_permutation(self) -> bool:
        """Whether R permutes coordinates up to sign; only then does Adam keep the plane too."""
        support = np.abs(self.v[np.abs(self.v) > 1e-12])
        return len(support) == 1 or (len(support) == 2 and bool(np.allclose(support, np.sqrt(0.5))))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that R changes."""
        return tuple(dict.fromkeys(s.param for s in self.slices))

    # the reflection in the basis where v is the coordinate axis `_pivot`

    @property
    def _pivot(self) -> int:
        return int(np.argmax(np.abs(self.v)))

    def _turn(self, params: Params) -> dict[str, Tensor]:
        """Rotate v onto the pivot axis in every occurrence: an orthogonal involution of the parameters."""
        w = self.v.copy()
        w[self._pivot] += np.copysign(1.0, w[self._pivot])  # Householder vector that maps v to ∓e_pivot
        w /= np.linalg.norm(w)
        out = {name: params[name] for name in self.parameters}
        trivial = np.count_nonzero(np.abs(self.v) > 1e-12) == 1
        for s in () if trivial else self.slices:
            out[s.param] = _reflect_slice(out[s.param], s, self.fiber, w)
        return out

    def _odd(self, params: Params) -> dict[str, Tensor]:
        """Masks of the entries that change sign in the turned basis."""
        masks = {name: torch.zeros_like(params[name], dtype=torch.bool) for name in self.parameters}
        for s in self.slices:
            at = s.only(self.fiber, [self._pivot])
            masks[s.param] = at.put(masks[s.param], ~at.take(masks[s.param]))
        return masks

    def reflect(self, params: Params) -> dict[str, Tensor]:
        """Rθ.

        Args:
            params: all parameters by name.

        Returns:
            A new dictionary; parameters that do not change are the same objects.
        """
        self._check(params)
        out = dict(params)
        for s in self.slices:
            out[s.param] = _reflect_slice(out[s.param], s, self.fiber, self.v)
        return out

    def project(self, params: Params) -> dict[str, Tensor]:
        """The nearest point on the plane, (θ + Rθ)/2.

        Args:
            params: all parameters by name.

        Returns:
            A new dictionary.
        """
        reflected = self.reflect(params)
        return {k: (p + reflected[k]) / 2 if reflected[k] is not p else p for k, p in params.items()}

    def coordinates(self, params: Params) -> Float[Tensor, " k"]:
        """Normal coordinates z = Oᵀθ.

        Args:
            params: all parameters by name.

        Returns:
            ``(codim,)``.
        """
        self._check(params)
        turned, odd = self._turn(params), self._odd(params)
        return torch.cat([turned[name][odd[name]] for name in self.parameters])

    def embed(self, z: Float[Tensor, " k"], params: Params) -> dict[str, Tensor]:
        """Oz as a dictionary of tangent tensors: the adjoint of `coordinates`.

        Args:
            z: ``(codim,)``.
            params: parameters, for shapes and dtypes.

        Returns:
            Tensors by name for the parameters that R changes.

        Raises:
            SymmetryError: if ``z`` has the wrong length.
        """
        odd = self._odd(params)
        if z.shape != (self.codim(params),):
            raise SymmetryError(
                f"Mirror {self.name!r}: z must have shape ({self.codim(params)},), got {tuple(z.shape)}."
            )
        out, start = {}, 0
        for name in self.parameters:
            count = int(odd[name].sum())
            flat = torch.zeros_like(params[name], dtype=z.dtype)
            flat[odd[name]] = z[start : start + count]
            out[name], start = flat, start + count
        return self._turn(out)

    def codim(self, params: Params) -> int:
        """Number k of normal coordinates.

        Args:
            params: parameters, for shapes.

        Returns:
            The number of constraints.
        """
        return sum(int(mask.sum()) for mask in self._odd(params).values())

    def distance(self, params: Params) -> float:
        """Relative distance to the plane, ‖Oᵀθ‖/‖θ‖ over the parameters' entries that the mirror can change.

        The denominator takes only the entries of the units in the support of v, so that the number does not
        depend on the rest of the network: 0 on the plane, at most 1.

        Args:
            params: all parameters by name.

        Returns:
            The ratio; 0 if all those entries vanish.
        """
        self._check(params)
        support = np.flatnonzero(np.abs(self.v) > 1e-12)
        masks = {name: torch.zeros_like(params[name], dtype=torch.bool) for name in self.parameters}
        for s in self.slices:
            at = s.only(self.fiber, support)
            masks[s.param] = at.put(masks[s.param], torch.ones_like(at.take(masks[s.param])))
        total = sum(float(params[n].detach()[m].double().square().sum()) for n, m in masks.items())
        normal = float(self.coordinates(params).detach().double().square().sum())
        return (normal / total) ** 0.5 if total > 0 else 0.0

    def _check(self, params: Mapping[str, Tensor]) -> None:
        for s in self.slices:
            if s.param not in params:
                raise SymmetryError(f"Mirror {self.name!r} needs the parameter {s.param!r}, which is not there.")
            shape = tuple(params[s.param].shape)
            if s.dim >= len(shape) or s.index.max() >= shape[s.dim]:
                raise SymmetryError(
                    f"Mirror {self.name!r}: parameter {s.param!r} has shape {shape}, too small for its dimension "
                    f"{s.dim} with indices up to {int(s.index.max())}. Was the model folded? Find its symmetries again."
                )


def _reflect_slice(tensor: Tensor, s: Slice, fiber: int, v: np.ndarray) -> Tensor:
    """Apply I − 2vvᵀ along one occurrence of the axis."""
    support = np.flatnonzero(np.abs(v) > 1e-12)
    weights = torch.as_tensor(v[support], dtype=tensor.dtype, device=tensor.device)
    at = s.only(fiber, support)
    block = at.take(tensor)[0]
    return at.put(tensor, (block - 2 * torch.einsum("i,j,j...->i...", weights, weights, block))[None])
