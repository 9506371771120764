"""The representation that SGD gives a deep linear network between two fixed maps, whatever its width, depth and inputs.

f(x) = M_O W_D ⋯ W_1 M_I Z x is trained on y = V x + ε with E xxᵀ = Σ_x and E εεᵀ = Σ_ε; M_I, M_O and the view Z are
fixed and invertible. The loss ‖f − y‖² has a minimum for every basis of every hidden layer. Gradient noise prefers, in
the limit of small learning rates, the minimum of

    S = Σ_k Tr[A_kᵀ Σ_ε A_k]·Tr[B_k Σ_x B_kᵀ],

A_k the map from behind layer k to the output, B_k that from x to its input. There all hidden layers of all such
networks have the same kernel. The weights are unique up to rotations U_i of the hidden layers (arXiv 2507.01098).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

_RANK = 1e-10


@dataclass(frozen=True, eq=False)
class EmbeddedSolution:
    """The weights at which gradient noise leaves an embedded deep linear network.

    Attributes:
        weights: W_1, …, W_D.
        layers: ``(d_i, d)`` maps of every hidden layer, h_i = layers[i] x.
        kernel: ``(d, d)`` K of every hidden layer: h_i(x)·h_i(x') ∝ xᵀKx'.
        fluctuation: S at this point, D·s^(2(D−1)/D)·(t_x t_ε)^(1/D): the smallest of all minima of the loss.
        singular_values: of √Σ_ε V √Σ_x, those above zero; s is their sum.
        valid: whether Σ_ε and Σ_x have full rank: directions without noise are not fixed.
    """

    weights: tuple[np.ndarray, ...]
    layers: tuple[np.ndarray, ...]
    kernel: np.ndarray
    fluctuation: float
    singular_values: np.ndarray
    valid: bool


def edln_solution(
    target: Float[np.ndarray, "e d"],
    inputs: Float[np.ndarray, "d d"],
    noise: Float[np.ndarray, "e e"],
    *,
    widths: Sequence[int],
    before: Float[np.ndarray, "d d"] | None = None,
    after: Float[np.ndarray, "e e"] | None = None,
    view: Float[np.ndarray, "d d"] | None = None,
    seed: int = 0,
) -> EmbeddedSolution:
    """Weights of an embedded deep linear network at the minimum that gradient noise selects.

    With √Σ_ε V √Σ_x = L S R, s = Tr S, t_x = Tr[M_I Z Σ_x Zᵀ M_Iᵀ] and t_ε = Tr[M_Oᵀ Σ_ε M_O],

        √Σ_ε M_O W_D = L Σ_D U_{D−1}ᵀ,    W_i = U_i Σ_i U_{i−1}ᵀ,    W_1 M_I Z √Σ_x = U_1 Σ_1 R,

    where Σ_1 and Σ_D are √S times s^(−(D−2)/2D)·t_x^((D−1)/2D)·t_ε^(−1/2D), and the same with t_x and t_ε exchanged,
    and Σ_i = s^(1/D)·(t_x t_ε)^(−1/2D) between. So h_i ∝ U_i √S R Σ_x^(−1/2) x in every hidden layer.

    Args:
        target: V.
        inputs: Σ_x.
        noise: Σ_ε.
        widths: of the hidden layers, one less than the depth D; at least the rank of V.
        before: M_I; the identity if None.
        after: M_O; the identity if None.
        view: Z; the identity if None.
        seed: of the rotations U_i.

    Returns:
        The solution. Where Σ_ε or Σ_x is singular it is one of many, with ``valid=False``.

    Raises:
        ValueError: if there is no hidden layer, one is narrower than the rank of √Σ_ε V √Σ_x, shapes do not fit, or a
            fixed map is not square and invertible.

    Source: arXiv 2507.01098 (closed form derived for its model), 2602.05065.

    Example:
        >>> found = edln_solution(np.diag([4.0, 1.0]), np.eye(2), np.eye(2), widths=[3])
        >>> np.allclose(found.weights[1] @ found.weights[0], np.diag([4.0, 1.0]))
        True
        >>> found.kernel.round(9).tolist(), round(found.fluctuation, 9)
        ([[4.0, 0.0], [0.0, 1.0]], 20.0)
    """
    target = np.asarray(target, dtype=float)
    e, d = target.shape
    roots = [_root(np.asarray(m, dtype=float), n, name) for m, n, name in ((inputs, d, "inputs"), (noise, e, "noise"))]
    (root_x, inverse_x, full_x), (root_e, inverse_e, full_e) = roots
    first = _fixed(before, d, "before") @ _fixed(view, d, "view")
    last = _fixed(after, e, "after")
    left, values, right = np.linalg.svd(root_e @ target @ root_x)
    rank = int((values > _RANK * max(values[0], np.finfo(float).tiny)).sum())
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    depth = len(widths) + 1
    if depth < 2:
        raise ValueError("edln_solution: widths must name at least one hidden layer, got none.")
    if min(widths) < rank:
        raise ValueError(
            f"edln_solution: every hidden layer needs at least {rank} units, the rank of the target, got "
            f"{tuple(widths)}; narrower networks learn the leading part only."
        )
    s = float(values.sum())
    t_x, t_e = float(np.trace(first @ inputs @ first.T)), float(np.trace(last.T @ noise @ last))
    share = 1 / (2 * depth)
    ends = s ** (-(depth - 2) * share) * np.sqrt(values)
    enter = ends * t_x ** ((depth - 1) * share) * t_e**-share
    leave = ends * t_e ** ((depth - 1) * share) * t_x**-share
    middle = s ** (1 / depth) * (t_x * t_e) ** -share
    rng = np.random.default_rng(seed)
    frames = [np.linalg.qr(rng.standard_normal((w, rank)))[0] for w in widths]
    weights = [frames[0] * enter @ right @ inverse_x @ np.linalg.inv(first)]
    weights += [middle * u @ v.T for v, u in pairwise(frames)]
    weights += [np.linalg.inv(last) @ inverse_e @ (left * leave) @ frames[-1].T]
    layers = [weights[0] @ first]
    for w in weights[1:-1]:
        layers.append(w @ layers[-1])
    kernel = inverse_x @ (right.T * values) @ right @ inverse_x
    fluctuation = depth * s ** (2 * (depth - 1) / depth) * (t_x * t_e) ** (1 / depth)
    return EmbeddedSolution(tuple(weights), tuple(layers), kernel, fluctuation, values, full_x and full_e)


def _root(matrix: np.ndarray, n: int, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Symmetric root, its pseudo-inverse, and whether it has one that is not pseudo."""
    if matrix.shape != (n, n):
        raise ValueError(f"edln_solution: {name} must be ({n}, {n}), got {matrix.shape}.")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if not values.max(initial=0.0) > 0 or values.min() < -_RANK * values.max():
        raise ValueError(f"edln_solution: {name} must be a covariance, its eigenvalues are {values.round(6).tolist()}.")
    seen = values > _RANK * values.max()
    roots = np.sqrt(np.where(seen, values, 0.0))
    inverse = np.where(seen, 1 / np.where(seen, roots, 1.0), 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T, bool(seen.all())


def _fixed(matrix: np.ndarray | None, n: int, name: str) -> np.ndarray:
    if matrix is None:
        return np.eye(n)
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (n, n) or np.linalg.cond(matrix) > 1 / _RANK:
        raise ValueError(f"edln_solution: {name} must be an invertible ({n}, {n}) matrix, got shape {matrix.shape}.")
    return matrix
