"""Nothing is cut because of the inputs at hand; the original is left alone; bad arguments are named."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cases import numbers
from tests.control.folding.test_fold import mlp, seeded
from tests.control.zoo import evaluate, relative
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gaugefix.control import fold
from gaugefix.control.folding.thresholds import small, threshold
from gaugefix.errors import ControlError


def test_a_unit_that_is_off_on_these_inputs_only_stays() -> None:
    net = mlp(4, 6, 2)
    with torch.no_grad():
        net[0].bias[2] = -100.0
    assert fold(net, tolerance=0, example_inputs=numbers(32, 4)).removed == ()


@pytest.mark.parametrize("x", [torch.zeros(1, 4), torch.ones(5, 4), numbers(1, 4)], ids=["zeros", "equal", "single"])
def test_inputs_without_variety_do_not_make_constants(x: Tensor) -> None:
    net = mlp(4, 6, 2)
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 0, 0.5
    done = fold(net, tolerance=0, example_inputs=x)
    assert (done.removed[0].after, done.removed[0].constant) == (5, 1)
    other = numbers(7, 4, seed=2)
    assert relative(evaluate(done.model, (other,)), evaluate(net, (other,))) < 1e-6


def test_tokens_that_are_all_equal_make_no_constants() -> None:
    net = seeded(lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        net[1].weight[3], net[1].bias[3] = 0, 0.5
    assert fold(net, tolerance=0, example_inputs=torch.full((2, 3), 1)).removed == ()
    assert fold(net, tolerance=0, example_inputs=torch.tensor([[0, 1, 2], [3, 4, 0]])).removed[0].constant == 1


def test_softmax_over_the_units_is_noticed() -> None:
    """A router reads every expert: one that nothing else reads still takes its share of the softmax."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.score(x).softmax(-1))

    model = seeded(Router)
    with torch.no_grad():
        model.out.weight[:, 1] = 0
    done = fold(model, tolerance=0, example_inputs=numbers(8, 4))
    assert done.removed == ()
    assert "the outputs would change" in done.skipped["score"]


def test_a_collapsed_class_keeps_one_unit() -> None:
    net = mlp(4, 6, 2)
    with torch.no_grad():
        net[2].weight.zero_()
    done = fold(net, tolerance=0, example_inputs=numbers(8, 4))
    assert done.model[0].out_features == 1
    assert done.error == 0.0


def test_the_gap_finds_units_that_have_nearly_died() -> None:
    net = mlp(6, 16, 3)
    with torch.no_grad():
        net[0].weight[:5] *= 1e-3
        net[0].bias[:5] *= 1e-3
        net[2].weight[:, :5] *= 1e-3
    x = numbers(32, 6)
    assert fold(net, tolerance=0, example_inputs=x).removed == ()
    done = fold(net, example_inputs=x)
    assert done.removed[0].after == 11
    assert 0 < done.error < 1e-4
    assert fold(net, tolerance=0.05, example_inputs=x).removed[0].after == 11


def test_a_refit_brings_the_outputs_back() -> None:
    net, x = mlp(6, 16, 3, act=nn.Tanh), numbers(64, 6)
    with torch.no_grad():
        net[2].weight[:, :3] *= 0.05
    done = fold(net, tolerance=0.3, max_error=0.5, refit=[x], refit_steps=200, example_inputs=x)
    assert done.refit is not None
    assert done.refit.after < 0.5 * done.refit.before
    plain = fold(net, tolerance=0.3, max_error=0.5, example_inputs=x)
    assert plain.parameters == done.parameters
    assert done.error < plain.error


def test_parametrisations_and_masks_are_evaluated() -> None:
    net, x = mlp(6, 10, 8, 3), numbers(9, 6)
    prune.random_unstructured(net[0], "weight", 0.1)
    prune.ln_structured(net[2], "weight", 2, n=2, dim=1)
    parametrizations.weight_norm(net[4])
    with torch.no_grad():
        net[2](net[0](x))  # masks are applied in the forward pass
    done = fold(net, tolerance=0, example_inputs=x)
    assert done.model[0].out_features == 8
    assert sorted(done.model.state_dict()) == sorted(mlp(6, 8, 8, 3).state_dict())
    assert relative(evaluate(done.model, (x,)), evaluate(net, (x,))) < 1e-6


def test_widths_can_be_kept_round() -> None:
    net, x = mlp(6, 20, 3), numbers(9, 6)
    with torch.no_grad():
        net[2].weight[:, :9] = 0
    assert fold(net, tolerance=0, example_inputs=x).model[0].out_features == 11
    assert fold(net, tolerance=0, multiple_of=8, example_inputs=x).model[0].out_features == 16


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, i: Tensor) -> Tensor:
            x = self.table(i)
            return self.head(x + self.down(self.up(x).relu()))

    model = seeded(Tied)
    with torch.no_grad():
        model.down.weight[:, 0] = 0
    done = fold(model, tolerance=0, example_inputs=torch.tensor([[0, 1, 6], [2, 3, 5]]))
    assert done.model.up.out_features == 5
    assert done.model.head.weight is done.model.table.weight


def test_the_original_is_left_alone_and_its_settings_are_taken_over() -> None:
    net = mlp(4, 6, 2).bfloat16().train()
    net[0].weight.requires_grad_(False)
    with torch.no_grad():
        net[2].weight[:, 0] = 0
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    done = fold(net, tolerance=0, example_inputs=numbers(8, 4).bfloat16())
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert done.model.training
    assert {p.dtype for p in done.model.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in done.model.parameters()] == [False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1.5}, r"tolerance must be None or in \[0, 1\), got 1\.5"),
        ({"max_error": 0.0}, r"max_error must be a positive number, got 0\.0"),
        ({"multiple_of": 0}, "multiple_of must be an integer >= 1, got 0"),
        ({"refit": [], "refit_steps": 3}, "refit has no batch"),
        ({"refit": [numbers(2, 4)], "refit_steps": 0}, "refit_steps must be at least 1, got 0"),
        ({"example_inputs": None}, "example_inputs are needed"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ControlError, match=message):
        fold(mlp(4, 6, 2), **{"example_inputs": numbers(2, 4), **options})  # type: ignore[arg-type]


@given(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=20), st.integers(0, 5), st.floats(1e-9, 1e-4))
def test_the_gap_separates_what_is_a_hundred_times_smaller(large: list[float], n: int, scale: float) -> None:
    import numpy as np

    sizes = np.array([*large, *(scale * x for x in large[:n])])
    mask = small(sizes, None, 1e-16)
    assert mask.sum() == len(large[:n])
    assert threshold(sizes, 0.0, 1e-16) < 1e-12
