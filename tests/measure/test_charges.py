import copy

import numpy as np
import pytest
import torch

from gaugefix.errors import MeasurementError
from gaugefix.measure import balance, charge_decomposition, check_charge_law


@pytest.fixture
def task(mlp, make_task, blobs):
    def make(activation="relu", **settings):
        model = mlp((5, 8, 6, 3), activation)
        return make_task(model, blobs, batch_size=8, **settings)

    return make


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_law_is_exact(task, mlp_units, activation, momentum, weight_decay):
    t = task(activation, momentum=momentum, weight_decay=weight_decay, lr=0.05)
    report = check_charge_law(t, mlp_units(t.model, activation), steps=25)
    assert len(report.law) == 2
    for law in report.law:
        assert law.exact
        assert law.error < 1e-13
        assert np.abs(law.measured - report.units[0].charge[0]).max() > 1e-3  # the charges did move


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_breaks_it(task, mlp_units, optimizer):
    t = task(optimizer=optimizer, lr=0.01)
    for law in check_charge_law(t, mlp_units(t.model, "relu"), steps=5).law:
        assert not law.exact
        assert law.error > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_no_charge_without_the_symmetry(task, mlp_units, activation):
    t = task(activation)
    report = check_charge_law(t, mlp_units(t.model, activation))
    assert report.law == ()
    assert all(not u.applies and "not homogeneous" in u.reason for u in report.units)


def test_a_false_claim_is_caught(task, mlp_units):
    t = task("tanh")
    law = check_charge_law(t, mlp_units(t.model, "relu"), steps=5).law  # tanh sold as ReLU
    assert min(found.error for found in law) > 1e-6


def test_decomposition_adds_up_and_first_order_vanishes_for_sgd(task, mlp_units, blobs):
    t = task(weight_decay=0.0)
    units = mlp_units(t.model, "relu")[0]
    before = {k: p.detach().clone() for k, p in t.model.named_parameters()}
    optimizer = torch.optim.SGD(t.model.parameters(), lr=0.1)
    t.loss(t.model, blobs).mean().backward()
    optimizer.step()
    after = dict(t.model.named_parameters())
    first, second = charge_decomposition(before, after, units)
    change = balance(after, [units])[0].charge - balance(before, [units])[0].charge
    assert first + second == pytest.approx(change, abs=1e-14)
    assert np.abs(first).max() < 1e-15
    assert np.abs(second).max() > 1e-6


def test_balance_counts_the_bias(task, mlp_units):
    t = task()
    found = balance(dict(t.model.named_parameters()), mlp_units(t.model, "relu"))[0]
    w, b, u = t.model[0].weight, t.model[0].bias, t.model[2].weight
    assert found.incoming == pytest.approx((w.square().sum(1) + b.square()).detach().numpy())
    assert found.outgoing == pytest.approx(u.square().sum(0).detach().numpy())
    assert (np.abs(found.imbalance) <= 1).all()


def test_a_zero_unit_has_no_imbalance(task, mlp_units):
    t = task()
    zeros = {k: torch.zeros_like(p) for k, p in t.model.named_parameters()}
    assert (balance(zeros, mlp_units(t.model, "relu"))[0].imbalance == 0).all()


def test_the_model_is_left_alone(task, mlp_units):
    t = task()
    t.model.train()
    state, rng = copy.deepcopy(t.model.state_dict()), torch.get_rng_state()
    check_charge_law(t, mlp_units(t.model, "relu"))
    assert t.model.training
    assert all(torch.equal(v, state[k]) for k, v in t.model.state_dict().items())
    assert all(p.grad is None for p in t.model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_steps_must_be_positive(task, mlp_units):
    t = task()
    with pytest.raises(MeasurementError, match="at least 1"):
        check_charge_law(t, mlp_units(t.model, "relu"), steps=0)
