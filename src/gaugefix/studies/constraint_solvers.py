"""Constraints imposed by factors against convex solvers: fused lasso, group lasso, tied vectors, nuclear norm.

The last claim of arXiv 2309.16932 in `gaugefix.studies.symmetry_constraint`: with θ = Nw + A⁺(u ⊙ v) and weight decay
λ on u and v, training solves the convex problem with the penalty λ‖Aθ‖. The reference is a solver that knows nothing of
factors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control import impose
from gaugefix.control.impose.maps import chain
from gaugefix.studies.framework import Evidence, Setting

_Make = Callable[[int], tuple[np.ndarray, np.ndarray]]
_Constrain = Callable[[nn.Module, float], nn.Module]
_Reference = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

STRENGTHS = (0.03, 0.1, 0.3)
SIZE, SAMPLES, COLUMNS = 12, 60, 4
GROUPS = np.arange(SIZE) // 3


def convex_solutions(setting: Setting) -> Evidence:
    """Largest deviation of a coefficient from the convex solution, in units of the largest, for every problem."""
    problems: dict[str, tuple[_Make, _Constrain, _Reference]] = {
        "fused lasso": (_vector, lambda m, s: impose.tied(m, "weight", strength=s, dim=1), _fused),
        "group lasso": (_vector, lambda m, s: impose.group_sparse(m, "weight", strength=s, groups=_groups()), _grouped),
        "tied vectors": (_matrix, lambda m, s: impose.tied(m, "weight", strength=s, units=(0, 1)), _tied),
        "nuclear norm": (_matrix, lambda m, s: impose.low_rank(m, "weight", strength=s), _nuclear),
    }
    cells = tuple(f"{name}, λ = {s:g}" for name in problems for s in STRENGTHS)
    measured = np.empty((len(setting.seeds), len(cells)))
    for row, seed in enumerate(setting.seeds):
        column = 0
        for make, constrain, reference in problems.values():
            x, y = make(seed)
            for strength in STRENGTHS:
                expected = reference(x, y, strength)
                found = _train(x, y, strength, constrain, seed)
                measured[row, column] = np.abs(found - expected).max() / np.abs(expected).max()
                column += 1
    return Evidence(np.zeros(len(cells)), measured, cells)


def _vector(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Regression on a piecewise constant vector with zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, SIZE))
    truth = np.repeat([1.0, 0.0, -0.8, 0.0], 3)
    return x, (x @ truth + 0.3 * rng.standard_normal(SAMPLES))[:, None]


def _matrix(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Regression on a matrix of rank two."""
    rng = np.random.default_rng(seed)
    x = np.linalg.qr(rng.standard_normal((SAMPLES, SIZE)))[0] * np.sqrt(SAMPLES)
    truth = rng.standard_normal((SIZE, 2)) @ rng.standard_normal((2, COLUMNS)) / 2
    return x, x @ truth + 0.3 * rng.standard_normal((SAMPLES, COLUMNS))


def _groups() -> Tensor:
    return torch.from_numpy(GROUPS)[None]


def _train(x: np.ndarray, y: np.ndarray, strength: float, constrain: _Constrain, seed: int) -> np.ndarray:
    """Minimise ‖y − xWᵀ‖²/(2n) + penalty of the factors with L-BFGS from random weights."""
    inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)
    layer = nn.Linear(x.shape[1], y.shape[1], bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)))
    constrain(layer, strength)
    minimise(layer, lambda: (layer(inputs) - outputs).square().sum() / (2 * len(x)))
    weight: np.ndarray = layer.weight.detach().numpy()
    return weight


def minimise(layer: nn.Module, loss: Callable[[], Tensor]) -> None:
    """L-BFGS on a loss and the penalty of the factors, to the precision of float64.

    Args:
        layer: with imposed constraints; its parameters move.
        loss: of the layer as it is.
    """
    solver = torch.optim.LBFGS(
        layer.parameters(), max_iter=4000, max_eval=40_000, history_size=40,
        line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16,
    )  # fmt: skip

    def closure() -> float:
        solver.zero_grad()
        value = loss() + impose.penalty(layer)
        value.backward()
        return float(value.detach())

    solver.step(closure)


def _shrink(z: np.ndarray, threshold: float) -> np.ndarray:
    """Proximal map of threshold·‖·‖₂ for every row."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.asarray(z * np.maximum(1 - threshold / np.maximum(norms, 1e-300), 0))


def _alternate(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, strength: float, rows: np.ndarray, *, rho: float = 1.0
) -> np.ndarray:
    """ADMM for ‖y − xθ‖²/(2n) + λ Σ_g ‖(aθ)_g‖₂; ``rows`` labels the rows of a θ that form a group."""
    gram, moment = x.T @ x / len(x), x.T @ y / len(x)
    step = np.linalg.inv(gram + rho * a.T @ a)
    z = dual = np.zeros((len(a), y.shape[1]))
    indicator = np.eye(rows.max() + 1)[rows]
    for _ in range(20_000):
        theta = step @ (moment + rho * a.T @ (z - dual))
        target = a @ theta + dual
        norms = np.sqrt(indicator.T @ (target**2).sum(1))
        shrunk = target * np.maximum(1 - strength / rho / np.maximum(norms, 1e-300), 0)[rows][:, None]
        change, z = np.abs(shrunk - z).max(), shrunk
        dual = target - z
        if change < 1e-13 and np.abs(a @ theta - z).max() < 1e-13:
            return np.asarray(theta.T)
    raise ArithmeticError("ADMM has not converged in 20 000 iterations.")


def _fused(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return _alternate(x, y, chain(None, SIZE), strength, np.arange(SIZE - 1))


def _grouped(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return _alternate(x, y, np.eye(SIZE), strength, GROUPS)


def _tied(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """With x orthonormal up to scale, outputs 0 and 1 share their mean, their difference shrinks as one vector."""
    theta = (x.T @ y / len(x)).T
    mean, half = (theta[0] + theta[1]) / 2, (theta[1] - theta[0]) / 2
    half = _shrink(half[None], strength)[0]
    return np.vstack([mean - half, mean + half, theta[2:]])


def _nuclear(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """With x orthonormal up to scale it is a soft threshold of the singular values of least squares."""
    left, sizes, right = np.linalg.svd((x.T @ y / len(x)).T, full_matrices=False)
    return np.asarray(left * np.maximum(sizes - strength, 0) @ right)
