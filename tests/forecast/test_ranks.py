"""The rank of a linear class at rest is read as sharply as the run has come to rest."""

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.forecast import forecast
from gaugefix.symmetry import Slice, Units

DECAY = 0.5


def _squares(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1) / 2


def _at_rest(singular_values, stray=0.0):
    """Regression y = diag(s) x with E xxᵀ = 1 at its minimum: M = diag(max(s − λ, 0)), σ(G) = min(s, λ)."""
    n = len(singular_values)
    x = torch.cat([torch.eye(n), -torch.eye(n)]).double() * n**0.5
    s = torch.tensor(singular_values, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(n, n, bias=False), nn.Identity(), nn.Linear(n, n, bias=False)).double()
    for layer in (model[0], model[2]):
        layer.weight.detach().copy_(torch.diag((s - DECAY + stray).clamp(min=0).where(s > DECAY, 0 * s).sqrt()))
    return Task(model, _squares, lambda: [(x, x * s)], lr=0.1, weight_decay=DECAY, batch_size=2 * n)


def _forecast(task):
    n = task.model[0].in_features
    index = torch.arange(n).reshape(1, n, 1).numpy()
    slices = (Slice("0.weight", 0, index, "write"), Slice("2.weight", 1, index, "read"))
    return forecast(task, [Units("0", n, 1, slices, "identity")], settle_steps=0).classes[0]


@pytest.mark.parametrize(("second", "rank"), [(0.3, 1), (0.475, 1), (0.52, 2), (0.8, 2)])
def test_a_dead_mode_within_five_per_cent_of_the_decay_is_not_counted(second, rank):
    found = _forecast(_at_rest([1.0, second, 0.1]))
    assert found.residual < 1e-6
    assert found.rank == rank
    assert found.predicted_rank == rank


def test_live_modes_below_the_decay_by_the_residual_are_counted():
    found = _forecast(_at_rest([1.0, 0.7, 0.1], stray=0.02))
    assert found.residual == pytest.approx(0.02 / DECAY, rel=1e-3)
    assert found.predicted_rank == found.rank == 2
