"""Hessian-vector products through fused attention at the defaults of every library: do they work, are they right?

On a CPU the fused kernel behind `scaled_dot_product_attention` has no second derivative; it has to be left for the math
backend. The reference is a central difference of gradients in float64. Peers are left out where they are not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, missing
from gaugefix import Task
from gaugefix.measure import HessianOperator, hvp

PEERS = ("pyhessian", "curvlinops", "hessian_eigenthings")
RIGHT = 1e-6  # of the reference; its own error is about 1e-9
WIDTH = 8
Vector = Callable[[nn.Module, tuple[Tensor, Tensor], list[Tensor]], list[Tensor]]


class ByHand(nn.Module):
    """Queries, keys and values of one map, through the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)


class OfTheLibrary(nn.Module):
    """`nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions."""
        return self.attention(x, x, x, need_weights=False)[0]


class Classifier(nn.Module):
    """A mixing layer, mean over positions, output."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix, self.head = mix, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.mix(x).mean(1))


def models() -> dict[str, nn.Module]:
    """By name, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        mixes = {
            "scaled_dot_product_attention": ByHand(),
            "nn.MultiheadAttention": OfTheLibrary(),
            "nn.TransformerEncoderLayer": layer,
        }
        return {name: Classifier(mix).double() for name, mix in mixes.items()}


def methods() -> dict[str, Vector]:
    """Products of the Hessian of the mean cross-entropy with a vector."""
    found: dict[str, Vector] = {"ours, fresh": _fresh, "ours, kept graph": _kept, "torch, two backward passes": _twice}
    if not missing("pyhessian"):
        found["PyHessian 0.1"] = _pyhessian
    if not missing("curvlinops"):
        found["curvlinops 3.0"] = _curvlinops
    if not missing("hessian_eigenthings"):
        found["hessian-eigenthings 1.0a5"] = _eigenthings
    return found


def rows() -> list[Row]:
    """Models on which a method fails or is wrong."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, WIDTH, generator=generator, dtype=torch.float64)
    data = x, torch.arange(12) % 3
    cases = []
    for name, model in models().items():
        v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
        cases.append((name, model, v, _reference(model, data, v)))
    out = []
    for method, product in methods().items():
        outcomes = [(name, _outcome(product, model, data, v, reference)) for name, model, v, reference in cases]
        ours = method.startswith("ours")
        note = "; ".join(f"{name}: {outcome}" for name, (_, outcome) in outcomes)
        if ours and (absent := missing(*PEERS)):
            note += f"; {absent}"
        failed = sum(not works for _, (works, _) in outcomes)
        out.append(Row(f"product through attention, {method}", failed, "of 3 fail", 0 if ours else None, note=note))
    return out


def _outcome(
    product: Vector, model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor], reference: list[Tensor]
) -> tuple[bool, str]:
    """Whether it works, and its error or message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = product(model, data, v)
    except (RuntimeError, NotImplementedError) as error:
        return False, str(error).partition("\n")[0][:90]
    scale = max(float(t.abs().max()) for t in reference)
    worst = max(float((a.reshape(b.shape) - b).abs().max()) for a, b in zip(found, reference, strict=True)) / scale
    return worst < RIGHT, f"relative error {worst:.0e}"


def _reference(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor], step: float = 1e-5) -> list[Tensor]:
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]

    def gradient(factor: float) -> list[Tensor]:
        with torch.no_grad():
            for p, s, t in zip(params, start, v, strict=True):
                p.copy_(s + factor * t)
        return list(torch.autograd.grad(_loss(model, data), params))

    ahead, behind = gradient(step), gradient(-step)
    gradient(0.0)
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def _loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def _task(model: nn.Module, data: tuple[Tensor, Tensor]) -> Task:
    return Task(
        model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), lambda: [data],
        lr=0.1, weight_decay=0.0, batch_size=len(data[0]),
    )  # fmt: skip


def _named(model: nn.Module, v: list[Tensor]) -> dict[str, Tensor]:
    return {k: t for (k, _), t in zip(model.named_parameters(), v, strict=True)}


def _fresh(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    return list(hvp(_task(model, data), _named(model, v)).values())


def _kept(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    return list((HessianOperator(_task(model, data)) @ _named(model, v)).values())


def _twice(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    params = list(model.parameters())
    gradient = torch.autograd.grad(_loss(model, data), params, create_graph=True)
    return list(torch.autograd.grad(gradient, params, v))


def _pyhessian(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    h = hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
    return list(hessian_vector_product(h.gradsH, h.params, v))


def _curvlinops(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    from curvlinops import HessianLinearOperator

    return list(HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [data]) @ v)


def _eigenthings(model: nn.Module, data: tuple[Tensor, Tensor], v: list[Tensor]) -> list[Tensor]:
    import hessian_eigenthings as he

    operator = he.HessianOperator(model, [data], he.supervised_loss(nn.functional.cross_entropy))
    flat = operator.matvec(torch.cat([t.flatten() for t in v]))
    return list(flat.split([t.numel() for t in v]))
