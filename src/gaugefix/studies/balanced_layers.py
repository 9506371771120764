"""ReLU networks trained until they are stationary, the part of `entropic_forces` that predicts norms of layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.digits import digits
from gaugefix.studies.framework import Evidence, Setting

WIDTHS, LR, DECAY, BATCH, STEPS = (8, 16, 16, 4), 0.02, 0.04, 16, 8000
DIGITS_WIDTHS, DIGITS_LR, DIGITS_DECAY, DIGITS_BATCH, DIGITS_STEPS = (64, 32, 32, 10), 0.1, 6e-3, 8, 15_000
WRONG = 0.2  # share of labels that are random


def _train(
    widths: tuple[int, ...], draw: Callable[[], tuple[Tensor, Tensor]], error: Callable[[Tensor, Tensor], Tensor],
    starts: list[Tensor], lr: float, decay: float, steps: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean ‖ĝ_i‖² and ‖W_i‖² over the last third of the run, ``(seeds, layers)`` each."""
    weights, sums = list(starts), torch.zeros(2, starts[0].shape[0], len(widths) - 1, dtype=torch.float64)
    for step in range(steps):
        x, target = draw()
        layers = [x]
        for w in weights[:-1]:
            layers.append((layers[-1] @ w.mT).relu())
        slope = error(layers[-1] @ weights[-1].mT, target) / x.shape[1]
        gradients: list[Tensor] = []
        for k in range(len(weights) - 1, -1, -1):
            gradients.insert(0, slope.mT @ layers[k])
            slope = (slope @ weights[k]) * (layers[k] > 0)
        if step >= 2 * steps // 3:
            sums += torch.stack([
                torch.stack([t.square().sum((1, 2)) for t in side], 1) for side in (gradients, weights)
            ])
        weights = [w - lr * (g + decay * w) for w, g in zip(weights, gradients, strict=True)]
    squares, sizes = (sums / (steps - 2 * steps // 3)).numpy()
    return squares, sizes


def _starts(widths: tuple[int, ...], generators: list[torch.Generator]) -> list[Tensor]:
    return [
        torch.stack([torch.randn(b, a, generator=g, dtype=torch.float64) for g in generators]) * (2 / a) ** 0.5
        for a, b in pairwise(widths)
    ]


def layer_balance(setting: Setting) -> Evidence:
    """A linear teacher with label noise of size one, fresh batches."""
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    teacher = torch.stack([torch.randn(4, 8, generator=g, dtype=torch.float64) for g in generators]) / 8**0.5

    def draw() -> tuple[Tensor, Tensor]:
        x, noise = (
            torch.stack([torch.randn(BATCH, n, generator=g, dtype=torch.float64) for g in generators]) for n in (8, 4)
        )
        return x, x @ teacher.mT + noise

    steps = setting.choose(STEPS, 5 * STEPS)
    squares, sizes = _train(WIDTHS, draw, lambda f, y: 2 * (f - y), _starts(WIDTHS, generators), LR, DECAY, steps)
    z = LR * squares - 2 * DECAY * (1 - LR * DECAY / 2) * sizes
    return Evidence(np.ones(3), z / z.mean(1, keepdims=True), ("layer 1", "layer 2", "layer 3"))


def digits_norms(setting: Setting) -> Evidence:
    """Cross-entropy, a fifth of the labels random."""
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    data = [digits(s)[:2] for s in setting.seeds]
    x, y = (torch.stack([d[i] for d in data]) for i in range(2))
    wrong, other = (
        torch.rand(y.shape, generator=generators[0]) < WRONG,
        torch.randint(10, y.shape, generator=generators[0]),
    )
    x, y = x.double(), torch.nn.functional.one_hot(torch.where(wrong, other, y), 10).double()
    members = torch.arange(len(data))[:, None]

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.stack([torch.randint(x.shape[1], (DIGITS_BATCH,), generator=g) for g in generators])
        return x[members, rows], y[members, rows]

    steps = setting.choose(DIGITS_STEPS, 4 * DIGITS_STEPS)
    starts = _starts(DIGITS_WIDTHS, generators)
    squares, sizes = _train(DIGITS_WIDTHS, draw, lambda f, y: f.softmax(-1) - y, starts, DIGITS_LR, DIGITS_DECAY, steps)
    predicted = DIGITS_LR / (2 * DIGITS_DECAY) * squares
    return Evidence(-np.diff(predicted), -np.diff(sizes), ("layer 1 − layer 2", "layer 2 − layer 3"))
