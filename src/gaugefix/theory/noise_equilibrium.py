"""Where gradient noise leaves a charge at rest: the noise equilibrium of an orbit (arXiv 2402.07193).

Along θ_c = e^{cA}θ the gradients are e^{−cA}ĝ, so the noise side of the charge's drift falls and its own decay grows:
there is one point of rest, or none at a finite c. It is also the point of least gradient noise on the orbit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from gaugefix.theory.covariances import psd_power

Array = np.ndarray
_STEPS = 80


def rescaling_equilibrium(
    noise: Mapping[float, Float[Array, " n"]],
    norms: Mapping[float, Float[Array, " n"]] | None = None,
    *,
    temperature: float = 1.0,
    weight_decay: float = 0.0,
) -> Float[Array, " n"]:
    """The c at which Σ_q q(T e^{−2qc} N_q − 2λ e^{2qc} S_q) = 0: the shift of log-scale that brings a unit to rest.

    Two sides u (q = 1) and w (q = −1) without weight decay: e^{4c} = N_u/N_w.

    Args:
        noise: traces N_q of the per-sample gradient covariance by charge q, ``(n,)`` each.
        norms: squared norms S_q by charge; needed with weight decay.
        temperature: T = lr / batch_size.
        weight_decay: PyTorch's λ.

    Returns:
        ``(n,)``; infinite where only one side has noise (and nothing decays), nan where neither has.

    Raises:
        ValueError: if there is weight decay and no norms.

    Example:
        >>> rescaling_equilibrium({1.0: np.array([16.0]), -1.0: np.array([1.0])}).round(6)  # log(16)/4
        array([0.693147])
    """
    if weight_decay and norms is None:
        raise ValueError("rescaling_equilibrium: norms are needed with weight decay.")
    terms = [(q, -2 * q, temperature * np.asarray(v, float)) for q, v in noise.items()]
    terms += [(-q, 2 * q, 2 * weight_decay * np.asarray(v, float)) for q, v in (norms or {}).items() if weight_decay]
    up = sum(w for f, _, w in terms if f > 0) + 0 * terms[0][2]  # at rest somewhere only if both signs occur
    down = sum(w for f, _, w in terms if f < 0) + 0 * terms[0][2]
    low, high = np.full(up.shape, -50.0), np.full(up.shape, 50.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        positive = sum(f * w * np.exp(e * middle) for f, e, w in terms) > 0
        low, high = np.where(positive, middle, low), np.where(positive, high, middle)
    out = np.where((up > 0) & (down > 0), (low + high) / 2, np.where(up > 0, np.inf, -np.inf))
    return np.asarray(np.where((up > 0) | (down > 0), out, np.nan))


def matrix_equilibrium(plus: Float[Array, "n n"], minus: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The symmetric positive A with A⁻¹PA⁻¹ = AKA: θ₊ → Aθ₊, θ₋ → A⁻¹θ₋ brings the matrix charge to rest.

    A² = K^(−½)(K^½PK^½)^½K^(−½), the geometric mean of K⁻¹ and P.

    Args:
        plus: P, sum over the other axis of the gradient covariance of θ₊.
        minus: K, that of θ₋.

    Returns:
        A; nan where P or K is singular and the orbit has no point of rest.

    Example:
        >>> matrix_equilibrium(np.array([[16.0]]), np.array([[1.0]]))
        array([[2.]])
    """
    low = min(np.linalg.eigvalsh(m)[0] / max(np.trace(m), 1e-300) for m in (plus, minus))
    if not low > len(plus) * np.finfo(float).eps:
        return np.full_like(plus, np.nan)
    root, inverse = psd_power(minus, 0.5, singular=0.0), psd_power(minus, -0.5, singular=0.0)
    return psd_power(inverse @ psd_power(root @ plus @ root, 0.5, singular=0.0) @ inverse, 0.5, singular=0.0)
