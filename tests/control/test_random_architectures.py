"""All four transforms on random architectures: the function stays, orbits have one form, copies come back."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.control.zoo import evaluate, relative
from tests.symmetry.architectures import random_architecture
from torch import nn

from gaugefix.control import align, canonicalize, fold, rebalance_
from gaugefix.control.state import state_of, write_state
from gaugefix.control.statistics import with_statistics
from gaugefix.errors import ControlError
from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.verify import random_parameters

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", [2, 17, 133, 258])
def test_nothing_changes_the_function(seed: int) -> None:
    """133: a rescaling that holds up to ε, seen far from the identity only. 258: a fused weight cut class by class."""
    generator = torch.Generator().manual_seed(seed)
    model, args = random_architecture(seed)
    model = model.double().eval()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    write_state(model, random_parameters(model, generator))
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            m.running_var = 0.5 + torch.rand(m.num_features, generator=generator, dtype=torch.float64)
    found, before = find_symmetries(model, args, verify=False), evaluate(model, args)

    balanced = copy.deepcopy(model)
    rebalance_(balanced, found, example_inputs=args)
    assert relative(evaluate(balanced, args), before) < 1e-11

    first, other, state = canonicalize(model, found, example_inputs=args), copy.deepcopy(model), state_of(model)
    for s in found:
        if s.name in first.groups:
            whole = with_statistics(s, model)
            state = whole.apply(state, whole.sample(generator))
    write_state(other, state)
    second = canonicalize(other, found, example_inputs=args)
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)
    assert align(model, other, found, example_inputs=args).distance[1] < 1e-9

    for u in found.units:
        for s in u.outgoing:
            block = s.take(state[s.param]).clone()
            block[:, 0] = 0
            state[s.param] = s.put(state[s.param], block)
    write_state(model, state)
    small = fold(model, found, tolerance=0, example_inputs=args)
    assert relative(evaluate(small.model, args), evaluate(model, args)) < 1e-9


def test_integer_and_meta_parameters_are_refused() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3)
    coded = copy.deepcopy(net)
    coded[0].weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ControlError, match=r"fold: parameter '0\.weight' has dtype torch\.int8"):
        fold(coded, example_inputs=x)
    with pytest.raises(ControlError, match=r"align: parameter '0\.weight' has dtype torch\.int8"):
        align(net, coded, example_inputs=x)
    with pytest.raises(ControlError, match=r"canonicalize: parameter '0\.weight' is on the meta device"):
        canonicalize(copy.deepcopy(net).to("meta"), example_inputs=x)
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ControlError, match="outputs at the example inputs are not finite"):
        rebalance_(net, example_inputs=x)
