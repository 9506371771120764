"""The small problems on which forecasts are compared with real runs: digits, a GPT of one block, adapters on it."""

from __future__ import annotations

import copy as copying
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gaugefix import Task
from gaugefix.studies.resting_layers import RowAttention

WINDOWS = 48  # of 33 symbols, for the language model
Data = tuple[Tensor, Tensor]


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


def copied(model: nn.Module) -> nn.Module:
    """An independent copy."""
    return copying.deepcopy(model)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with its initial weights drawn from a seed; the global generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _cross_entropy(model: nn.Module, batch: Data) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _next_token(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    logits = model(batch[0][:, :-1])
    return functional.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:], reduction="none").mean(1)


def digits_task(model: nn.Module, data: Data, *, lr: float) -> Task:
    """Cross-entropy on all the data at once."""
    return Task(model, _cross_entropy, lambda: [data], lr=lr, weight_decay=0.01, batch_size=len(data[0]))


def digits() -> Data:
    """The first 800 digits, scaled and centred, with their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x[:800] / 16.0, dtype=torch.float32)
    return inputs - inputs.mean(0), torch.tensor(y[:800])


def mlp_task(widths: Sequence[int], activation: str, seed: int) -> Task:
    """A multilayer perceptron on the digits."""
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), kinds[activation]()]
        return nn.Sequential(*layers[:-1])

    return digits_task(seeded(make, seed), digits(), lr=0.2)


def convolution() -> nn.Module:
    """Eight channels, ReLU, average pooling, output."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 10)
    )  # fmt: skip


def digits_attention(seed: int) -> Task:
    """One head of attention on 400 digits."""
    x, y = digits()
    return digits_task(seeded(RowAttention, seed), (x[:400], y[:400]), lr=0.1)


def shakespeare() -> Tensor | None:
    """The text as numbers of its symbols, None where there is no file."""
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


def gpt_task(text: Tensor, seed: int) -> Task:
    """The GPT on a few windows of the text, all in one batch."""
    ids = _windows(text, WINDOWS, seed)
    model = seeded(partial(GPT, int(text.max()) + 1), seed)
    return Task(model, _next_token, lambda: [(ids,)], lr=0.5, weight_decay=1e-3, batch_size=len(ids))


def adapter_task(text: Tensor, seed: int) -> Task:
    """A GPT trained for a while, then frozen; the fine-tuning text has its letters shifted by one."""
    base = gpt_task(text, seed)
    model = copied(base.model)
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

    tuned = seeded(add, seed + 100)
    vocabulary = int(text.max()) + 1
    ids = (_windows(text, WINDOWS, seed + 50) + 1) % vocabulary
    return dataclasses.replace(base, model=tuned, batches=lambda: [(ids,)], lr=1.0)


def _epochs(task: Task, steps: int) -> Iterator[tuple[Tensor]]:
    batch = task.first_batch()
    for _ in range(steps):
        yield batch
