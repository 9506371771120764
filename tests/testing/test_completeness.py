"""The conformance checks themselves: they count correctly and fail when they must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.verify import judgeable_parameters, laboratory_copy, random_parameters
from gaugefix.testing import check_symmetries, flat_directions

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def two_layers(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3))


def test_a_linear_network_has_as_many_directions_as_a_single_layer_lacks() -> None:
    counted = flat_directions(two_layers(nn.Identity()), (X,))
    assert counted.rank == (4 + 1) * 3
    assert counted.flat == counted.n_parameters - counted.rank == 51 - 15
    assert counted.reliable
    assert counted.gap > 1e3


def test_a_dead_unit_adds_its_parameters() -> None:
    """A unit that never fires hides all its weights: 4 + 1 incoming less its scale, and 3 outgoing."""
    model = two_layers(nn.ReLU())
    params = random_parameters(model, torch.Generator().manual_seed(0))
    alive = {k: p.clone() for k, p in params.items()}
    alive["0.bias"] = torch.zeros(6, dtype=torch.float64)  # every unit fires for some inputs
    dead = {k: p.clone() for k, p in alive.items()}
    dead["0.bias"][2] = -1e3
    before, after = (flat_directions(model, (X,), params=p).flat for p in (alive, dead))
    assert before == 6
    assert after == 6 - 1 + (4 + 1 + 3)


def test_tokens_are_drawn_from_the_range_of_the_example() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    seen = flat_directions(model, (torch.tensor([[0, 2]]),))
    whole = flat_directions(model, (torch.tensor([[0, 4]]),))
    assert whole.rank == 2 * 5
    assert seen.rank == 2 * 3  # words 3 and 4 never occur


def test_too_large_a_model_is_refused() -> None:
    with pytest.raises(MeasurementError, match="51 parameters, the limit is 50"):
        flat_directions(two_layers(nn.ReLU()), (X,), max_parameters=50)


def test_a_constant_output_leaves_every_direction_flat() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0 * self.w.sum()

    assert flat_directions(Constant(), (X,)).flat == 3


def test_check_symmetries_finds_a_false_claim() -> None:
    """The symmetries of a ReLU network do not hold with tanh in its place."""
    found = find_symmetries(two_layers(nn.ReLU()), (X,))
    with pytest.raises(AssertionError, match="0: rescale changes the function by"):
        check_symmetries(found, two_layers(nn.Tanh()), (X,))


def test_check_symmetries_finds_a_wrong_dimension() -> None:
    model = two_layers(nn.ReLU())
    found = find_symmetries(model, (X,))
    wrong: Symmetries = replace(found, symmetries=tuple(replace(s, dim=s.dim + 1) if s.dim else s for s in found))
    with pytest.raises(AssertionError, match="claims 7 new directions, its generators add 6"):
        check_symmetries(wrong, model, (X,))


def test_the_laboratory_copy_has_no_dropout_no_epsilon_and_batch_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.LayerNorm(6)).train()
    lab = laboratory_copy(model)
    assert [m.training for m in lab] == [False, True, False, False]
    assert lab[1].eps == lab[3].eps == 1e-30
    assert next(lab.parameters()).dtype == torch.float64
    assert (model[1].eps, next(model.parameters()).dtype) == (1e-5, torch.float32)


def test_a_point_whose_batch_norm_sees_a_dead_unit_only_is_not_judged() -> None:
    """1/σ of a constant is rounding noise, of which no rank can be taken."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    params = random_parameters(model, torch.Generator().manual_seed(0))
    params["0.bias"][2] = -1e3
    assert not flat_directions(model, (X,), params=params, basis=True).reliable
    assert flat_directions(model, (X,)).reliable  # a point of its own choice


def test_inputs_that_a_norm_sees_as_zero_are_drawn_again() -> None:
    """A sample on which all three units are dead has derivatives of order 1/√ε behind an RMS norm."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.RMSNorm(3), nn.Linear(3, 11, bias=False))
    params = random_parameters(model, torch.Generator().manual_seed(0))
    params["0.bias"].zero_()
    counted = flat_directions(model, (X,), params=params)
    assert counted.reliable
    assert counted.flat == 1 + 3  # the size that the norm removes, gains against columns


def test_points_for_checks_are_drawn_until_no_norm_is_degenerate() -> None:
    """Without inputs the units of the first layer are dead at half of the points."""
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.BatchNorm1d(1), nn.Linear(1, 3))
    x = torch.zeros(8, 4)
    x[0, 0] = 1e-3
    for seed in range(6):
        point = judgeable_parameters(model, (x,), {}, torch.Generator().manual_seed(seed))
        assert float(point["0.bias"]) > -1e-2
