"""Ways to make the weights of a network sparse, each as a training run and a refit, for any of the problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.pruning_problems import BATCH, Data, cut, error_rate, train, weight_layers
from gaugefix.control import impose

MOMENTUM, ADAM_LR, CLIP = 0.9, 2e-3, 5.0
STRENGTH, FACTOR_RATE, REFIT_RATE = 5e-4, 10.0, 3.0  # the rates are multiples of the learning rate
Step = Callable[[nn.Module, "Setup", int], None]
Refit = Callable[[nn.Module, "Setup", float, int], float]


@dataclass(frozen=True)
class Setup:
    """What all methods share.

    Attributes:
        data: of the problem.
        passes: before the cut.
        refit: passes after it.
        lr: of SGD.
    """

    data: Data
    passes: int
    refit: int
    lr: float


def adam(model: nn.Module, setup: Setup, seed: int, passes: int | None = None) -> None:
    """Plain training."""
    train(model, torch.optim.Adam(model.parameters(), lr=ADAM_LR), setup.data, passes or setup.passes, seed)


def sgd(
    model: nn.Module, setup: Setup, seed: int, *, rate: float = 1.0, passes: int | None = None,
    penalty: Callable[[], Tensor] | None = None, after: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Plain training, or with a penalty in the loss; the rate is a multiple of the learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate * setup.lr, momentum=MOMENTUM)
    train(model, optimizer, setup.data, passes or setup.passes, seed, penalty=penalty, after=after, clip=CLIP)


def subgradient(strength: float) -> Step:
    """SGD on the loss with an L1 penalty."""

    def method(model: nn.Module, setup: Setup, seed: int) -> None:
        layers = weight_layers(model)
        sgd(model, setup, seed, penalty=lambda: strength * torch.stack([w.weight.abs().sum() for w in layers]).sum())

    return method


def factors(strength: float, *, rate: float, warm: bool = True, ramp: bool = False) -> Step:
    """The same penalty as weight decay on factors, from the start or on the second half of the passes."""

    def method(model: nn.Module, setup: Setup, seed: int) -> None:
        first = setup.passes // 2 if warm else 0
        if first:
            sgd(model, setup, seed, passes=first)
        for layer in weight_layers(model):
            impose.sparse(layer, "weight", strength=strength)
        optimizer = impose.optimizer(
            torch.optim.SGD, model, lr=setup.lr, factor_lr=rate * setup.lr, momentum=MOMENTUM
        )  # fmt: skip
        steps = (setup.passes - first) * (len(setup.data[0]) // BATCH)
        rise = impose.Ramp(optimizer, steps=steps // 2).step if ramp else None
        train(model, optimizer, setup.data, setup.passes - first, seed + 1000 * warm, after=rise, clip=CLIP)
        impose.collapse_(model, threshold=0.0)

    return method


def half(method: Step) -> Step:
    """Leave half of the passes to the cuts of `gradual`."""
    return lambda model, setup, seed: method(
        model, Setup(setup.data, setup.passes // 2, setup.refit, setup.lr), seed
    )  # fmt: skip


def one_cut(again: Callable[..., None], model: nn.Module, setup: Setup, keep: float, seed: int) -> float:
    """Cut, train on under the mask; the error in between."""
    cut(model, keep)
    before = error_rate(model, setup.data)
    again(model, setup, seed, passes=setup.refit)
    return before


def gradual(again: Callable[..., None], model: nn.Module, setup: Setup, keep: float, seed: int) -> float:
    """Four cuts along a cubic schedule with an eighth of the passes after each, then as `one_cut`."""
    for i in range(1, 5):
        cut(model, keep + (1 - keep) * (1 - i / 4) ** 3)
        again(model, setup, seed, passes=max(setup.passes // 8, 1))
    return one_cut(again, model, setup, keep, seed)


def in_stages(model: nn.Module, setup: Setup, keep: float, seed: int) -> float:
    """SGD with a higher rate while `impose.Thin` tightens the cut over the first half; the error of one cut."""
    steps = setup.refit * (len(setup.data[0]) // BATCH)
    thin = impose.Thin(model, keep=keep, steps=steps // 2)
    before = error_rate(model, setup.data)
    sgd(model, setup, seed, rate=REFIT_RATE, passes=setup.refit, after=thin.step)
    return before


REFITS: dict[str, Refit] = {
    "Adam": partial(one_cut, adam),
    "SGD": partial(one_cut, sgd),
    "gradual, Adam": partial(gradual, adam),
    "gradual, SGD": partial(gradual, sgd),
    "in stages": in_stages,
}
