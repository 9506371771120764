"""A model of a given size: no more parameters than asked for, the smallest units gone, counts that fold confirms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gaugefix import find_symmetries
from gaugefix.control import fold, silence_
from gaugefix.errors import ControlError


class Residual(nn.Module):
    """A stream with batch normalisation, and a block beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.inner, self.down = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.leave = nn.Linear(8 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.enter(x)))
        x = x + self.down(torch.relu(self.inner(self.up(x))))
        return self.leave(nn.functional.avg_pool2d(x, 2).flatten(1))


def mlp() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 3)), torch.randn(5, 6)


def residual() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Residual().eval(), torch.randn(3, 2, 4, 4)


@pytest.mark.parametrize("make", [mlp, residual])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_fold_leaves_what_was_counted(make, share):
    model, x = make()
    total = sum(p.numel() for p in model.parameters())
    symmetries = find_symmetries(model, (x,))
    done = silence_(model, symmetries, parameters=round(share * total))
    small = fold(model, symmetries, tolerance=0, example_inputs=x, factor=False)
    assert small.error < 1e-5
    assert {c.name: c.after for c in small.removed} == {c.name: c.after for c in done if c.after < c.before}
    assert 0.8 * share * total < small.parameters[1] <= share * total


def test_the_smallest_units_go_in_every_gauge():
    model, x = mlp()
    with torch.no_grad():
        model[0].weight[:5] *= 1e-3
        model[0].bias[:5] *= 1e-3
    other = copy.deepcopy(model)
    with torch.no_grad():  # the same function
        other[0].weight[:5] *= 1e3
        other[0].bias[:5] *= 1e3
        other[2].weight[:, :5] /= 1e3
    for net in (model, other):
        silence_(net, find_symmetries(net, (x,)), parameters=20 * 6 + 20 + 20 * 15 + 15 + 48 - 5 * (6 + 1 + 15))
        idle = net[2].weight.abs().sum(0) == 0
        assert idle[:5].all()
        assert not idle[5:].any()


def test_a_budget_that_is_met_changes_nothing():
    model, x = mlp()
    before = copy.deepcopy(model.state_dict())
    done = silence_(model, find_symmetries(model, (x,)), parameters=10**6)
    assert all(c.after == c.before for c in done)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_named_classes_alone_are_cut_and_bad_input_is_refused():
    model, x = mlp()
    symmetries = find_symmetries(model, (x,))
    (only,) = silence_(model, symmetries, parameters=450, classes=["2"])
    assert only.name == "2"
    assert only.after < 15
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ControlError, match="no class 'x'; there are '0', '2'"):
        silence_(model, symmetries, parameters=300, classes=["x"])
    with pytest.raises(ControlError, match="parameters = 10 cannot be reached"):
        silence_(model, symmetries, parameters=10)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_classes_whose_units_cannot_go_one_by_one_are_refused():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.leave = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.leave(self.norm(self.enter(x)))

    torch.manual_seed(0)
    model = Normed()
    symmetries = find_symmetries(model, (torch.randn(3, 4),))
    with pytest.raises(ControlError, match="cannot go one by one"):
        silence_(model, symmetries, parameters=40, classes=[symmetries.units[0].name])
