"""Four routes to one potential, and the echo, against the leading order in the learning rate."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import echo_test, entropic_force, entropic_loss, irreversibility


@pytest.mark.parametrize("route", ["entropy", "substep", "reversal"])
def test_every_route_agrees_to_first_order_in_the_learning_rate(regression, route):
    errors = [
        irreversibility(regression(lr=lr), route, n_batches=4, substeps=256).relative_error
        for lr in (0.02, 0.01, 0.005)
    ]
    assert errors[-1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


def test_the_number_is_the_entropy_and_includes_the_decay(regression):
    task = regression(lr=0.01)
    assert irreversibility(task, n_batches=4).phi == pytest.approx(entropic_loss(task, n_batches=4).entropy, rel=1e-12)
    decayed = regression(lr=0.01, weight_decay=0.5)
    found = irreversibility(decayed, "entropy", n_batches=4)
    assert found.phi != pytest.approx(irreversibility(task, n_batches=4).phi, rel=0.05)
    assert found.relative_error < 0.1


def test_a_large_step_is_said_to_be_out_of_range(regression):
    found = irreversibility(regression(lr=0.3), "reversal", n_batches=4)
    assert not found.valid
    assert "curvature is not small" in found.reason


def test_the_echo_misses_by_the_predicted_vector(regression):
    found = [echo_test(regression(), steps=20, lr=lr) for lr in (0.001, 0.0005, 0.00025)]
    assert found[-1].rel_error < 0.03
    for a, b in itertools.pairwise(found):
        assert a.rel_error / b.rel_error == pytest.approx(2, rel=0.1)
        assert a.order == pytest.approx(math.log2(a.rel_error / b.rel_error), abs=1e-6)
        assert a.valid
        assert a.echo_norm / b.echo_norm == pytest.approx(4, rel=0.1)


def test_an_echo_out_of_range_says_so(regression):
    found = echo_test(regression(), steps=40, lr=0.3)
    assert not found.valid
    assert "off by" in found.reason
    flat = Task(nn.Linear(1, 1), lambda m, b: m(b)[:, 0], lambda: [torch.ones(2, 1)], lr=0.1, weight_decay=0.0,
                batch_size=2)  # fmt: skip
    assert "no irreversibility" in echo_test(flat).reason


def test_the_model_is_as_before(regression):
    task = regression()
    before = _values(task)
    for route in ("gradient", "entropy", "substep", "reversal"):
        irreversibility(task, route, n_batches=2)
    echo_test(task, steps=3)
    entropic_force(task, n_batches=2)
    assert all(torch.equal(v, before[k]) for k, v in _values(task).items())
    assert all(p.grad is None for p in task.model.parameters())


def test_what_has_no_echo_is_refused(regression):
    task = regression()
    for other in (dataclasses.replace(task, momentum=0.9), dataclasses.replace(task, optimizer="adam")):
        with pytest.raises(MeasurementError, match=r"momentum=0|optimizer="):
            echo_test(other)
    noisy = dataclasses.replace(task, loss=lambda m, b: (m(b[0]) - b[1]).square().sum(1) + torch.rand(()))
    with pytest.raises(MeasurementError, match="two evaluations"), torch.random.fork_rng():
        irreversibility(noisy)
    with pytest.raises(MeasurementError, match="route must be one of"):
        irreversibility(task, "detour")
    with pytest.raises(MeasurementError, match="lr > 0"):
        echo_test(task, lr=-0.1)


def _values(task):
    return {k: p.detach().clone() for k, p in task.model.named_parameters()}
