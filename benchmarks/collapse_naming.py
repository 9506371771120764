"""Naming a planted collapse: a confusion matrix over kinds of layers, with false alarms, next to weightwatcher."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from gaugefix import Symmetries, find_symmetries
from gaugefix.measure import collapse_report

SEEDS = 5
Params = dict[str, Tensor]
Rows = Callable[[Params], tuple[Tensor, Tensor, Tensor | None]]


class Layer:
    """One kind of layer: a model, the class that is planted in, and views of its units.

    Args:
        name: for the table.
        model: fresh weights.
        example: input for the search.
        pick: which class, by its name and kind.
        views: incoming rows ``(n, d)``, outgoing rows ``(n, m)`` and the bias of the units, as views of the parameters.
        activation: "relu", "tanh", "gelu", "head" or "linear".
    """

    def __init__(
        self, name: str, model: nn.Module, example: Tensor, pick: Callable[[object], bool], views: Rows, activation: str
    ) -> None:
        self.name, self.model, self.views, self.activation = name, model, views, activation
        self.symmetries = _search(name, model, example)
        (self.units,) = [u.name for u in self.symmetries.units if pick(u)]


_FOUND: dict[str, Symmetries] = {}


def _search(name: str, model: nn.Module, example: Tensor) -> Symmetries:
    """The structure does not depend on the weights: one search per kind of layer."""
    if name not in _FOUND:
        _FOUND[name] = find_symmetries(model, (example,))
    return _FOUND[name]


def _mlp(activation: str) -> Layer:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation]
    model = nn.Sequential(nn.Linear(256, 512), act(), nn.Linear(512, 512), act(), nn.Linear(512, 10))
    return Layer(
        f"{activation} layer 512 × 512", model, torch.randn(2, 256), lambda u: u.name == "2",
        lambda p: (p["2.weight"], p["4.weight"].T, p["2.bias"]), activation,
    )  # fmt: skip


def _conv() -> Layer:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    return Layer(
        "convolution, 64 channels", model, torch.randn(2, 3, 9, 9), lambda u: u.name == "2",
        lambda p: (p["2.weight"].flatten(1), p["6.weight"].T, p["2.bias"]), "relu",
    )  # fmt: skip


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 8, batch_first=True), nn.Linear(64, 10)
        nn.init.normal_(self.attention.in_proj_bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def _heads() -> Layer:
    def views(p: Params) -> tuple[Tensor, Tensor, Tensor]:
        w, b = p["attention.in_proj_weight"], p["attention.in_proj_bias"]
        rows = w.reshape(3, 8, 8 * 64).transpose(0, 1)  # heads, (query key value), entries
        return (
            rows,
            p["attention.out_proj.weight"].reshape(64, 8, 8).permute(1, 0, 2),
            b.reshape(3, 8, 8).transpose(0, 1),
        )

    return Layer(
        "attention, 8 heads", _Attention(), torch.randn(2, 5, 64), lambda u: u.kind == "head", views, "head"
    )  # fmt: skip


def _queries() -> Layer:
    def views(p: Params) -> tuple[Tensor, Tensor, Tensor]:
        w, b = p["attention.in_proj_weight"], p["attention.in_proj_bias"].reshape(3, 8, 8)
        return w[:8], w[64:72], b[:2, 0].T

    return Layer(
        "queries and keys of a head", _Attention(), torch.randn(2, 5, 64),
        lambda u: u.kind == "head_dim" and not u.outgoing, views, "linear",
    )  # fmt: skip


class _Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 48)
        self.a, self.b = nn.Parameter(torch.randn(16, 64) / 8), nn.Parameter(torch.randn(48, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def _adapter() -> Layer:
    return Layer(
        "adapter B A of rank 16", _Adapter(), torch.randn(2, 64), lambda u: u.size == 16,
        lambda p: (p["a"], p["b"].T, None), "linear",
    )  # fmt: skip


LAYERS: tuple[Callable[[], Layer], ...] = (
    lambda: _mlp("relu"), lambda: _mlp("tanh"), lambda: _mlp("gelu"), _conv, _heads, _queries, _adapter,
)  # fmt: skip


def _plant(layer: Layer, params: Params, case: str, generator: torch.Generator) -> bool:
    """Plant a case in place; False where the kind of layer cannot have it."""
    rows, out, bias = layer.views(params)
    n, half = len(rows), len(rows) // 2
    sides = [rows, out] + ([bias] if bias is not None else [])
    if case == "collapsed":
        for t in sides:
            t.zero_()
    elif case == "dead":
        if layer.activation == "linear":
            return False  # in a basis of one's choice: that is low rank
        for t in sides:
            t[:half] *= 1e-4
    elif case in {"duplicate", "sign-tied"}:
        if layer.activation == "linear" or (case == "sign-tied" and layer.activation != "tanh"):
            return False
        sign = 1.0 if case == "duplicate" else -1.0
        for t in sides[:1] + sides[2:] + (sides[1:2] if layer.activation == "head" else []):
            t[half:] = sign * t[: n - half]
        rows += 1e-5 * rows.std() * torch.randn(rows.shape, generator=generator)
    elif case == "low rank":
        if layer.activation == "head":
            return False
        flat = rows.flatten(1)
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        s[max(2, len(s) // 16) :] *= 0.0
        rows.copy_(((u * s) @ v).reshape(rows.shape))
    elif case == "unbalanced":
        if layer.activation in {"relu", "linear"}:
            scale = torch.logspace(-2, 2, n)
            rows.mul_(scale[:, None])
            out.div_(scale[:, None])
            if bias is not None:  # two columns where both sides have one
                (bias if bias.ndim > 1 else bias[:, None])[:, 0] *= scale
                (bias if bias.ndim > 1 else bias[:, None])[:, 1:] /= scale[:, None]
        elif layer.activation == "head":  # its two general linear groups
            rows[:, 0] *= 30.0
            rows[:, 1] /= 30.0
        else:
            return False
    elif case == "antipodal":  # ReLU units w and −w are two features, of weights that span half the directions
        if layer.activation != "relu":
            return False
        rows[half:], bias[half:] = -rows[: n - half], -bias[: n - half]  # type: ignore[index]
    return True


#: planted case to the name it must get
CASES = {
    "healthy": "healthy", "unbalanced": "healthy", "antipodal": "low rank", "dead": "dead", "duplicate": "duplicate",
    "sign-tied": "sign-tied", "low rank": "low rank", "collapsed": "collapsed",
}  # fmt: skip


def _named(layer: Layer, params: Params) -> str:
    """The name that the report gives."""
    found = next(u for u in collapse_report(params, layer.symmetries).units if u.name == layer.units)
    short = {"dead units": "dead", "duplicate units": "sign-tied" if found.sign_tied else "duplicate"}
    if layer.activation == "linear" and found.verdict == "collapsed":
        return "collapsed"
    if found.verdict == "dead units" and layer.activation == "linear":
        return "collapsed"  # one fiber of several
    return " + ".join(short.get(v, v) for v in found.verdict.split(", "))


def confusion() -> dict[str, Counter[tuple[str, str]]]:
    """Counts of (planted, named) per kind of layer, over the seeds."""
    table: dict[str, Counter[tuple[str, str]]] = {}
    for make in LAYERS:
        for seed in range(SEEDS):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layer = make()
            for case in CASES:
                params = {k: p.detach().clone() for k, p in layer.model.named_parameters()}
                with torch.no_grad():
                    if _plant(layer, params, case, torch.Generator().manual_seed(seed)):
                        table.setdefault(layer.name, Counter())[CASES[case], _named(layer, params)] += 1
    return table


def rows() -> list[Row]:
    """Share of wrong names per kind of layer, false alarms, and what weightwatcher sees."""
    found, table = [], confusion()
    total: Counter[tuple[str, str]] = Counter()
    for name, counts in table.items():
        total += counts
        wrong = {pair: c for pair, c in counts.items() if pair[0] != pair[1]}
        note = "; ".join(f"{a} named {b}: {c}" for (a, b), c in sorted(wrong.items()))
        found.append(Row(f"{name}: wrong names of {sum(counts.values())}", sum(wrong.values()), "", 0.0, SEEDS, note))
    healthy = sum(c for (a, _), c in total.items() if a == "healthy")
    alarms = sum(c for (a, b), c in total.items() if a == "healthy" and b != "healthy")
    found.append(Row(f"false alarms of {healthy} healthy layers", alarms, "", 0.0, SEEDS))
    for planted in dict.fromkeys(CASES.values()):
        named = {b: c for (a, b), c in total.items() if a == planted}
        note = ", ".join(f"{b} {c}" for b, c in sorted(named.items()))
        found.append(
            Row(f"{planted}, named right", named.get(planted, 0), f"of {sum(named.values())}", None, SEEDS, note)
        )
    return found + list(_weightwatcher())


def _weightwatcher() -> Iterator[Row]:
    """``rank_loss`` of the same ReLU layer; it has no names, so that the figure is what tells cases apart."""
    if importlib.util.find_spec("weightwatcher") is None:
        return
    logging.disable(logging.CRITICAL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = _mlp("relu")
    import weightwatcher

    for case in ("healthy", "dead", "duplicate", "low rank", "collapsed"):
        params = {k: p.detach().clone() for k, p in layer.model.named_parameters()}
        with torch.no_grad():
            _plant(layer, params, case, torch.Generator().manual_seed(0))
        layer.model.load_state_dict(params)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            details = weightwatcher.WeightWatcher(model=layer.model).analyze(min_evals=0)
        own = details[(details["N"] == 512) & (details["M"] == 512)] if "rank_loss" in details else []
        value = float(own.iloc[0]["rank_loss"]) if len(own) else float("nan")
        yield Row(
            f"weightwatcher, rank_loss of a {case} layer",
            value,
            "",
            None,
            1,
            "dead units are 1e-4 of the others, copies differ by 1e-5",
        )
    logging.disable(logging.NOTSET)
