"""The part of `gaugefix.studies.moment_compression` on attention: few heads with weights that stand for many.

A head is (q, k, v, o) of a layer with two inputs, two outputs and one dimension per head: eight numbers. Heads add up,
so that they are as interchangeable as hidden units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gaugefix.control import compress_points
from gaugefix.studies.framework import Evidence, Setting

TOKENS, BATCH, STEPS, LR, SCALE = 3, 8, 40, 0.3, 0.5
DRAWS = 3  # random choices to compare with


def exact_heads(setting: Setting) -> Evidence:
    """Attention without softmax, of degree four in a head: 495 heads with fourth moments against 1000."""
    measured = []
    for seed in setting.seeds:
        heads, generator = _heads(1000, seed)
        kept, weights = compress_points(heads, k=4)
        x = torch.randn(64, TOKENS, 2, generator=generator, dtype=torch.float64)
        everything = _attend(heads, torch.ones(len(heads)), x, softmax=False)
        few = _attend(heads[kept], torch.from_numpy(weights), x, softmax=False)
        measured.append([float((few - everything).abs().max() / everything.abs().max())])
    return Evidence(np.zeros(1), np.array(measured), ("output without softmax",))


def head_dynamics(setting: Setting) -> Evidence:
    """Root mean square gap of the outputs to those of all heads along a run of SGD, over that of random heads."""
    count, few = setting.choose(quick=(1000, 300), full=(4000, 800))
    measured = []
    for seed in setting.seeds:
        heads, generator = _heads(count, seed)
        kept, weights = compress_points(heads, 3, few)
        whole = _train(heads, torch.ones(count), seed)
        gap = (_train(heads[kept], torch.from_numpy(weights), seed) - whole).square().mean()
        random = [torch.randperm(count, generator=generator)[:few] for _ in range(DRAWS)]
        gaps = [(_train(heads[rows], torch.ones(few), seed) - whole).square().mean() for rows in random]
        measured.append([float((gap / torch.stack(gaps).mean()).sqrt())])
    return Evidence(np.ones(1), np.array(measured), (f"{few} of {count} heads",))


def _heads(count: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return SCALE * torch.randn(count, 8, generator=generator, dtype=torch.float64), generator


def _attend(heads: Tensor, weights: Tensor, x: Tensor, *, softmax: bool = True) -> Tensor:
    """The weighted mean of the outputs of all heads, ``(batch, tokens, 2)``."""
    query, key, value, out = heads.view(-1, 4, 2).unbind(1)
    scores = torch.einsum("bth,bsh->bhts", x @ query.T, x @ key.T)
    share = weights.to(heads) / weights.sum()
    return torch.einsum("bhts,bsh,hd->btd", scores.softmax(-1) if softmax else scores, x @ value.T * share, out)


def _target(x: Tensor) -> Tensor:
    """Attention of tokens to tokens like them, turned by a right angle."""
    turned = torch.stack([-x[..., 1], x[..., 0]], -1)
    return (x @ x.mT).softmax(-1) @ turned


def _train(heads: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Outputs on test inputs along SGD with gradients of 1/weight; every choice of heads sees the same batches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, TOKENS, 2, generator=generator, dtype=torch.float64)

    test, leaf, outputs = draw(64), heads.clone().requires_grad_(), []
    rates = LR * (weights.sum() / weights)[:, None]
    for step in range(STEPS):
        x = draw(BATCH)
        loss = (_attend(leaf, weights, x) - _target(x) - 0.1 * draw(BATCH)).square().mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            leaf -= rates * gradient
            if step % 4 == 3:
                outputs.append(_attend(leaf, weights, test))
    return torch.stack(outputs)
