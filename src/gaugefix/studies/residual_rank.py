"""The part of `gaugefix.studies.type_two_saddles` on residual networks: what noise does to the rank of convolutions.

Channels between two convolutions, zero or equal, are saddles of type II, so that a larger learning rate or a smaller
batch should leave convolutions of lower rank. Runs that are compared have the same lr·steps, and with it the same
weight decay.

The full setting is ResNet-18 on 20,000 images of CIFAR-10. It needs a GPU, since on a processor it would take days, and
is refused without one. It has been run for a few steps only: it is known that it runs, and not what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.errors import StudyError
from gaugefix.measure import effective_rank
from gaugefix.studies.cifar import cifar10
from gaugefix.studies.framework import Evidence, Setting

FLIPPED = 0.3  # labels drawn at random: the noise does not vanish


@dataclass(frozen=True)
class Scale:
    """Sizes of a setting: channels of the stages, blocks in each, learning rates, batches, and λ."""

    widths: tuple[int, ...]
    blocks: int
    lrs: tuple[float, float]  # the large one, at which batches are compared, and the small one
    batches: tuple[int, int]  # the small one, at which learning rates are compared, and the large one
    decay: float
    time: float  # lr·steps


QUICK = Scale((12,), 2, (0.4, 0.1), (4, 32), 0.01, 60.0)
FULL = Scale((64, 128, 256, 512), 2, (0.4, 0.05), (8, 128), 5e-4, 4000.0)


class Block(nn.Module):
    """Two convolutions with batch normalisation, beside the identity or a strided convolution."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.body = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip = (
            nn.Identity()
            if into == out
            else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both, rectified."""
        return nn.functional.relu(self.body(x) + self.skip(x))


def residual_network(scale: Scale, channels: int, seed: int) -> nn.Sequential:
    """A stem, the stages, and a linear layer on the mean over the picture (on its quarters, where there is one stage).

    Args:
        scale: widths of the stages and blocks in each.
        channels: of the pictures.
        seed: of the weights.

    Returns:
        The network; with four stages of two blocks it is ResNet-18 for small pictures.
    """
    first = scale.widths[0]
    stride, side = (2, 2) if len(scale.widths) == 1 else (1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 3, stride, 1, bias=False), nn.BatchNorm2d(first)]
        layers.append(nn.ReLU())
        for into, out in pairwise((first, *scale.widths)):
            layers += [Block(into, out), *[Block(out, out) for _ in range(scale.blocks - 1)]]
        last = nn.Linear(scale.widths[-1] * side**2, 10)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side), nn.Flatten(), last)


def _pictures(setting: Setting) -> tuple[Tensor, Tensor]:
    if setting.full:
        return cifar10(20_000)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    return (x - x.mean()) / x.std(), torch.tensor(labels)


def mean_rank(
    scale: Scale, data: tuple[Tensor, Tensor], lr: float, batch: int, seed: int, *, steps: int | None = None
) -> float:
    """Effective rank of the convolutions of the blocks after SGD, mean over them.

    Args:
        scale: sizes.
        data: pictures and labels, of which three in ten are drawn anew.
        lr: learning rate.
        batch: batch size.
        seed: of weights, labels and batches.
        steps: by default lr·steps is that of the scale.

    Returns:
        The rank; full rank is the number of channels.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.rand(len(data[1]), generator=generator) < FLIPPED
    labels = torch.where(flipped, torch.randint(10, flipped.shape, generator=generator), data[1]).to(device)
    x, net = data[0].to(device), residual_network(scale, data[0].shape[1], seed).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=scale.decay)
    for _ in range(round(scale.time / lr) if steps is None else steps):
        picked = torch.randint(len(x), (batch,), generator=generator).to(device)
        sgd.zero_grad()
        nn.functional.cross_entropy(net(x[picked]), labels[picked]).backward()
        sgd.step()
    convolutions = [m for block in net if isinstance(block, Block) for m in block.body if isinstance(m, nn.Conv2d)]
    return float(np.mean([effective_rank(torch.linalg.svdvals(m.weight.detach().flatten(1))) for m in convolutions]))


def rank_differences(setting: Setting) -> Evidence:
    """How much lower the rank ends after the larger learning rate, and after smaller batches."""
    if setting.full and not torch.cuda.is_available():
        raise StudyError("ResNet-18 on CIFAR-10 would take days on a processor: the full setting needs a GPU.")
    scale, data = setting.choose(QUICK, FULL), _pictures(setting)
    (large, small), (few, many) = scale.lrs, scale.batches
    measured = []
    for seed in setting.seeds:
        noisy, *calm = (mean_rank(scale, data, *case, seed) for case in ((large, few), (small, few), (large, many)))
        measured.append([rank - noisy for rank in calm])
    cells = (f"lr {small:g} − lr {large:g}, B={few}", f"B={many} − B={few}, lr {large:g}")
    return Evidence(np.zeros(2), np.array(measured), cells)
