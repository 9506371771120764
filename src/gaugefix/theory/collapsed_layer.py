"""A layer at the point of collapse: the weight decay that kills it, and what a new unit would gain.

Put a class of units at zero and add one infinitesimal unit with incoming weights w and outgoing weights u. To
second order the data loss changes by −uᵀE[g φ(w·h)], with h the input of the class and g = −∂ℓ/∂y the pull on what
it feeds. Weight decay costs (λ/2)(‖w‖² + ‖u‖²). The unit grows if and only if λ is below

- |φ'(0)| σ_max(E[g hᵀ]) for a smooth φ with φ(0) = 0,
- max_{‖w‖=1} ‖E[g φ(w·h)]‖₂ for a positively homogeneous φ.

At the collapsed state of a network with one hidden layer that number is its critical weight decay (arXiv 2205.12510,
general loss and activation); at any other point it is the birth threshold of a further unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.random import default_rng

Array = np.ndarray
_SMALLEST_STEP = 1e-7


@dataclass(frozen=True, eq=False)
class Ascent:
    """The best direction found for a homogeneous unit.

    Attributes:
        value: ‖E[g φ(w·h)]‖₂ at the best w.
        direction: ``(d,)`` that w, of norm 1.
        residual: relative gain of the last accepted step.
        converged: whether the best start stopped by itself.
        iterations: number of sweeps over the data.
    """

    value: float
    direction: Float[Array, " d"]
    residual: float
    converged: bool
    iterations: int


def signal_matrix(g: Float[Array, "n m"], h: Float[Array, "n d"]) -> Float[Array, "m d"]:
    """The signal matrix E[g hᵀ] = (1/n) Σ_k g_k h_kᵀ (arXiv 2205.12510).

    Args:
        g: pull of every sample on what the class feeds, −∂ℓ_k/∂y_k.
        h: input of the class.

    Returns:
        ``(m, d)``. A ValueError says so if the shapes do not fit or a value is not finite.

    Example:
        >>> signal_matrix(np.array([[1.0], [-1.0]]), np.array([[2.0, 0.0], [0.0, 4.0]]))
        array([[ 1., -2.]])
    """
    _check(g, h)
    matrix: Array = g.T @ h / len(h)
    return matrix


def smooth_threshold(g: Float[Array, "n m"], h: Float[Array, "n d"], slope: float = 1.0) -> float:
    """Birth threshold of a smooth unit with φ(0) = 0: |φ'(0)| σ_max(E[g hᵀ]).

    Args:
        g: pull on what the class feeds.
        h: input of the class; append a column of ones if the unit has a bias that is decayed like its weights.
        slope: φ'(0).

    Returns:
        The threshold in PyTorch's convention of weight decay.

    Example:
        >>> smooth_threshold(np.array([[1.0], [-1.0]]), np.array([[3.0, 0.0], [0.0, 4.0]]))
        2.5
    """
    return float(abs(slope) * np.linalg.norm(signal_matrix(g, h), 2))


def homogeneous_threshold(
    g: Float[Array, "n m"],
    h: Float[Array, "n d"],
    *,
    negative_slope: float = 0.0,
    starts: Float[Array, "s d"] | None = None,
    n_random: int = 20,
    max_iter: int = 400,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Ascent:
    """Birth threshold of a unit with φ(z) = max(z, 0) + a·min(z, 0): max over ‖w‖ = 1 of ‖E[g φ(w·h)]‖₂.

    Gradient ascent on the sphere from all starts at once: a full step is one power iteration of the locally linear
    map, and a step that does not raise the value is halved. The maximum is not convex; what is found is a lower
    bound, in practice the maximum when some starts agree.

    Args:
        g: pull on what the class feeds.
        h: input of the class; append a column of ones for a bias that is decayed like the weights.
        negative_slope: a; 0 for ReLU, 1 for a linear unit (then the result is σ_max of the signal matrix).
        starts: further starting directions, such as those of the live units.
        n_random: number of random directions.
        max_iter: largest number of steps.
        tolerance: relative gain below which a start is finished.
        seed: of the random directions.

    Returns:
        The best direction and its value. Cost: 3 products of (n, d) with (d, starts) per step.

    Raises:
        ValueError: if there is no start at all.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> h = rng.standard_normal((500, 3))
        >>> best = homogeneous_threshold(h[:, :1] * (h[:, :1] > 0), h)  # g = relu(e_1·h): the best unit is e_1
        >>> best.converged, bool(best.direction[0] > 0.99)
        (True, True)
    """
    _check(g, h)
    w = default_rng(seed).standard_normal((n_random, h.shape[1]))
    w = w if starts is None else np.vstack([starts, w])
    if not len(w):
        raise ValueError("homogeneous_threshold needs a start: give n_random >= 1 or starts.")
    return ascend(lambda rows: _pull(g, h, rows, negative_slope), w, max_iter=max_iter, tolerance=tolerance)


def ascend(
    pull: Callable[[Float[Array, "k d"]], tuple[Float[Array, " k"], Float[Array, "k d"]]],
    starts: Float[Array, "s d"],
    *,
    max_iter: int = 400,
    tolerance: float = 1e-10,
) -> Ascent:
    """Gradient ascent on the unit sphere from many starts at once, for a function that is homogeneous of degree one.

    A full step goes to the direction of the gradient (for a locally linear pull that is a power iteration); a step that
    does not raise the value is halved.

    Args:
        pull: values and gradients at rows of norm 1; only the direction of a gradient counts.
        starts: rows of any norm.
        max_iter: largest number of steps.
        tolerance: relative gain below which a start is finished.

    Returns:
        The best row found.
    """
    w = _normalise(starts)
    value, gradient = pull(w)
    step, gain, active = np.ones(len(w)), np.full(len(w), np.inf), value > 0
    iterations = 0
    while active.any() and iterations < max_iter:
        iterations += 1
        k = np.flatnonzero(active)
        trial = _normalise((1 - step[k, None]) * w[k] + step[k, None] * _normalise(gradient[k]))
        new_value, new_gradient = pull(trial)
        better = new_value > value[k]
        up, down = k[better], k[~better]
        gain[up] = new_value[better] / value[up] - 1
        w[up], value[up], gradient[up] = trial[better], new_value[better], new_gradient[better]
        step[up], step[down] = np.minimum(1.0, 2 * step[up]), step[down] / 2
        active[up] = gain[up] > tolerance
        active[down] = step[down] > _SMALLEST_STEP
    best = int(np.argmax(value))
    last_gain = float(gain[best]) if np.isfinite(gain[best]) else 0.0
    return Ascent(float(value[best]), w[best], last_gain, not bool(active[best]), iterations)


def homogeneous_pull(
    g: Float[Array, "n m"], h: Float[Array, "n d"], w: Float[Array, "s d"], negative_slope: float = 0.0
) -> Float[Array, " s"]:
    """‖E[g φ(ŵ·h)]‖₂ of given directions ŵ = w/‖w‖: what a ghost along each of them would grow by.

    Args:
        g: pull on what the class feeds.
        h: input of the class.
        w: directions, of any norm; a zero row gives 0.
        negative_slope: of the activation.

    Returns:
        ``(s,)``.
    """
    _check(g, h)
    return _pull(g, h, _normalise(w), negative_slope)[0]


def predicted_rank(singular_values: Float[Array, " r"], weight_decay: float, margin: float = 0.0) -> int:
    """Number of directions that survive a weight decay, #{i : σ_i > λ(1 − margin)}.

    At the collapsed state it is the rank just below the threshold, and exact at any λ for a linear layer with
    whitened inputs and squared error; at a stationary point of a linear class the live modes have σ_i = λ, and a
    margin is needed to count them.

    Args:
        singular_values: of the signal matrix, times |φ'(0)|.
        weight_decay: λ.
        margin: relative slack.

    Returns:
        The rank.

    Example:
        >>> predicted_rank(np.array([0.3, 0.1, 0.01]), 0.05)
        2
    """
    return int(np.sum(np.asarray(singular_values) > weight_decay * (1.0 - margin)))


def _pull(g: Array, h: Array, w: Array, negative_slope: float) -> tuple[Array, Array]:
    """Values ‖A(w)‖ with A = E[g φ(w·h)], and the gradients of ‖A‖²/2, for rows w of norm 1."""
    z = h @ w.T
    on = np.where(z > 0, 1.0, negative_slope)
    a = (on * z).T @ g / len(h)
    gradient = (on * (g @ a.T)).T @ h / len(h)
    return np.linalg.norm(a, axis=1), gradient


def _normalise(w: Array) -> Array:
    norm = np.linalg.norm(w, axis=1, keepdims=True)
    return np.asarray(w / np.where(norm > 0, norm, 1.0))


def _check(g: Array, h: Array) -> None:
    if g.ndim != 2 or h.ndim != 2 or len(g) != len(h) or not len(h):
        raise ValueError(f"g must be (n, m) and h (n, d) with one n >= 1, got {g.shape} and {h.shape}.")
    if not (np.isfinite(g).all() and np.isfinite(h).all()):
        raise ValueError("g and h must be finite.")
