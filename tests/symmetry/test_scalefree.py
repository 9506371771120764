"""Sizes that nobody sees: which norms are idle, and what the search makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.graph import trace
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.patterns import recognise
from gaugefix.symmetry.scalefree import ScaleFlow
from gaugefix.testing import completeness

X = torch.randn(8, 7, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A norm, something in between, and a norm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.enter, self.norm = nn.Linear(7, 5, bias=False), nn.RMSNorm(5)
        self.up, self.down = nn.Linear(5, 6, bias=kind == "bias"), nn.Linear(6, 5, bias=False)
        self.final, self.head = nn.RMSNorm(10 if kind == "concatenation" else 5), nn.LazyLinear(11)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.enter(x))
        y = self.norm(x)
        z = self.down(nn.functional.leaky_relu(self.up(y)))
        match self.kind:
            case "raw":
                z = x + z
            case "product":
                z = y + z * y
            case "concatenation":
                z = torch.cat([y, z], dim=-1)
            case "mixing":
                z = y + z.flip(0)
            case "tanh":
                z = torch.tanh(z)
            case "gate":
                z = z * y
            case _:
                z = y + z
        return self.head(self.final(z))


IDLE = {"residual": 1, "concatenation": 1, "gate": 1, "bias": 0, "raw": 0, "product": 0, "mixing": 0, "tanh": 0}


def made(kind: str) -> Between:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Between(kind)
        model(X)
    return model


@pytest.mark.parametrize("kind", IDLE)
def test_a_norm_is_idle_if_every_path_keeps_its_factor(kind: str) -> None:
    """Sums need the same power of the factor in every term; tanh and biases see it; rows must not mix."""
    lower = Lowering(recognise(trace(made(kind), (X,)))).run()
    assert len(ScaleFlow(lower.records, lower.zero).idle_norms()) == IDLE[kind]


@pytest.mark.parametrize("kind", IDLE)
def test_the_search_is_sound_and_complete_around_idle_norms(kind: str) -> None:
    model = made(kind)
    found = find_symmetries(model, (X,), verify=True)
    assert not found.rejected
    result = completeness(found, model, (X,))
    assert result.reliable
    assert result.complete, result.hidden
