"""How far CKA computed in batches is from CKA of all samples: ours and torch-cka's.

The truth is unbiased HSIC in six lines of float64. torch-cka is a peer: without it its rows are left out.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare
from gaugefix.measure import CKA, linear_cka

SAMPLES = 512
BATCHES = {"batches of 64": 64, "ragged last batch (96)": 96}
EXACT = 1e-9


def models() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """Two networks and their data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(SAMPLES, 64)
        a, b = (
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
            for _ in range(2)
        )
    return a, b, x


def truth(x: Tensor, y: Tensor) -> float:
    """CKA by the unbiased estimate of HSIC as it is written in the literature."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n, k, m = len(k), k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
        both = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (both - 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum()) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def in_batches(x: Tensor, y: Tensor, size: int) -> float:
    """Ours."""
    stream = CKA()
    for a, b in zip(x.split(size), y.split(size), strict=True):
        stream.update(a, b)
    return stream.compute()


def peer(a: nn.Module, b: nn.Module, x: Tensor, size: int) -> float | None:
    """torch-cka on the same layers, or None without it."""
    try:
        from torch_cka import CKA as Peer
    except ImportError:
        return None
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), batch_size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Peer(a, b, "a", "b", model1_layers=["1"], model2_layers=["3"], device="cpu")
        found.compare(loader, loader)
        return float(found.export()["CKA"])


def rows() -> list[Row]:
    """Absolute errors, and times as multiples of a forward pass in float64 through both networks."""
    a, b, data = models()
    with torch.no_grad():
        x, y = a[:2](data).double(), b[:4](data).double()
    exact = truth(x, y)
    note = f"CKA of all {SAMPLES} samples: {exact:.4f}"
    found = [Row("all samples at once, absolute error", abs(linear_cka(x, y) - exact), "", EXACT, note=note)]
    for name, size in BATCHES.items():
        found.append(Row(f"{name}, absolute error", abs(in_batches(x, y, size) - exact), "", EXACT))
        if (other := peer(a, b, data, size)) is not None:
            found.append(Row(f"{name}, absolute error of torch-cka 0.21", abs(other - exact), "", note=f"{other:.4f}"))
    constant = torch.full_like(x, 3.7)
    found.append(Row("constant features, distance from 0", abs(linear_cka(constant, y)), "", EXACT))
    times = compare({"ours": lambda: in_batches(x, y, 64), "pairs": lambda: truth(x, y)}, repeats=15, inner=5)
    found.append(
        Row("batches of 64, time over that of the kernel matrices", times["ours"] / times["pairs"], "×", 1.0, 15)
    )
    return found
