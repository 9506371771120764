"""The barrier is that of the line between two networks, and goes with the permutation that made it."""

from __future__ import annotations

import pytest
import torch
from tests.cases import numbers
from tests.control.alignment.test_align import permuted_mlp
from torch import Tensor, nn

from gaugefix import Task
from gaugefix.control import align, barrier
from gaugefix.errors import ControlError


def regression(net: nn.Module, x: Tensor, y: Tensor) -> Task:
    """Squared error."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().sum(1)

    return Task(net, loss, lambda: [(x, y)], lr=0.1, weight_decay=0.0, batch_size=len(x))


def test_a_parabola_through_its_minimum_has_the_closed_form() -> None:
    """Scalar regression: θ = ±1 with loss (θ² − 1)² gives a barrier of 1 at the middle."""

    class Square(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[value]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w**2

    a, b = Square(-1.0), Square(1.0)
    found = barrier(a, b, regression(a, torch.ones(4, 1), torch.ones(4, 1)), points=9)
    assert found.barrier == pytest.approx(1.0)
    assert found.at == 0.5
    assert found.loss == pytest.approx((1 - (2 * found.t - 1) ** 2) ** 2)
    assert found.n_samples == 4


def test_alignment_takes_the_barrier_of_a_permutation_away() -> None:
    a, b, x = permuted_mlp(0)
    inputs = numbers(64, 64)
    with torch.no_grad():
        task = regression(a, inputs, a(inputs))
    assert barrier(a, b, task, points=5).barrier > 1e-3
    assert barrier(a, align(a, b, starts=1, example_inputs=x).model, task, points=5).barrier < 1e-9


def test_bad_arguments() -> None:
    a = nn.Linear(2, 1)
    task = regression(a, torch.ones(4, 2), torch.ones(4, 1))
    with pytest.raises(ControlError, match="points must be an integer >= 3, got 2"):
        barrier(a, a, task, points=2)
    with pytest.raises(ControlError, match="differ in the names or shapes"):
        barrier(a, nn.Linear(3, 1), task)
