"""Closed forms for one pair of matrices that a general linear group acts on: M₊ → AM₊, M₋ → A⁻ᵀM₋."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def balanced_pair(plus: Float[Tensor, "n p"], minus: Float[Tensor, "n q"]) -> tuple[Tensor, Tensor, Tensor]:
    """The pair of least norm with the same product, in its principal axes.

    With M₋ᵀM₊ = UΣVᵀ it is M₊ = √Σ Vᵀ, M₋ = √Σ Uᵀ; rows behind the rank are zero. A singular pair has no balanced
    point on its orbit, but a limit of the orbit is one and the function, which sees the product alone, is the same.

    Args:
        plus: M₊.
        minus: M₋.

    Returns:
        New M₊ and M₋ and the n singular values Σ, descending; those at rounding level are zero.

    Example:
        >>> a, b, s = balanced_pair(torch.tensor([[4.0]]), torch.tensor([[1.0]]))
        >>> a.item(), b.item(), s.item()
        (2.0, 2.0, 4.0)
    """
    n = len(plus)
    q_plus, r_plus = torch.linalg.qr(plus.T)
    q_minus, r_minus = torch.linalg.qr(minus.T)
    u, s, vt = torch.linalg.svd(r_minus @ r_plus.T, full_matrices=False)
    floor = 10 * max(plus.shape[1], minus.shape[1], n) * torch.finfo(s.dtype).eps
    s = torch.where(s > floor * s.max().clamp_min(1e-300), s, torch.zeros_like(s)) if len(s) else s
    root = s.sqrt()[:, None]
    new_plus, new_minus = torch.zeros_like(plus), torch.zeros_like(minus)
    new_plus[: len(s)] = root * (vt @ q_plus.T)
    new_minus[: len(s)] = root * (u.T @ q_minus.T)
    values = s.new_zeros(n)
    values[: len(s)] = s
    return new_plus, new_minus, values


def nearest_turn(old: Float[Tensor, "n p"], new: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """The rotation that makes the map from ``old`` to ``new`` symmetric and positive: no turning beyond need."""
    u, _, vt = torch.linalg.svd(new @ torch.linalg.pinv(old))
    turn: Tensor = (u @ vt).T
    return turn


def spd_power(matrix: Float[Tensor, "n n"], power: float) -> Float[Tensor, "n n"]:
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    result: Tensor = (vectors * values.clamp_min(1e-300) ** power) @ vectors.T
    return result


def geometric_mean_map(source: Float[Tensor, "n n"], target: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The symmetric positive S with S·source·S = target, S = K^(−½)(K^½ P K^½)^½ K^(−½) for source K, target P.

    Args:
        source: K, symmetric positive.
        target: P, symmetric positive.

    Returns:
        S.

    Example:
        >>> geometric_mean_map(torch.tensor([[4.0]]), torch.tensor([[1.0]])).item()
        0.5
    """
    root, inverse = spd_power(source, 0.5), spd_power(source, -0.5)
    return inverse @ spd_power(root @ target @ root, 0.5) @ inverse
