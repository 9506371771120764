"""The claims of the studies of noise can fail: each is given a wrong theory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gaugefix.studies import (
    Setting,
    adaptive_gradients,
    local_maxima,
    minibatch_noise,
    power_law_escape,
    type_two_saddles,
    width_noise,
)
from gaugefix.studies.registry import find_study
from gaugefix.studies.runner import run_claim

ONE = Setting((0,))


def fails(paper, name):
    found = run_claim(next(c for c in find_study(paper).claims if c.name == name), ONE)
    assert found.error is None, found.error
    return not found.passed


def test_without_the_noise_of_the_curvature_the_loss_is_too_low(monkeypatch):
    right = minibatch_noise.label_noise_sgd

    def additive(a, sigma2, lr, batch, momentum=0.0):  # noise proportional to the Hessian, in continuous time
        excess = sigma2 * lr * a.sum() / (4 * batch * (1 - momentum))
        return dataclasses.replace(right(a, sigma2, lr, batch, momentum), train_loss=sigma2 / 2 + excess)

    monkeypatch.setattr(minibatch_noise, "label_noise_sgd", additive)
    monkeypatch.setattr(minibatch_noise, "CASES", (((1.0, 0.5), 0.8, 10, 0.0),))
    assert fails("2102.05375", "losses")


def test_the_excess_of_a_network_needs_its_curvature(monkeypatch):
    monkeypatch.setattr(width_noise, "WIDTHS", (100,))
    width_noise._run.cache_clear()
    assert not fails("2102.05375", "width")
    right = width_noise._curvatures
    monkeypatch.setattr(width_noise, "_curvatures", lambda x, net: right(x, net) / 2)
    width_noise._run.cache_clear()
    assert fails("2102.05375", "width")
    width_noise._run.cache_clear()


def test_one_learning_rate_for_all_widths_is_noisy(monkeypatch):
    monkeypatch.setattr(width_noise, "WIDTHS", (25, 100))
    monkeypatch.setattr(width_noise, "RULES", {"one lr": 0, "the same": 0})
    width_noise._run.cache_clear()
    assert fails("2102.05375", "width-variance")
    width_noise._run.cache_clear()


def test_the_curvature_across_counts_in_the_rate(monkeypatch):
    """Forget the dimensions: the power is then too high by n/2."""
    right = power_law_escape._well
    monkeypatch.setattr(power_law_escape, "_escapes", lambda _: np.array([[right(*w) for w in power_law_escape.WELLS]]))
    assert not fails("2105.09557", "escape-time")
    monkeypatch.setattr(power_law_escape, "_well", lambda n, floor, strength: right(1, floor, strength))
    assert fails("2105.09557", "escape-time")


def test_the_mean_curvature_does_not_decide(monkeypatch):
    monkeypatch.setattr(local_maxima, "lyapunov_exponent", lambda h, lr: np.log(abs(1 - lr * np.mean(h))))
    assert fails("2107.11774", "exponent")


@pytest.mark.long
def test_without_noise_there_would_be_one_phase(monkeypatch):
    monkeypatch.setattr(type_two_saddles, "two_layer_phase", lambda *_: "Ib")
    assert fails("2303.13093", "phases")
    assert fails("2303.13093", "noise-and-decay")


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_the_bound_is_sharp(monkeypatch, factor):
    right = adaptive_gradients.update_bound
    monkeypatch.setattr(adaptive_gradients, "update_bound", lambda *b: factor * right(*b))
    assert fails("2105.07222", "bound")
