"""Causes of hidden directions: the tests tell known kinds apart when the search is told nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.verify import judgeable_parameters
from gaugefix.testing import Cause, explain_hidden, flat_directions
from gaugefix.testing.causes import _still_flat

pytestmark = pytest.mark.long

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def kinds(model: nn.Module, *, points: int = 1) -> dict[str, int]:
    """Causes of all flat directions, as if no symmetry were known."""
    found = replace(find_symmetries(model, (X,), verify=False), symmetries=())
    explanation = explain_hidden(found, model, (X,), points=points)
    assert explanation.explained
    return {c.kind: c.count for c in explanation.causes}


def test_changes_between_linear_maps() -> None:
    """P − (in + 1) out."""
    assert kinds(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))) == {"linear": 51 - 15}


def test_what_a_norm_removes() -> None:
    """The mean of every column of the weight and of the bias, and the scale."""
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 11, bias=False))
    assert kinds(model)["removed"] == 5 + 1


def test_a_rescaling_goes_through_the_activation() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3))
    found = replace(find_symmetries(model, (X,), verify=False), symmetries=())
    (cause,) = explain_hidden(found, model, (X,), points=1).causes
    assert cause == Cause("basis", 6, ("leaky_relu at 1",), ("0.weight", "0.bias", "2.weight"))


def test_a_rotation_goes_through_the_norm() -> None:
    """O(5), with the gains against what reads them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 7))
    assert kinds(model) == {"linear": 4, "removed": 1, "basis": 6}


def test_dead_units_are_gone_at_another_point() -> None:
    """Units of two inputs without biases are dead or always on for the next layer at many points, not at all."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    explanation = explain_hidden(find_symmetries(model, (X,)), model, (X,), points=40)
    assert explanation.hidden == 0
    assert [c.kind for c in explanation.causes] == ["point"]


def test_what_fits_no_test_is_unknown() -> None:
    """Any change that only the output does not see, because it is sorted, is no affine function of a value."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x[:, :3] * self.a) ** 2 + torch.cos(x[:, :3] * self.b) ** 2 - torch.cos(
                x[:, :3] * (self.b + 0 * self.a)
            ) ** 2 - torch.sin(x[:, :3] * self.a) ** 2  # fmt: skip

    model = Pairs()
    found = replace(find_symmetries(model, (X,), verify=False), symmetries=())
    explanation = explain_hidden(found, model, (X,), points=1)
    assert not explanation.reliable or not explanation.explained


@pytest.mark.parametrize("points", [1, 3])
def test_a_complete_search_leaves_nothing_to_explain(points: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3))
    explanation = explain_hidden(find_symmetries(model, (X,)), model, (X,), points=points)
    assert (explanation.hidden, explanation.causes, explanation.explained) == (0, (), True)
    assert explanation.points == points


def test_units_that_are_on_for_the_usual_inputs_are_not_on_for_wide_ones() -> None:
    """An always-on ReLU makes its layer linear there: only the rescalings of the units are left elsewhere."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 11))
    params = judgeable_parameters(model, (X,), {}, torch.Generator().manual_seed(0))
    params["0.bias"] = torch.tensor([12.0, 0.0, 0.0], dtype=torch.float64)
    flat = flat_directions(model, (X,), params=params, basis=True)
    assert flat.basis is not None
    assert flat.flat == 3 + 1  # the bias of the unit against those behind
    assert len(_still_flat(model, (X,), {}, params, flat.basis, seed=0)) == 3


def test_few_inputs_leave_what_their_outputs_do_not_fix() -> None:
    """Three words give three rows of two numbers, whatever the parameters; a fourth of them would be seen."""
    tokens = torch.tensor([[0, 1, 2, 2]] * 4)
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    found = replace(find_symmetries(model, (tokens,), verify=False), symmetries=())
    explanation = explain_hidden(found, model, (tokens,), points=1)
    p = sum(p.numel() for p in model.parameters())
    assert explanation.causes == (Cause("few", p - 3 * 2),)
    wide = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 7, bias=False))
    found = replace(find_symmetries(wide, (tokens,), verify=False), symmetries=())
    assert "few" not in {c.kind for c in explain_hidden(found, wide, (tokens,), points=1).causes}


def test_a_change_of_basis_up_to_size_goes_through_an_idle_norm() -> None:
    """GL(4) in front of an RMS norm whose size the next norm removes: O(4) keeps sizes, the rest does not."""
    model = nn.Sequential(
        nn.Linear(4, 4), nn.RMSNorm(4, elementwise_affine=False), nn.Linear(4, 9, bias=False), nn.LeakyReLU(),
        nn.Linear(9, 5, bias=False), nn.RMSNorm(5), nn.Linear(5, 11),
    )  # fmt: skip
    found = kinds(model)
    assert found["size"] == 16 - 6 - 1  # symmetric matrices without the trace, which is removed


def test_products_that_span_few_functions() -> None:
    """Six products of linear functions of four numbers; two outputs are two quadratic forms, of ten coefficients each.

    A product can move in a space of 4 + 4 − 1 forms; what lies in the span of the six is a change of basis.
    """

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
            self.c = nn.Linear(6, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * self.b(x))

    found = kinds(Gate())
    assert sum(found.values()) == 24 + 24 + 12 - 10 * 2
    assert found == {"removed": 6, "basis": 6 * (4 + 4 - 1 + 6 - 10), "product": 40 - 6 - 18}


class _Single(nn.Module):
    """Scores in float32, as many language models ask for: no trouble until everything else is in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.keys, self.values = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scores = torch.matmul(h.to(torch.float32), self.keys).softmax(-1, dtype=torch.float32)
        return self.second(scores.to(h.dtype) @ self.values)


def test_a_model_that_asks_for_float32_is_followed_in_float64() -> None:
    model = _Single()
    explanation = explain_hidden(replace(find_symmetries(model, (X,)), symmetries=()), model, (X,), points=1)
    assert explanation.explained
    assert explanation.hidden == flat_directions(model, (X,)).flat > 0
