"""Models that differ by a group element become equal, entry by entry."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.cases import Case, numbers
from tests.control.zoo import SELECTED, ZOO, evaluate, relative, zoo_model, zoo_symmetries
from torch import nn

from gaugefix.control import canonicalize
from gaugefix.control.state import state_of, write_state
from gaugefix.control.statistics import with_statistics


@pytest.mark.parametrize("case", ZOO)
def test_the_orbit_has_one_canonical_form(case: Case) -> None:
    model, args = zoo_model(case)
    found = zoo_symmetries(case.name)
    first = canonicalize(model, found, example_inputs=args)
    assert first.error < 1e-12
    assert first.converged
    assert first.degenerate == {}
    moved, state, generator = copy.deepcopy(model), state_of(model), torch.Generator().manual_seed(1)
    for s in found:
        if s.name in first.groups:
            whole = with_statistics(s, model)
            state = whole.apply(state, whole.sample(generator))
    write_state(moved, state)
    assert relative(evaluate(moved, args), evaluate(model, args)) < 1e-10
    second = canonicalize(moved, found, example_inputs=args)
    for (name, a), b in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8), name


def test_every_symmetry_is_either_fixed_or_left_with_a_reason() -> None:
    for case in SELECTED[::6]:
        model, args = zoo_model(case)
        found = zoo_symmetries(case.name)
        form = canonicalize(model, found, example_inputs=args)
        assert set(form.groups) | set(form.left) == {s.name for s in found}
        assert not set(form.groups) & set(form.left)


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).train()
    before = copy.deepcopy(net.state_dict())
    form = canonicalize(net, example_inputs=numbers(8, 4))
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert net.training
    assert form.model.training
    assert form.model is not net
    assert "model" not in form.to_dict()


def test_units_that_cannot_be_told_apart_are_counted() -> None:
    """Two units of equal size whose entries differ: which comes first is arbitrary."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.GELU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[2].weight.fill_(1.0)
    assert canonicalize(net, example_inputs=numbers(8, 2)).degenerate == {"0: permute": 1}
    with torch.no_grad():
        net[0].weight.fill_(1.0)  # now they are equal, and the order does not matter
    assert canonicalize(net, example_inputs=numbers(8, 2)).degenerate == {}
