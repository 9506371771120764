"""Small networks with changes of their weights that do something known to the output, for `equivariance_toolbox`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaugefix.measure.equivariance import Generator
from gaugefix.task import Loss, Task

INPUTS, HIDDEN, SAMPLES = 4, 7, 40


def data(seed: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets at random, ``(n, 4)`` and ``(n, outputs)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randn(SAMPLES, outputs, generator=generator, dtype=torch.float64)


def network(seed: int, activation: type[nn.Module], outputs: int, *, bias: bool = False) -> nn.Sequential:
    """Two layers with this activation between them, initialised as torch does with this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(INPUTS, HIDDEN, bias), activation(), nn.Linear(HIDDEN, outputs, bias)
        ).double()  # fmt: skip


class _Normed(nn.Module):
    """A layer whose size its norm removes."""

    def forward(self, h: Tensor) -> Tensor:
        """Unit vectors."""
        length: Tensor = h.norm(dim=1, keepdim=True)
        return h / length


def square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Squared error, per sample."""
    errors: Tensor = model(batch[0]) - batch[1]
    return errors.square().sum(1)


def exponential(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """exp(−margin), per sample."""
    margins: Tensor = (model(batch[0]) * batch[1]).sum(1)
    return torch.exp(-margins)


def as_task(model: nn.Module, data: tuple[Tensor, Tensor], loss: Loss = square) -> Task:
    """A task whose only batch is all the data."""
    return Task(model, loss, lambda: [data], lr=0.05, weight_decay=0.0, batch_size=SAMPLES)


def cases(seed: int) -> dict[str, tuple[nn.Module, Generator, Loss]]:
    """Networks with a generator and a loss, by name; what the generator does to the output is known for each."""
    relu, linear = network(seed, nn.ReLU, 2), network(seed, nn.Identity, 2, bias=True)
    normed = network(seed, _Normed, 2)
    rates = torch.randn(HIDDEN, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    hidden, out = (_antisymmetric(n, seed) for n in (HIDDEN, 2))
    turned = {"0.weight": (0, hidden), "0.bias": (0, hidden), "2.weight": (1, hidden)}
    units = Generator("rescale", {"0.weight": rates, "2.weight": -rates.mT})
    return {
        "units, MSE": (relu, units, square),
        "units, exp": (relu, units, exponential),
        "all weights, MSE": (relu, Generator("homogeneous", output=2.0), square),
        "all weights, exp": (relu, Generator("homogeneous", output=2.0), exponential),
        "hidden basis": (linear, Generator("rotation", turned), square),
        "outputs turned": (relu, Generator("rotation", {"2.weight": (0, out)}, output=out), square),
        "normed layer": (normed, Generator("scale", ("0.weight",)), square),
    }


def _antisymmetric(n: int, seed: int) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a - a.mT
