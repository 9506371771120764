"""Forecasts against real runs: does training live below each predicted threshold and die above it, at which rank?

What the rows of attention and the language model can show is limited: their weight decays are fixed, not multiples of a
threshold; a class of modes counts as right if its rank is the predicted one, no prediction as wrong; the hidden layer
counts as right if it is alive or below its threshold, which is easily met.

Every other row is a class of units of a network that is trained from its initial weights at a multiple of the critical
weight decay that was forecast before. All seeds are in one row; ``value`` is the share of the runs that did what was
foretold. The language model reads ``tinyshakespeare.txt`` in the folder of the environment variable GAUGEFIX_DATA and
is left out without it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Row
from gaugefix import Task, find_symmetries
from gaugefix.forecast import ClassForecast, forecast, whole_network_threshold
from gaugefix.studies.ghosts_and_drives import RowAttention

SEEDS = (0, 1, 2)
WINDOWS = 48  # of 33 symbols, for the language model
Data = tuple[Tensor, Tensor]


def rows() -> list[Row]:
    """All comparisons; about ten minutes on one core."""
    found = [r for activation in ("relu", "tanh", "identity") for r in hidden_layer(activation)]
    found += deep_network()
    found += channels()
    found += product_modes("digits, one head of attention", _digits_attention, steps=1000, lr=0.1, decays=(0.01, 0.03))
    text = _text()
    if text is not None:
        found += language_model(text)
        found += adapters(text)
    return found


# digits: one hidden layer


def hidden_layer(activation: str) -> list[Row]:
    """64-32-10: the layer lives just below its λ_c and dies just above it."""
    outcomes: dict[float, list[bool]] = {0.95: [], 1.05: []}
    limits = []
    for seed in SEEDS:
        task = _mlp_task((64, 32, 10), activation, seed)
        limit = _forecast(task)[0].critical_weight_decay
        limits.append(limit)
        for factor, lives in ((0.95, True), (1.05, False)):
            alive = _train(task, factor * limit, steps=1500, lr=1.0).alive
            outcomes[factor].append((alive > 0) == lives)
    note = f"λ_c = {_mean(limits)}"
    return [
        _row(f"digits 64-32-10 {activation}: {'alive' if factor < 1 else 'dead'} at {factor} λ_c", good, note)
        for factor, good in outcomes.items()
    ]


def deep_network() -> list[Row]:
    """64-64-64-10 dies at a jump far below the threshold of each layer."""
    outcomes: dict[float, list[bool]] = {0.9: [], 1.1: []}
    jumps, layers = [], []
    for seed in SEEDS:
        task = _mlp_task((64, 64, 64, 10), "relu", seed)
        symmetries = find_symmetries(task, verify=False)
        jump = whole_network_threshold(dataclasses.replace(task, weight_decay=0.02), symmetries, fresh=True)
        jumps.append(jump.lambda_c)
        layers.append(min(c.critical_weight_decay for c in forecast(task, symmetries, settle_steps=0).classes))
        for factor, lives in ((0.9, True), (1.1, False)):
            alive = _train(task, factor * jump.lambda_c, steps=1500, lr=0.2).alive
            outcomes[factor].append((alive > 0) == lives)
    note = f"jump at λ = {_mean(jumps)}; smallest λ_c of a layer {_mean(layers)}"
    return [
        _row(f"digits 64-64-64-10 relu: {'alive' if f < 1 else 'dead'} at {f} of the jump", good, note)
        for f, good in outcomes.items()
    ]


def channels() -> list[Row]:
    """A convolution with ReLU and global pooling before the output."""
    outcomes: dict[float, list[bool]] = {0.9: [], 1.1: []}
    limits = []
    x, y = _digits()
    data = (x.reshape(-1, 1, 8, 8), y)
    for seed in SEEDS:
        task = _task(_seeded(_convolution, seed), data, lr=0.5)
        limit = _forecast(task)[0].critical_weight_decay
        limits.append(limit)
        for factor, lives in ((0.9, True), (1.1, False)):
            alive = _train(task, factor * limit, steps=800, lr=0.2, momentum=0.8).alive
            outcomes[factor].append((alive > 0) == lives)
    note = f"λ_c = {_mean(limits)}"
    return [
        _row(f"digits, 8 channels relu: {'alive' if f < 1 else 'dead'} at {f} λ_c", good, note)
        for f, good in outcomes.items()
    ]


# product classes: ranks


def product_modes(
    name: str, make: Callable[[int], Task], *, steps: int, lr: float, decays: Sequence[float]
) -> list[Row]:
    """After training: is the rank of every class of modes the number of σ(G) at λ?"""
    out = []
    for decay in decays:
        predicted: dict[str, list[tuple[int | None, int | None, float]]] = {}
        for seed in SEEDS:
            task = dataclasses.replace(make(seed), weight_decay=decay, lr=lr)
            for c in _train(task, decay, steps=steps, lr=lr, momentum=0.9).classes:
                if c.rank is not None and c.name in {"q", "v"}:
                    predicted.setdefault(c.name, []).append((c.predicted_rank, c.rank, c.residual))
        for cls, triples in predicted.items():
            good = [p == r for p, r, _ in triples]
            shown = ", ".join(f"{p} / {r}" for p, r, _ in triples)
            worst = max(residual for _, _, residual in triples)
            note = f"rank predicted / observed {shown}; residual ≤ {worst:.2g}"
            out.append(_row(f"{name}, λ = {decay:g}: rank of {cls}", good, note))
    return out


# a small language model and its adapters


class Attention(nn.Module):
    """Causal attention with separate projections."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.heads, self.scale = heads, (d // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions."""
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class GPT(nn.Module):
    """One block, 32 wide: embedding, attention, MLP, output."""

    def __init__(self, vocabulary: int, d: int = 32, heads: int = 4, length: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.head = nn.Linear(d, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token."""
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x)


class Adapter(nn.Module):
    """A frozen linear map and a product of two factors beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, out, into = base, *base.weight.shape
        self.a, self.b = nn.Linear(into, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both."""
        return self.base(x) + self.b(self.a(x))


def language_model(text: Tensor) -> list[Row]:
    """Attention and MLP of a small GPT at weight decays below and above what each class bears."""
    out: list[Row] = []
    trained: dict[float, list[tuple[ClassForecast, ...]]] = {}
    for decay in (1e-2, 3e-2):
        for seed in SEEDS:
            task = _gpt_task(text, seed)
            trained.setdefault(decay, []).append(_train(task, decay, steps=400, lr=0.2, momentum=0.9).classes)
        for i, cls in enumerate(c.name for c in trained[decay][0]):
            runs = [classes[i] for classes in trained[decay]]
            if runs[0].kind == "residual" or runs[0].kind == "head":
                continue
            good = [_consistent(c) for c in runs]
            out.append(_row(f"GPT, λ = {decay:g}: {cls} ({runs[0].kind})", good, "; ".join(map(_describe, runs))))
    return out


def adapters(text: Tensor) -> list[Row]:
    """Adapters of rank 8 on a frozen GPT, fine-tuned on shifted text: rank below and above the threshold."""
    out = []
    for factor in (0.4, 1.3):
        runs: list[tuple[str, bool, str]] = []
        for seed in SEEDS:
            task = _adapter_task(text, seed)
            start = _forecast(_dead(task))
            limits = {c.name: c.kappa for c in start if c.rank is not None}
            decay = factor * max(limits.values())
            for c in _train(task, decay, steps=800, lr=0.2, momentum=0.9).classes:
                if c.rank is not None:
                    lives = limits[c.name] > decay
                    good = (c.rank > 0) == lives if factor > 1 else c.predicted_rank == c.rank
                    runs.append((c.name, good, f"{c.predicted_rank} / {c.rank}"))
        for cls in dict.fromkeys(name for name, _, _ in runs):
            mine = [r for r in runs if r[0] == cls]
            note = f"rank predicted / observed {', '.join(r[2] for r in mine)}"
            out.append(_row(f"adapter, λ = {factor:g} max κ: {cls}", [r[1] for r in mine], note))
    return out


def _consistent(c: ClassForecast) -> bool:
    """A class of modes has the predicted rank; a class of units is dead only below its threshold."""
    if c.rank is not None:
        return c.predicted_rank == c.rank
    return c.alive > 0 or c.kappa < c.weight_decay


def _describe(c: ClassForecast) -> str:
    if c.rank is not None:
        return f"{c.predicted_rank} / {c.rank} (residual {c.residual:.2g})"
    return f"{c.alive} of {c.size} alive, κ/λ {c.headroom:.2f}"


# training


@dataclasses.dataclass(frozen=True)
class Trained:
    """The forecast of every class after a run."""

    classes: tuple[ClassForecast, ...]

    @property
    def alive(self) -> int:
        """Live units of the first class."""
        return self.classes[0].alive


def _train(task: Task, decay: float, *, steps: int, lr: float, momentum: float = 0.0) -> Trained:
    """Full-batch descent from the task's weights on a copy, and what is left."""
    model = _copy(task.model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=lr, weight_decay=decay, momentum=momentum)
    batches = list(task.batch_iter())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.cat([task.loss(model, b) for b in batches]).mean().backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    after = dataclasses.replace(task, model=model, weight_decay=decay, lr=lr)
    return Trained(tuple(_forecast(after, settle=100)))


def _forecast(task: Task, settle: int = 0) -> Sequence[ClassForecast]:
    return forecast(task, find_symmetries(task, verify=False), settle_steps=settle).classes


def _dead(task: Task) -> Task:
    """The task with all adapters at zero."""
    model = _copy(task.model)
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.zeros_(module.a.weight)
            nn.init.zeros_(module.b.weight)
    return dataclasses.replace(task, model=model)


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


# models and data


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _cross_entropy(model: nn.Module, batch: Data) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _next_token(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    logits = model(batch[0][:, :-1])
    return functional.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:], reduction="none").mean(1)


def _task(model: nn.Module, data: Data, *, lr: float) -> Task:
    return Task(model, _cross_entropy, lambda: [data], lr=lr, weight_decay=0.01, batch_size=len(data[0]))


def _digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x[:800] / 16.0, dtype=torch.float32)
    return inputs - inputs.mean(0), torch.tensor(y[:800])


def _mlp_task(widths: Sequence[int], activation: str, seed: int) -> Task:
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), kinds[activation]()]
        return nn.Sequential(*layers[:-1])

    return _task(_seeded(make, seed), _digits(), lr=0.2)


