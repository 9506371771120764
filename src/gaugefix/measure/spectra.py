"""Rank of a class of units: its singular values, how many count, how many there effectively are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.measure.sizes import unit_length, unit_rows
from gaugefix.symmetry import Units
from gaugefix.symmetry.units import Role


def class_spectrum(
    params: Mapping[str, Tensor], units: Units, live: np.ndarray, distinct: int
) -> tuple[np.ndarray, int]:
    """Singular values of a class: of the incoming rows of its live units, or of the product of a linear class.

    Rows have norm 1 if scale is a gauge of the activation.

    Args:
        params: parameters by name.
        units: the class.
        live: ``(n,)`` mask from `live_units`.
        distinct: live units after merging duplicates; more singular values than that there cannot be.

    Returns:
        The singular values, descending, and their largest possible number given the shapes.
    """
    rows = _weight_rows(params, units, "write" if units.incoming else None)
    out = _weight_rows(params, units, "read")
    if units.activation == "identity" and units.incoming and units.outgoing:
        matrix = out[live].T @ rows[live]
        max_rank = min(len(rows), rows.shape[1], out.shape[1])
        values = np.linalg.svd(matrix, compute_uv=False)
        return values[: min(distinct, max_rank)], max_rank
    if units.homogeneous and units.incoming:
        rows = unit_length(rows)
    max_rank = min(rows.shape)
    return np.linalg.svd(rows[live], compute_uv=False)[: min(distinct, max_rank)], max_rank


def _weight_rows(params: Mapping[str, Tensor], units: Units, role: Role | None) -> np.ndarray:
    """Rows without the biases, which would let a layer of rank r look like rank r + 1."""
    weights = tuple(s for s in units.slices if params[s.param].ndim > 1)
    if not any(role is None or s.role == role for s in weights):
        return unit_rows(params, units, role)
    return unit_rows(params, dataclasses.replace(units, slices=weights), role)


def numerical_rank(spectrum: np.ndarray, max_rank: int, units: Units, params: Mapping[str, Tensor], tol: float) -> int:
    """Number of singular values that are not zero: above rounding, and before a gap far below those of random matrices.

    Args:
        spectrum: descending.
        max_rank: what the shapes allow.
        units: the class.
        params: parameters by name, for shapes and dtypes.
        tol: relative size that counts as zero, as in `collapse_report`.

    Returns:
        The rank.
    """
    if not spectrum.size or spectrum[0] == 0:
        return 0
    longest = max(len(units), *(params[s.param].shape[1] for s in units.slices if params[s.param].ndim > 1), max_rank)
    eps = max(_epsilon(params[s.param].dtype) for s in units.slices)
    relative = spectrum / spectrum[0]
    rank = int((relative > longest * eps).sum())
    for i in range(1, rank):
        below = relative[i] < tol / (10 * longest)
        if below and relative[i - 1] > 10 * relative[i]:
            return i
    return rank


def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def effective_rank(spectrum: Float[np.ndarray, " r"]) -> float:
    """Exp of the entropy of σ_i/Σσ: r for r equal singular values, 1 for one, 0 for none (Roy and Vetterli 2007).

    Args:
        spectrum: singular values.

    Returns:
        The effective rank.

    Example:
        >>> effective_rank(np.array([2.0, 2.0, 0.0])), effective_rank(np.zeros(3))
        (2.0, 0.0)
    """
    total = float(np.sum(spectrum))
    if total <= 0:
        return 0.0
    p = spectrum[spectrum > 0] / total
    return float(np.exp(-np.sum(p * np.log(p))))
