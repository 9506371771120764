"""Rank of a class of units: its singular values, how many count, how many there effectively are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.sizes import DEFAULT_TOLERANCE, unit_length, unit_rows
from gaugefix.symmetry import Slice, Units

#: a relative precision that is half or less
_HALF = 1e-4


@dataclass(frozen=True, eq=False)
class ClassRank:
    """Singular values of a class, fiber by fiber, and what they say.

    Attributes:
        spectrum: of all fibers together, descending.
        rank: number of singular values that are not zero.
        max_rank: what the shapes allow.
        expected: what they allow for the live, distinct units.
    """

    spectrum: np.ndarray
    rank: int
    max_rank: int
    expected: int


def class_rank(
    params: Mapping[str, Tensor],
    units: Units,
    live: np.ndarray,
    distinct: Sequence[int],
    sides: tuple[Sequence[Slice], Sequence[Slice]] | None,
    tol: float,
) -> ClassRank:
    """Rank of every fiber: of the incoming rows of its live units, or of the product of two sides of a linear class.

    Rows have norm 1 if scale is a gauge of the activation. The product M₋ᵀM₊ is the same in every basis of the class.

    Args:
        params: parameters by name.
        units: the class.
        live: ``(n,)`` mask from `live_units`.
        distinct: live units of every fiber after merging duplicates; more singular values there cannot be.
        sides: slices of the two sides of a class between linear maps, else None.
        tol: as in `numerical_rank`.

    Returns:
        The ranks, added up over the fibers.
    """
    eps = max((_epsilon(params[s.param].dtype) for s in units.slices), default=0.0)
    if sides is not None:
        rows = [_matrix_rows(params, units, side) for side in sides]
    else:
        rows = [_matrix_rows(params, units, units.incoming or units.slices)]
        if units.homogeneous and units.incoming:
            rows = [unit_length(rows[0])]
    most = min(units.size, *(r.shape[1] for r in rows))
    spectra, rank, expected = [], 0, 0
    for f, own in enumerate(distinct):
        members = np.arange(f * units.size, (f + 1) * units.size)
        part = [r[members[live[members]]] for r in rows]
        allowed = min(own, most)
        values = (_product_values(*part) if len(part) == 2 else np.linalg.svd(part[0], compute_uv=False))[:allowed]
        longest = max(units.size, *(r.shape[1] for r in rows))
        rank += numerical_rank(values, shape=(longest, most), eps=eps, gap=tol)
        expected += allowed
        spectra.append(values)
    spectrum = np.sort(np.concatenate([*spectra, np.zeros(0)]))[::-1]
    return ClassRank(spectrum, rank, most * units.fibers, expected)


def _product_values(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Singular values of minusᵀ plus, from their triangular factors."""
    r_plus, r_minus = (np.linalg.qr(m.T).R for m in (plus, minus))
    return np.asarray(np.linalg.svd(r_minus @ r_plus.T, compute_uv=False))


def _matrix_rows(params: Mapping[str, Tensor], units: Units, slices: Sequence[Slice]) -> np.ndarray:
    """Rows without the biases, which would let a layer of rank r look like rank r + 1."""
    weights = tuple(s for s in slices if params[s.param].ndim > 1) or tuple(slices)
    return unit_rows(params, dataclasses.replace(units, slices=weights), None)


def numerical_rank(
    matrix: np.ndarray | Tensor,
    *,
    shape: tuple[int, int] | None = None,
    eps: float | None = None,
    gap: float = DEFAULT_TOLERANCE,
) -> int:
    """Number of singular values that are not zero.

    Zero is what lies behind a gap of a factor 10 whose lower edge is below ``σ₁ gap/(10 max(n, m))``, far under the
    smallest singular value of a random square matrix (the tail of a layer that weight decay has thinned never reaches
    rounding), or below what rounding makes, 8·eps·‖A‖_F(1/√n + 1/√m); a single value needs a gap of 1000 there, since
    in half precision the smallest value of a healthy matrix lies below rounding too. In single and double precision
    what lies below a quarter of that rounding is zero without a gap.

    Args:
        matrix: a matrix, or its singular values, descending.
        shape: of the matrix, if singular values are given.
        eps: of the precision in which the data was made; default that of ``matrix``.
        gap: as above; 0 for rounding alone.

    Returns:
        The rank; 0 for zeros and for nothing.

    Example:
        >>> a = np.outer([1.0, 2.0, 3.0], [1.0, 1.0]).astype("float32")  # rank 1 up to rounding in float32
        >>> numerical_rank(a), numerical_rank(np.zeros((3, 3)))
        (1, 0)
    """
    if isinstance(matrix, Tensor):
        eps = _epsilon(matrix.dtype) if eps is None else eps
        matrix = matrix.detach().double().cpu().numpy()
    eps = float(np.finfo(matrix.dtype).eps) if eps is None and matrix.dtype.kind == "f" else eps or 0.0
    if matrix.ndim == 2:
        shape = shape or (matrix.shape[0], matrix.shape[1])
        matrix = np.linalg.svd(matrix.astype(float), compute_uv=False) if matrix.size else np.zeros(0)
    if not matrix.size or not matrix[0] > 0:
        return 0
    n, m = shape or (len(matrix), len(matrix))
    relative = matrix / matrix[0]
    rounding = 8 * eps * float(np.linalg.norm(relative)) * (1 / math.sqrt(n) + 1 / math.sqrt(m))
    smallest = max(rounding / 4 if eps < _HALF else 0.0, max(n, m) * float(np.finfo(float).eps))
    rank = int((relative > smallest).sum())
    for i in range(1, rank):
        ratio = relative[i - 1] / relative[i]
        below = relative[i] < rounding and (i < len(relative) - 1 or ratio > 1000)
        if ratio > 10 and (below or relative[i] < gap / (10 * max(n, m))):
            return i
    return rank


def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def effective_rank(spectrum: np.ndarray | Tensor) -> float:
    """Exp of the entropy of σ_i/Σσ: r for r equal singular values, 1 for one, 0 for none (Roy and Vetterli 2007).

    Args:
        spectrum: singular values, or a matrix.

    Returns:
        The effective rank.

    Example:
        >>> effective_rank(np.array([2.0, 2.0, 0.0])), effective_rank(np.zeros(3))
        (2.0, 0.0)
    """
    if isinstance(spectrum, Tensor):
        spectrum = spectrum.detach().double().cpu().numpy()
    if spectrum.ndim == 2:
        spectrum = np.linalg.svd(spectrum.astype(float), compute_uv=False)
    total = float(np.sum(spectrum))
    if total <= 0:
        return 0.0
    p = spectrum[spectrum > 0] / total
    return float(np.exp(-np.sum(p * np.log(p))))