def _convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 10)
    )  # fmt: skip


def _digits_attention(seed: int) -> Task:
    x, y = _digits()
    return _task(_seeded(RowAttention, seed), (x[:400], y[:400]), lr=0.1)


def _text() -> Tensor | None:
    path = Path(os.environ.get("GAUGEFIX_DATA", ".")) / "tinyshakespeare.txt"
    if not path.is_file():
        return None
    raw = np.fromfile(path, dtype=np.uint8)
    symbols, ids = np.unique(raw, return_inverse=True)
    assert len(symbols) < 100
    return torch.from_numpy(ids)


def _windows(text: Tensor, n: int, seed: int, length: int = 33) -> Tensor:
    starts = torch.randint(len(text) - length, (n, 1), generator=torch.Generator().manual_seed(seed))
    return text[starts + torch.arange(length)]


def _gpt_task(text: Tensor, seed: int) -> Task:
    ids = _windows(text, WINDOWS, seed)
    model = _seeded(partial(GPT, int(text.max()) + 1), seed)
    return Task(model, _next_token, lambda: [(ids,)], lr=0.5, weight_decay=1e-3, batch_size=len(ids))


def _adapter_task(text: Tensor, seed: int) -> Task:
    """A GPT trained for a while, then frozen; the fine-tuning text has its letters shifted by one."""
    base = _gpt_task(text, seed)
    model = _copy(base.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in _epochs(base, 200):
        optimizer.zero_grad()
        base.loss(model, batch).mean().backward()
        optimizer.step()
    for p in model.parameters():
        p.requires_grad_(requires_grad=False)
    assert isinstance(model, GPT)

    def add() -> nn.Module:
        model.attention.v = Adapter(model.attention.v, 8)  # type: ignore[assignment]
        model.up = Adapter(model.up, 8)  # type: ignore[assignment]
        return model

    tuned = _seeded(add, seed + 100)
    vocabulary = int(text.max()) + 1
    ids = (_windows(text, WINDOWS, seed + 50) + 1) % vocabulary
    return dataclasses.replace(base, model=tuned, batches=lambda: [(ids,)], lr=1.0)


def _epochs(task: Task, steps: int) -> Iterator[tuple[Tensor]]:
    batch = task.first_batch()
    for _ in range(steps):
        yield batch


# rows


def _mean(values: Sequence[float]) -> str:
    spread = max(values) - min(values)
    return f"{math.fsum(values) / len(values):.4g} ± {spread / 2:.1g}"


def _row(name: str, good: Sequence[bool], note: str) -> Row:
    return Row(name, sum(good) / len(good), "of runs as foretold", repeats=len(good), note=note)
