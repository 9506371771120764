"""How far the top eigenvalue of a Hessian is from the exact one: ours, PyHessian, curvlinops, hessian-eigenthings.

Every method gets the same float64 network and data. The truth is `numpy.linalg.eigh` of the whole matrix, formed by
forward over reverse mode. The peers are left out where they are not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.harness import Row, compare, missing
from gaugefix import Task
from gaugefix.errors import ConvergenceWarning
from gaugefix.measure import hessian_extremes

EXACT = 1e-6
PEERS = ("pyhessian", "curvlinops", "hessian_eigenthings")
Data = tuple[Tensor, Tensor]


class Saddle(nn.Module):
    """The spectrum of its mean output is −10, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """A quadratic form times the input."""
        return x * (self.w[1] ** 2 - 5 * self.w[0] ** 2)


class MeanOutput(nn.MSELoss):
    """A loss without targets; libraries want a kind that they know."""

    def forward(self, outputs: Tensor, _: Tensor) -> Tensor:
        """The mean."""
        return outputs.mean()


def classifier() -> tuple[nn.Module, Data]:
    """64-24-24-10 with tanh on 512 digits, 2,410 parameters, after 60 steps."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    data = torch.tensor(x[:512] / 16.0), torch.tensor(y[:512])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)
        ).double()  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, data


def spectrum(model: nn.Module, loss: nn.Module, data: Data) -> np.ndarray:
    """All eigenvalues, ascending."""
    shapes = {k: p.shape for k, p in model.named_parameters()}

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes.values()])
        params = {k: part.view(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}
        return loss(functional_call(model, params, (data[0],)), data[1])

    point = torch.cat([p.detach().flatten() for p in model.parameters()])
    columns = vmap(lambda v: jvp(grad(value), (point,), (v,))[1], chunk_size=128)
    return np.linalg.eigvalsh(columns(torch.eye(len(point), dtype=point.dtype)).numpy())


def peers(model: nn.Module, loss: nn.Module, data: Data) -> dict[str, Callable[[], float]]:
    """The largest eigenvalue by every peer that is there."""
    found: dict[str, Callable[[], float]] = {}
    if not missing("pyhessian"):
        from pyhessian import hessian

        def power(seed: int) -> float:
            torch.manual_seed(seed)
            return float(hessian(model, loss, data=data, cuda=False).eigenvalues(maxIter=100, tol=1e-3)[0][0])

        found |= {f"PyHessian 0.1, seed {seed}": lambda seed=seed: power(seed) for seed in (0, 1)}
    if not missing("curvlinops"):
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh

        def lanczos() -> float:
            operator = HessianLinearOperator(model, loss, list(model.parameters()), [data]).to_scipy()
            start = np.random.default_rng(0).standard_normal(operator.shape[0])
            return float(eigsh(operator, k=1, which="LA", return_eigenvectors=False, tol=1e-6, v0=start)[0])

        found["curvlinops 3.0 + scipy eigsh"] = lanczos
    if not missing("hessian_eigenthings"):
        import hessian_eigenthings as he

        def ritz(**options: int) -> float:
            operator = he.HessianOperator(model, [data], he.supervised_loss(loss))
            return float(he.lanczos(operator, k=1, which="LA", seed=0, **options).eigenvalues[0])

        found["hessian-eigenthings 1.0a5, defaults"] = ritz
        size = sum(p.numel() for p in model.parameters())
        found["hessian-eigenthings 1.0a5, 20 iterations"] = lambda: ritz(max_iter=min(20, size))
    return found


def rows() -> list[Row]:
    """Relative errors, and what an eigenvalue costs in gradients."""
    model, data = classifier()
    found = _errors("digits 64-24-24-10, 2,410 parameters", model, nn.CrossEntropyLoss(), data)
    x = torch.ones(4, dtype=torch.float64)
    found += _errors("saddle with the spectrum −10, 2", Saddle(), MeanOutput(), (x, x))
    return [*found, *_costs(model, data)]


def _task(model: nn.Module, loss: nn.Module, data: Data) -> Task:
    def each(m: nn.Module, batch: Data) -> Tensor:
        if isinstance(loss, MeanOutput):
            return m(batch[0])
        return nn.functional.cross_entropy(m(batch[0]), batch[1], reduction="none")

    return Task(model, each, lambda: [data], lr=0.1, weight_decay=0.0, batch_size=len(data[0]))


def _errors(name: str, model: nn.Module, loss: nn.Module, data: Data) -> list[Row]:
    exact, task = spectrum(model, loss, data), _task(model, loss, data)
    found = []
    for which, end in (("LA", -1), ("SA", 0)):
        ours = hessian_extremes(task, which=which)
        note = f"exact {exact[end]:.6g}, residual {ours.residual:.1e}, converged {ours.converged}, {ours.hvps} products"
        note = "; ".join(part for part in (note, missing(*PEERS)) if part)
        error = float(abs(ours.eigenvalues[0] - exact[end]) / abs(exact[end]))
        word = "largest" if which == "LA" else "smallest"
        found.append(Row(f"{name}: {word} eigenvalue, relative error", error, "", EXACT, note=note))
    top = exact[-1]
    for peer, value in _values(peers(model, loss, data)).items():
        shown = f"gives {value:.6g}" if np.isfinite(value) else "no value"
        found.append(Row(f"{name}: largest eigenvalue, {peer}", float(abs(value - top) / abs(top)), "", note=shown))
    return found


def _values(methods: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    out = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for name, method in methods.items():
            out[name] = method()
    return out


def _costs(model: nn.Module, data: Data) -> list[Row]:
    loss, task = nn.CrossEntropyLoss(), _task(model, nn.CrossEntropyLoss(), data)
    parameters = list(model.parameters())
    methods: dict[str, Callable[[], object]] = {
        "gradient": lambda: torch.autograd.grad(loss(model(data[0]), data[1]), parameters),
        "ours, residual 1e-6": lambda: hessian_extremes(task),
    }
    methods |= peers(model, loss, data)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", ConvergenceWarning)
        times = compare(methods, repeats=3)
    unit = times.pop("gradient")
    return [Row(f"cost of the largest eigenvalue, {k}", t / unit, "× a gradient", repeats=3) for k, t in times.items()]
