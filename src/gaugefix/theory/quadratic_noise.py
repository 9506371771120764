"""SGD at the bottom of a quadratic loss: the covariance of its iterates, exact at a finite learning rate.

Gradients are Hw plus noise of covariance C that is independent from step to step, and the update is that of
``torch.optim.SGD``: m ← μm + g, w ← w − lr·m. C is that of the minibatch, per-sample covariance / batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_ASYMMETRY = 1e-8
_NULL = 1e-12


@dataclass(frozen=True, eq=False)
class Fluctuation:
    """How far the iterates of SGD scatter about a minimum.

    Attributes:
        covariance: Σ, ``(D, D)``, or ``(D,)`` along the eigenvectors if the curvatures came as ``(D,)``; nan if not
            stable, and along directions without curvature, where nothing pulls back.
        excess_loss: ½Tr HΣ, by which the mean loss lies above the minimum; without flat directions.
        stable: whether lr is below the limit and no curvature is negative.
        lr_limit: 2(1 + μ)/h_max of the noise-free run; 0 at a saddle.
        undetermined: number of directions without curvature.
    """

    covariance: Float[np.ndarray, "D D"] | Float[np.ndarray, " D"]
    excess_loss: float
    stable: bool
    lr_limit: float
    undetermined: int


def stationary_covariance(
    hessian: Float[np.ndarray, "D D"] | Float[np.ndarray, " D"],
    noise: Float[np.ndarray, "D D"] | Float[np.ndarray, " D"],
    lr: float,
    momentum: float = 0.0,
    precond: Float[np.ndarray, "D D"] | Float[np.ndarray, " D"] | None = None,
) -> Fluctuation:
    """Stationary covariance of SGD with momentum on ½wᵀHw, in discrete time and at any learning rate.

    In the eigenbasis of H

        Σ_ij = lr·C_ij / [(1 − μ)(h_i + h_j) − lr·((1 + μ²)h_i h_j − μ(h_i² + h_j²))/(1 − μ²)],

    at μ = 0 lr·C_ij/(h_i + h_j − lr·h_i h_j). Continuous time would drop the term lr·h_i h_j and with it the limit of
    stability. A preconditioner P (steps of lr·P) is the same problem for P^½w.

    Args:
        hessian: H with the weight decay, or its eigenvalues.
        noise: C of a minibatch, mean over the stationary law if it depends on w; in the form of ``hessian``.
        lr: learning rate.
        momentum: μ in [0, 1).
        precond: P, positive definite, in the form of ``hessian``; None for the identity.

    Returns:
        The covariance, with ``stable=False`` and nan where there is none.

    Raises:
        ValueError: if a shape, symmetry or range does not fit, or a dense H has directions without curvature.

    Source: arXiv 2102.05375 (E1), and 2012.03636.

    Example:
        >>> found = stationary_covariance(np.array([1.0, 0.5]), np.array([0.1, 0.1]), lr=1.0)
        >>> found.covariance.round(4).tolist(), found.lr_limit
        ([0.1, 0.1333], 2.0)
    """
    if not (lr > 0 and math.isfinite(lr)) or not 0 <= momentum < 1:
        raise ValueError(
            f"stationary_covariance needs lr > 0 and momentum in [0, 1), got lr={lr!r}, momentum={momentum!r}."
        )
    h, c = np.asarray(hessian, dtype=float), np.asarray(noise, dtype=float)
    p = np.ones(h.shape[0]) if precond is None else np.asarray(precond, dtype=float)
    if h.shape != c.shape or h.ndim not in {1, 2} or (precond is not None and p.shape != h.shape):
        raise ValueError(f"hessian, noise and precond must have one shape (D,) or (D, D), got {h.shape}, {c.shape}.")
    if h.ndim == 1:
        if (p <= 0).any():
            raise ValueError("precond must be positive definite.")
        return _diagonal(h * p, c * p, p, lr, momentum)
    for name, matrix in (("hessian", h), ("noise", c), *([("precond", p)] if precond is not None else [])):
        if not np.allclose(matrix, matrix.T, rtol=0, atol=_ASYMMETRY * (np.abs(matrix).max() or 1.0)):
            raise ValueError(f"stationary_covariance: {name} must be symmetric.")
    return _dense(h, c, None if precond is None else p, lr, momentum)


def _diagonal(h: np.ndarray, c: np.ndarray, p: np.ndarray, lr: float, momentum: float) -> Fluctuation:
    flat = np.abs(h) <= _NULL * (np.abs(h).max(initial=0.0) or 1.0)
    limit = _limit(h[~flat], momentum)
    stable = lr < limit
    covariance = np.full(h.shape, np.nan)
    if stable:
        inside = ~flat
        covariance[inside] = lr * c[inside] / _pull(h[inside], h[inside], lr, momentum)
    excess = float((h * covariance)[~flat].sum()) / 2 if stable else math.inf
    return Fluctuation(covariance * p, excess, bool(stable), limit, int(flat.sum()))


def _dense(h: np.ndarray, c: np.ndarray, p: np.ndarray | None, lr: float, momentum: float) -> Fluctuation:
    root = np.eye(len(h))
    if p is not None:
        values, vectors = np.linalg.eigh((p + p.T) / 2)
        if values[0] <= 0:
            raise ValueError(f"precond must be positive definite, its lowest eigenvalue is {values[0]:.3g}.")
        root = (vectors * np.sqrt(values)) @ vectors.T
    curvature, basis = np.linalg.eigh(root @ (h + h.T) @ root / 2)
    if (np.abs(curvature) <= _NULL * (np.abs(curvature).max() or 1.0)).any():
        raise ValueError(
            "stationary_covariance: H has directions without curvature, along which the covariance is not defined. "
            "Give the eigenvalues and the noise along the eigenvectors instead, or add weight decay."
        )
    limit = _limit(curvature, momentum)
    if not lr < limit:
        return Fluctuation(np.full(h.shape, np.nan), math.inf, False, limit, 0)
    rotated = basis.T @ root @ (c + c.T) @ root @ basis / 2
    inner = lr * rotated / _pull(curvature[:, None], curvature[None, :], lr, momentum)
    back = root @ basis
    return Fluctuation(back @ inner @ back.T, float((curvature * np.diag(inner)).sum()) / 2, True, limit, 0)


def _limit(h: np.ndarray, momentum: float) -> float:
    if not h.size:
        return math.inf
    return 0.0 if h.min() < 0 else 2 * (1 + momentum) / float(h.max())


def _pull(a: np.ndarray, b: np.ndarray, lr: float, momentum: float) -> np.ndarray:
    """What divides lr·C between two eigenvectors."""
    mixed = (1 + momentum**2) * a * b - momentum * (a * a + b * b)
    return np.asarray((1 - momentum) * (a + b) - lr * mixed / (1 - momentum**2))
