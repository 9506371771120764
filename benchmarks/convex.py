"""Constraints imposed by factors against the solvers of the convex problems that they stand for, and what they cost.

How far the objective is above the best of all solvers, whether the same weights, groups or singular values survive,
and the time relative to the fastest specialised solver: factors are for networks, where no such solver exists; on
convex problems they are slower, and the rows say by how much. Needs the extra ``peers``; rows of a library that is
absent are left out.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare
from gaugefix.control import impose
from gaugefix.studies.constraint_solvers import minimise

GAP = 1e-9
Solver = Callable[[], np.ndarray]


def rows() -> list[Row]:
    """All comparisons."""
    return [*_lasso(0.1), *_lasso(0.01), *_group_lasso(), *_nuclear(), *_logistic(), *_low_rank_layer()]


def _have(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _linear(n_in: int, n_out: int = 1) -> nn.Linear:
    """A layer with small random weights."""
    layer = nn.Linear(n_in, n_out, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0)))
    return layer


def _timed(solve: Solver) -> tuple[np.ndarray, float]:
    start = time.process_time()
    return solve(), time.process_time() - start


def _judge(
    name: str,
    what: str,
    ours: dict[str, Solver],
    theirs: dict[str, Solver],
    objective: Callable[[np.ndarray], float],
    sizes: Callable[[np.ndarray], np.ndarray],
) -> list[Row]:
    """Rows for every solver of ours: gap to the best solution found, difference in what survives, relative time."""
    reference = {}
    for label, solve in theirs.items():
        solve()  # compiles
        reference[label] = _timed(solve)
    best_label = min(reference, key=lambda k: objective(reference[k][0]))
    best, fastest = reference[best_label][0], min(reference, key=lambda k: reference[k][1])
    alive = sizes(best) > 1e-9 * sizes(best).max()
    out = []
    for label, solve in ours.items():
        found, seconds = _timed(solve)
        survivors = sizes(found) > impose.noise_floor(sizes(found)).threshold
        note = f"best of {', '.join(theirs)}: {objective(best):.12g} with {int(alive.sum())} {what} ({best_label})"
        gap = float(objective(found) - objective(best))
        out += [
            Row(f"{name}, {label}: objective above the best", gap, "", GAP, note=note),
            Row(f"{name}, {label}: {what} that differ", float((survivors != alive).sum()), "", 0.0),
            Row(
                f"{name}, {label}: time over {fastest}", seconds / max(reference[fastest][1], 1e-6), "×",
                note=f"{seconds:.2f} s against {1e3 * reference[fastest][1]:.1f} ms",
            ),
        ]  # fmt: skip
    return out


def _lasso(ratio: float) -> list[Row]:
    """P8: n = 200, d = 1000, 20 true weights."""
    from sklearn.linear_model import Lasso

    rng = np.random.default_rng(0)
    n, d, k = 200, 1000, 20
    x, w = rng.standard_normal((n, d)), np.zeros(d)
    chosen = rng.choice(d, k, replace=False)
    w[chosen] = rng.standard_normal(k) + np.sign(rng.standard_normal(k))
    y = x @ w + 0.1 * rng.standard_normal(n)
    alpha = ratio * np.abs(x.T @ y).max() / n
    inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)

    def loss(layer: nn.Module) -> Tensor:
        return (layer(inputs)[:, 0] - outputs).square().sum() / (2 * n)

    def lbfgs() -> np.ndarray:
        layer = impose.sparse(_linear(d), "weight", strength=alpha)
        minimise(layer, lambda: loss(layer))
        return layer.weight.detach().numpy()[0]

    def adam() -> np.ndarray:
        layer = impose.sparse(_linear(d), "weight", strength=alpha)
        optimizer = impose.optimizer(torch.optim.Adam, layer, lr=0.03)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000)
        for _ in range(4000):
            optimizer.zero_grad()
            loss(layer).backward()
            optimizer.step()
            schedule.step()
        return layer.weight.detach().numpy()[0]

    models = {"scikit-learn": Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=200_000)}
    if _have("celer"):
        from celer import Lasso as Celer

        models["celer"] = Celer(alpha, fit_intercept=False, tol=1e-12)
    if _have("skglm"):
        from skglm import Lasso as Skglm

        models["skglm"] = Skglm(alpha, fit_intercept=False, tol=1e-12)
    return _judge(
        f"Lasso 200×1000, alpha = {ratio:g} of the largest",
        "weights",
        {"L-BFGS": lbfgs, "Adam, 4000 steps": adam},
        {name: _fit(model, x, y) for name, model in models.items()},
        lambda v: 0.5 / n * ((y - x @ v) ** 2).sum() + alpha * np.abs(v).sum(),
        np.abs,
    )


def _fit(model: object, x: np.ndarray, y: np.ndarray) -> Solver:
    def solve() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(model.fit(x, y).coef_).ravel().copy()  # type: ignore[attr-defined]

    return solve


def _group_lasso() -> list[Row]:
    """P9: 60 groups of 5, 6 of them true."""
    if not _have("skglm"):
        return []
    from skglm import GroupLasso

    rng = np.random.default_rng(0)
    n, groups, size = 200, 60, 5
    x, w = rng.standard_normal((n, groups * size)), np.zeros(groups * size)
    for g in rng.choice(groups, 6, replace=False):
        w[g * size : (g + 1) * size] = rng.standard_normal(size)
    y = x @ w + 0.5 * rng.standard_normal(n)

    def norms(v: np.ndarray) -> np.ndarray:
        return np.linalg.norm(v.reshape(groups, size), axis=1)

    alpha = 0.1 * norms(x.T @ y).max() / n
    inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)
    labels = (torch.arange(groups * size) // size)[None]

    def ours() -> np.ndarray:
        layer = impose.group_sparse(_linear(groups * size), "weight", strength=alpha, groups=labels)
        minimise(layer, lambda: (layer(inputs)[:, 0] - outputs).square().sum() / (2 * n))
        return layer.weight.detach().numpy()[0]

    return _judge(
        "Group lasso 60×5",
        "groups",
        {"L-BFGS": ours},
        {"skglm": _fit(GroupLasso(groups=size, alpha=alpha, fit_intercept=False, tol=1e-12), x, y)},
        lambda v: 0.5 / n * ((y - x @ v) ** 2).sum() + alpha * norms(v).sum(),
        norms,
    )


def _nuclear() -> list[Row]:
    """P10: a 50×40 matrix of rank 5 from 200 samples, against accelerated proximal gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, d, m, r = 200, 50, 40, 5
    x = normal(n, d)
    y = x @ (normal(d, r) @ normal(r, m) / r**0.5) + 0.5 * normal(n, m)
    strength = 0.09 * float(torch.linalg.matrix_norm(x.T @ y / n, 2))

    def fista() -> np.ndarray:
        step = 1 / float(torch.linalg.matrix_norm(x.T @ x / n, 2))
        w = z = torch.zeros(d, m, dtype=torch.float64)
        t = 1.0
        for _ in range(3000):
            left, sizes, right = torch.linalg.svd(z - step * x.T @ (x @ z - y) / n, full_matrices=False)
            new, t_new = (left * (sizes - strength * step).clamp_min(0)) @ right, (1 + (1 + 4 * t * t) ** 0.5) / 2
            z, w, t = new + (t - 1) / t_new * (new - w), new, t_new
        return w.T.numpy()

    def ours() -> np.ndarray:
        layer = impose.low_rank(_linear(d, m), "weight", strength=strength)
        minimise(layer, lambda: (layer(x) - y).square().sum() / (2 * n))
        return layer.weight.detach().numpy()

    def spectrum(w: np.ndarray) -> np.ndarray:
        return np.linalg.svd(w, compute_uv=False)

    def objective(w: np.ndarray) -> float:
        return 0.5 / n * ((y.numpy() - x.numpy() @ w.T) ** 2).sum() + strength * spectrum(w).sum()

    return _judge("Nuclear norm 50×40", "singular values", {"L-BFGS": ours}, {"FISTA": fista}, objective, spectrum)


