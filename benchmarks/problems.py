"""The problems on which costs are compared: networks in which products of matrices dominate."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise

import torch
from torch import nn

from gaugefix import Task
from gaugefix.measure.classes import to_dtype

#: 0.27 M parameters, most of them in the first layer: the usual small classifier
CLASSIFIER = (784, 256, 256, 10)
#: a backward pass through every layer, none of which dominates
DEEP = (256,) * 8


def _scores(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _next_word(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    scores = model(batch[0])[:, :-1].transpose(1, 2)
    return nn.functional.cross_entropy(scores, batch[0][:, 1:], reduction="none").mean(1)


def convolutions(n: int = 1024) -> Task:
    """Two convolutions, pooling and an output layer on 28 × 28 pixels, batches of 256."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip
    return _images(model, (1, 28, 28), n)


class _Block(nn.Module):
    """One pre-norm block of width 64 over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(28, 64), nn.LayerNorm(64), nn.LayerNorm(64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.head((x + self.feed(self.second(x))).mean(1))


def transformer_block(n: int = 1024) -> Task:
    """Attention, a feed-forward part and layer norms, 28 positions, batches of 256."""
    return _images(_Block(), (28, 28), n)


class _Words(nn.Module):
    """Two encoder layers between embeddings of words and positions and an output layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(256, width), nn.Embedding(32, width)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True, activation="gelu")
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        return self.head(self.norm(self.blocks(x)))


def language_model(width: int) -> Task:
    """Next-word loss over 32 positions, batches of 256 (64 at width 256)."""
    generator = torch.Generator().manual_seed(0)
    n, size = (512, 256) if width < 256 else (128, 64)
    ids = torch.randint(256, (n, 32), generator=generator)
    model = _Words(width).double().eval()
    return Task(
        model, _next_word, lambda: [(part,) for part in ids.split(size)], lr=0.1, weight_decay=0.0, batch_size=size
    )


def _images(model: nn.Module, shape: tuple[int, ...], n: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (n,), generator=generator)
    return Task(
        model.double().eval(),
        _scores,
        lambda: list(zip(x.split(256), y.split(256), strict=True)),
        lr=0.1,
        weight_decay=0.0,
        batch_size=256,
    )


def exact_task(widths: tuple[int, ...] = CLASSIFIER, *, n: int = 512, batch_size: int = 512) -> Task:
    """Cross-entropy of a float64 tanh MLP on random data.

    The data is float64 too, so that a measurement, which computes in float64, meets the precision of the gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, widths[0], generator=generator, dtype=torch.float64)
    y = torch.randint(widths[-1], (n,), generator=generator)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]

    return Task(
        nn.Sequential(*layers[:-1]).double(),
        _scores,
        lambda: list(zip(x.split(batch_size), y.split(batch_size), strict=True)),
        lr=0.1,
        weight_decay=1e-3,
        batch_size=batch_size,
    )


def in_float32(task: Task) -> Task:
    """The same problem as most people have it; measure it inside ``gaugefix.measure.precision(torch.float32)``."""
    batches = [to_dtype(batch, torch.float32) for batch in task.batches()]
    return dataclasses.replace(task, model=copy.deepcopy(task.model).float(), batches=lambda: batches)


def full_gradient(task: Task) -> None:
    """One gradient of the mean loss over all the data, the unit in which costs are given."""
    total = sum(task.loss(task.model, batch).sum() for batch in task.batches())
    torch.autograd.grad(total, list(task.model.parameters()))
