"""A mirror given by a matrix: for symmetries that you know and the search does not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import SymmetryError, ValidityWarning
from gaugefix.symmetry.units import Params


@dataclass(frozen=True, eq=False)
class DenseMirror:
    """The reflection R = I − 2OOᵀ of the stacked parameters, with the plane Oᵀθ = 0.

    The same methods as `Mirror`, so that `gaugefix.measure.o_hessian` and forecasts take either.

    Attributes:
        name: for reports.
        shapes: of the parameters that O covers, in the order in which they are stacked.
        basis: O, ``(P, k)``, orthonormal columns.

    Source: 2309.16932 §1.

    Example:
        >>> params = {"u": torch.tensor([1.0]).double(), "w": torch.tensor([3.0]).double()}
        >>> swap = mirror_from_matrix(torch.tensor([[1.0], [-1.0]]), params)
        >>> {n: round(p.item(), 9) for n, p in swap.reflect(params).items()}, swap.is_signed_permutation
        ({'u': 3.0, 'w': 1.0}, True)
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    basis: Float[Tensor, "P k"]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that O covers."""
        return tuple(self.shapes)

    @property
    def is_signed_permutation(self) -> bool:
        """Whether R permutes coordinates up to sign; only then does Adam keep the plane too."""
        r = torch.eye(len(self.basis), dtype=self.basis.dtype) - 2 * self.basis @ self.basis.T
        return bool(((r.abs() > 1e-9).sum(1) == 1).all())

    def codim(self, params: Params) -> int:
        """Number k of normal coordinates."""
        del params
        return int(self.basis.shape[1])

    def coordinates(self, params: Params) -> Float[Tensor, " k"]:
        """Normal coordinates z = Oᵀθ."""
        flat = self._stack(params)
        return self.basis.to(flat).T @ flat

    def embed(self, z: Float[Tensor, " k"], params: Params) -> dict[str, Tensor]:
        """Oz as tangent tensors: the adjoint of `coordinates`.

        Args:
            z: ``(k,)``.
            params: not used; the shapes are those the mirror was made with.

        Returns:
            Tensors by name.

        Raises:
            SymmetryError: if ``z`` has the wrong length.
        """
        del params
        if z.shape != (self.basis.shape[1],):
            raise SymmetryError(
                f"Mirror {self.name!r}: z must have shape ({self.basis.shape[1]},), got {tuple(z.shape)}."
            )
        return self._unstack(self.basis.to(z) @ z)

    def reflect(self, params: Params) -> dict[str, Tensor]:
        """Rθ, as a new dictionary."""
        return self._moved(params, 2.0)

    def project(self, params: Params) -> dict[str, Tensor]:
        """The nearest point on the plane, as a new dictionary."""
        return self._moved(params, 1.0)

    def distance(self, params: Params) -> float:
        """Relative distance to the plane, ‖Oᵀθ‖/‖θ‖ over the parameters that O covers; 0 if they vanish."""
        flat = self._stack(params).detach().double()
        total = float(flat.norm())
        return float((self.basis.to(flat).T @ flat).norm()) / total if total else 0.0

    def _moved(self, params: Params, factor: float) -> dict[str, Tensor]:
        normal = self.embed(self.coordinates(params), params)
        return {n: p - factor * normal[n] if n in normal else p for n, p in params.items()}

    def _stack(self, params: Params) -> Tensor:
        for n, shape in self.shapes.items():
            if n not in params or tuple(params[n].shape) != shape:
                got = "nothing" if n not in params else str(tuple(params[n].shape))
                raise SymmetryError(f"Mirror {self.name!r}: parameter {n!r} must have shape {shape}, got {got}.")
        return torch.cat([params[n].reshape(-1) for n in self.shapes])

    def _unstack(self, flat: Tensor) -> dict[str, Tensor]:
        out, at = {}, 0
        for n, shape in self.shapes.items():
            size = torch.Size(shape).numel()
            out[n] = flat[at : at + size].reshape(shape)
            at += size
        return out


def mirror_from_matrix(
    matrix: Float[Tensor, "P k"], params: Params, *, name: str = "mirror", tolerance: float = 1e-10
) -> DenseMirror:
    """The mirror whose plane is Oᵀθ = 0, for any O of which the columns span the normal space.

    Args:
        matrix: O, ``(P, k)``: one row for every scalar of ``params``, stacked in their order. The columns need not be
            orthonormal; they are replaced by an orthonormal basis of their span.
        params: the parameters that the rows stand for.
        name: for reports.
        tolerance: singular values below this times the largest count as zero.

    Returns:
        The mirror.

    Raises:
        SymmetryError: if the shape does not fit, an entry is not finite, or O is zero.

    Cost: one SVD of a P x k matrix.
    """
    total = sum(p.numel() for p in params.values())
    if matrix.ndim != 2 or matrix.shape[0] != total:
        raise SymmetryError(f"Mirror {name!r}: O must have shape ({total}, k), got {tuple(matrix.shape)}.")
    if not torch.isfinite(matrix).all():
        raise SymmetryError(f"Mirror {name!r}: O has entries that are not finite.")
    u, values, _ = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    rank = int((values > tolerance * values[:1]).sum()) if len(values) and values[0] > 0 else 0
    if not rank:
        raise SymmetryError(f"Mirror {name!r}: O is zero, it has no plane.")
    if rank < matrix.shape[1]:
        warnings.warn(
            f"Mirror {name!r}: the {matrix.shape[1]} columns of O span {rank} dimensions; the others are dropped.",
            ValidityWarning,
            stacklevel=2,
        )
    return DenseMirror(name, {n: tuple(p.shape) for n, p in params.items()}, u[:, :rank])