def _logistic() -> list[Row]:
    """Breast cancer, standardised, no intercept: mean cross-entropy plus an L1 penalty; C = 1/(n·strength)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    n, strength = len(x), 0.01
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y).double()

    def ours() -> np.ndarray:
        layer = impose.sparse(_linear(x.shape[1]), "weight", strength=strength)
        minimise(layer, lambda: nn.functional.binary_cross_entropy_with_logits(layer(inputs)[:, 0], labels))
        return layer.weight.detach().numpy()[0]

    def objective(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -(2 * y - 1) * (x @ w)).mean() + strength * np.abs(w).sum())

    model = LogisticRegression(
        C=1 / (n * strength), l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-13, max_iter=100_000
    )
    return _judge(
        "L1 logistic regression", "weights", {"L-BFGS": ours}, {"scikit-learn": _fit(model, x, y)}, objective, np.abs
    )


def _low_rank_layer() -> list[Row]:
    """P10: forward and backward of a trainable 512×512 layer of rank 32, batch of 64."""
    if not _have("geotorch"):
        return []
    import geotorch

    torch.manual_seed(0)
    x = torch.randn(64, 512)
    ours, theirs, dense = nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 512)
    impose.low_rank(ours, "weight", rank=32)
    geotorch.low_rank(theirs, "weight", rank=32)

    def step(layer: nn.Module) -> Callable[[], object]:
        return lambda: layer(x).sum().backward()

    slow = compare({"geotorch": step(theirs)}, repeats=2)
    fast = compare({"ours": step(ours), "dense": step(dense)}, repeats=9, inner=10)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (ours, theirs)]
    note = f"{1e3 * fast['ours']:.2f} ms against {1e3 * slow['geotorch']:.0f} ms"
    return [
        Row("Low-rank layer 512×512, rank 32: time over geotorch", fast["ours"] / slow["geotorch"], "×", 0.2, 2, note),
        Row("Low-rank layer 512×512, rank 32: time over a dense layer", fast["ours"] / fast["dense"], "×", None, 9),
        Row("Low-rank layer 512×512, rank 32: parameters over geotorch", sizes[0] / sizes[1], "×", 0.2),
    ]
