"""Weights without a bias that take up a constant: looked for without filling a big model with numbers."""

from __future__ import annotations

import pytest
import torch
from tests.cases import GPT2, tokens
from torch import Tensor, nn

from gaugefix.symmetry import find_symmetries, virtual_biases
from gaugefix.symmetry.virtual_biases import _Lazy


class Unbiased(nn.Module):
    """Two readers of a LayerNorm with a shift, none of which has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.up, self.out = nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(self.norm(self.enter(x)))))


@pytest.mark.parametrize("make", [lambda: (GPT2(), tokens(3, 4, 9)), lambda: (Unbiased(), torch.randn(8, 3))])
def test_the_search_makes_numbers_for_vectors_only(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    made: list[torch.Size] = []

    class Watched(_Lazy):
        def __getitem__(self, name: str) -> Tensor:
            made.append((value := super().__getitem__(name)).shape)
            return value

    monkeypatch.setattr(virtual_biases, "_Lazy", Watched)
    model, x = make()  # type: ignore[operator]
    find_symmetries(model, (x,), verify=False)
    assert made
    assert all(len(shape) == 1 for shape in made)


def test_asking_whether_a_parameter_exists_makes_none() -> None:
    lazy = _Lazy({"w": (10**9, 10**9)})
    assert "w" in lazy
    assert "v" not in lazy
