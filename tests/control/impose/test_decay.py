"""How weight decay reaches the factors: coupled or refused, ramped, forecast, in several processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix.control import impose
from gaugefix.errors import ControlError
from gaugefix.theory import factor_decay, steps_to_zero


def layer(strength: float = 0.1, seed: int = 0) -> nn.Linear:
    linear = nn.Linear(6, 4).double()
    with torch.no_grad():
        linear.bias.zero_()
        linear.weight.copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))
    return impose.sparse(linear, "weight", strength=strength)


def test_groups_hold_every_parameter_once_with_its_decay():
    model = nn.Sequential(layer(0.1), layer(0.2), nn.Linear(4, 4).double())
    model[2].bias.requires_grad_(False)
    groups = impose.parameter_groups(model, weight_decay=0.5, lr=0.3)
    assert [(g["weight_decay"], len(g["params"]), g["lr"]) for g in groups] == [
        (0.5, 3, 0.3),
        (0.1, 2, 0.3),
        (0.2, 2, 0.3),
    ]
    faster = impose.optimizer(torch.optim.SGD, model, lr=0.1, factor_lr=0.4, momentum=0.9).param_groups
    assert [(g["lr"], g["momentum"]) for g in faster] == [(0.1, 0.9), (0.4, 0.9), (0.4, 0.9)]
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(set(ids)) == len(ids) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop]
)
def test_optimizers_that_couple_are_accepted(kind):
    impose.optimizer(kind, layer(), lr=0.01)


def test_optimizers_that_do_not_are_refused_with_the_alternative():
    model = layer()
    for kind, options in (
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"decoupled_weight_decay": True}),
        (torch.optim.NAdam, {"decoupled_weight_decay": True}),
        (torch.optim.Adafactor, {}),
    ):
        with pytest.raises(ControlError, match=r"torch.optim.Adam\(…, weight_decay=…\)"):
            impose.optimizer(kind, model, lr=0.01, **options)
    with pytest.raises(ControlError, match="LBFGS has no weight decay"):
        impose.optimizer(torch.optim.LBFGS, model)
    with pytest.raises(ControlError, match=r"weight_decay 0 in the optimizer and strength 0\.1"):
        impose.check_optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ControlError, match="not in the optimizer"):
        impose.check_optimizer(model, torch.optim.SGD([model.bias], lr=0.1))
    impose.check_optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    with pytest.raises(ControlError, match="No constraint"):
        impose.penalty(nn.Linear(2, 2))


def test_decay_of_the_groups_is_the_gradient_of_the_penalty():
    one, two = layer(), layer()
    by_decay = impose.optimizer(torch.optim.SGD, one, lr=0.1, momentum=0.9)
    by_penalty = torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        for model, optimizer, extra in ((one, by_decay, 0.0), (two, by_penalty, 1.0)):
            optimizer.zero_grad()
            (model(torch.ones(1, 6).double()).square().sum() + extra * impose.penalty(model)).backward()
            optimizer.step()
    assert torch.allclose(one.weight, two.weight, atol=1e-14)


def test_ramp_sets_the_decay_and_goes_on_after_a_restart():
    model = nn.Sequential(layer(0.1), layer(0.2))
    optimizer = impose.optimizer(torch.optim.SGD, model, lr=0.1, weight_decay=0.7)
    ramp = impose.Ramp(optimizer, steps=4, start=0.2)
    seen = []
    for _ in range(6):
        seen.append([g["weight_decay"] for g in optimizer.param_groups])
        ramp.step()
    fractions = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert np.allclose(seen, [[0.7, 0.1 * f, 0.2 * f] for f in fractions])
    impose.check_optimizer(model, optimizer)
    again = impose.Ramp(impose.optimizer(torch.optim.SGD, model, lr=0.1), steps=4, start=0.2)
    again.load_state_dict({"done": 2})
    assert again.value == pytest.approx(0.6)
    assert impose.Ramp(None, steps=2).value == 0.0
    for bad in ({"steps": 0}, {"steps": 2, "start": 1.5}):
        with pytest.raises(ControlError, match="must be"):
            impose.Ramp(optimizer, **bad)
    with pytest.raises(ControlError, match="No group"):
        impose.Ramp(torch.optim.SGD(model.parameters(), lr=0.1), steps=3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("gradient", [0.0, 0.06, -0.08])
@pytest.mark.long
def test_dying_weights_shrink_at_the_predicted_rate(momentum, gradient):
    """Loss g·w for a small weight: count the steps from one size to another."""
    lr = 5 * (1 - math.sqrt(momentum)) ** 2  # overdamped: with complex roots the size swings around its envelope
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1e-3)
    impose.sparse(model, "weight", strength=0.1)
    sgd = impose.optimizer(torch.optim.SGD, model, lr=lr, momentum=momentum)
    sizes = []
    for _ in range(9000):
        sgd.zero_grad()
        (gradient * model.weight.sum()).backward()
        sgd.step()
        sizes.append(abs(float(model.weight.detach())))
        if sizes[-1] < 1e-20:
            break
    assert sizes[-1] < 1e-20
    reached = [
        max(k for k, s in enumerate(sizes) if s >= bar) for bar in (1e-8, 1e-16)
    ]  # it may pass through zero first
    predicted = float(steps_to_zero(1e-8, 1e-16, 0.1, lr, momentum=momentum, gradient=gradient))
    assert reached[1] - reached[0] == pytest.approx(predicted, abs=2, rel=0.01)


def test_forecast_of_steps_says_what_it_is_for():
    model = nn.Sequential(layer(0.1), impose.low_rank(nn.Linear(4, 3).double(), "weight", strength=0.2))
    first, second = impose.predict_steps(
        model, impose.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9), tolerance=1e-4
    )
    assert first.valid
    assert (first.name, second.name) == ("0.weight", "1.weight")
    assert first.time_constant == pytest.approx(10.0)
    assert first.start == pytest.approx(float(model[0].weight.detach().square().mean().sqrt()))
    rate = float(factor_decay(0.1, 0.1, momentum=0.9))
    assert first.start * rate ** (2 * first.steps) == pytest.approx(1e-4)
    adam = impose.predict_steps(model, impose.optimizer(torch.optim.Adam, model, lr=0.1))
    assert not adam[0].valid
    assert adam[0].reason
    assert math.isnan(adam[0].steps)
    with pytest.raises(ControlError, match="tolerance"):
        impose.predict_steps(model, impose.optimizer(torch.optim.SGD, model, lr=0.1), tolerance=0.0)


def test_noise_floor_finds_the_gap_or_says_that_there_is_none():
    rng = np.random.default_rng(0)
    living, dead = rng.uniform(0.1, 2.0, 300), 10 ** rng.uniform(-7, -5, 700)
    floor = impose.noise_floor(np.concatenate([living, dead]))
    assert floor.found
    assert (floor.dead, floor.total) == (700, 1000)
    blurred = impose.noise_floor(10 ** np.linspace(-5, 0, 500))
    assert not blurred.found
    assert blurred.dead == 0
    assert impose.noise_floor(np.zeros(3)).dead == 3
    exact = impose.noise_floor(np.array([0.0, 0.0, 0.4, 0.5]))
    assert (exact.found, exact.dead) == (True, 2)
    for bad in (np.array([]), np.array([-1.0]), np.array([np.nan])):
        with pytest.raises(ControlError, match="sizes"):
            impose.noise_floor(bad)
    with pytest.raises(ControlError, match="least_ratio"):
        impose.noise_floor(living, least_ratio=1.0)
    with pytest.raises(ControlError, match="threshold"):
        impose.collapse_(layer(), threshold=-1.0)
    with pytest.raises(ControlError, match="nothing to collapse"):
        impose.collapse_(nn.Linear(2, 2))
