"""Exponents of live runs against closed forms, against perturbed runs, and against each other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure import lyapunov, lyapunov_exponent, normal_blocks, weight_decay_threshold
from gaugefix.measure.batches import endless
from gaugefix.measure.tangent_path import TangentPath
from gaugefix.theory import lyapunov_exponent as closed_form
from gaugefix.theory import origin_exponents

SIGNALS = np.array([2.0, -1.0])


PLUS, MINUS = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])


@pytest.mark.parametrize("lr", [0.1, 0.45, 0.6, 0.9, 1.5])
@pytest.mark.parametrize("mode", ["frozen", "path"])
def test_both_modes_of_the_origin(product_task, lr, mode):
    """A pass holds every target equally often, so that whole passes give the exact mean."""
    task = product_task(lr)
    for directions, exact in zip((PLUS, MINUS), origin_exponents(SIGNALS, lr), strict=True):
        found = lyapunov_exponent(task, directions, mode=mode, steps=160, burn_in=0)
        assert found.value == pytest.approx(exact, abs=1e-9)
        assert found.type2_residual < 1e-12
        assert found.verdict == ("collapses" if exact < 0 else "escapes") or abs(exact) < 2 * found.stderr


def test_all_directions_together_have_the_larger_exponent(product_task):
    found = lyapunov_exponent(product_task(0.9), torch.eye(2), steps=1600, burn_in=80)
    assert found.value == pytest.approx(max(origin_exponents(SIGNALS, 0.9)), abs=0.002)


def test_the_error_bar_is_that_of_independent_batches(product_task):
    h = torch.randn(1600, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    task = dataclasses.replace(product_task(0.3), batches=lambda: h.split(1))
    found = lyapunov_exponent(task, PLUS, mode="frozen", steps=1600, burn_in=0)
    logs = np.log(np.abs(1 + 0.3 * h.numpy()))
    assert found.value == pytest.approx(logs.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(logs.std() / math.sqrt(1600), rel=0.35)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_tangent_is_the_limit_of_a_run_beside_the_plane(tied, momentum):
    task, mirror = tied
    task = dataclasses.replace(task, momentum=momentum)
    run = TangentPath(task, mirror, frozen=False, seed=0)
    start = {k: v.clone() for k, v in run._all.items()}
    first = mirror.embed(run._z, start)
    growth = sum(run.step() for _ in range(60))

    size, model = 1e-6, task.model
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(start[k] + size * first[k] if k in first else start[k])
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr, weight_decay=task.weight_decay, momentum=momentum)
    stream = endless(task, 0)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model, next(stream)).mean().backward()
        optimizer.step()
    state = [mirror.coordinates({k: p.detach() for k, p in model.named_parameters()})]
    if momentum:
        buffers = {k: optimizer.state[p]["momentum_buffer"] for k, p in model.named_parameters()}
        state.append(task.lr * mirror.coordinates(buffers))
    assert math.log(float(torch.cat(state).norm()) / size) == pytest.approx(growth, abs=1e-6)


def test_without_noise_path_mode_at_a_fixed_point_is_the_hessian(product_task):
    """Full batch at the origin: Λ = log|1 − lr(h + λ)| with the most negative curvature −E y."""
    task = product_task(0.1, batch_size=80, weight_decay=0.2)
    found = lyapunov_exponent(task, torch.eye(2), steps=100, burn_in=400)
    assert found.value == pytest.approx(math.log(1 + 0.1 * (0.5 - 0.2)), abs=1e-9)
    assert found.stderr < 1e-9


def test_frozen_mode_refuses_a_snapshot(tied):
    task, mirror = tied
    with pytest.raises(MeasurementError, match=r"stationary point.*relative force is.*mode='path'"):
        lyapunov_exponent(task, mirror, mode="frozen")
    with pytest.raises(MeasurementError, match="stationary point"):
        normal_blocks(task, mirror)
    assert math.isnan(lyapunov_exponent(task, mirror, steps=40, burn_in=0).stationarity)


def test_a_plane_that_is_no_symmetry_is_found_out(tied):
    task, _ = tied
    total = sum(p.numel() for p in task.model.parameters())
    with pytest.warns(ValidityWarning, match="leaves the plane"):
        found = lyapunov_exponent(task, torch.eye(total)[:, :1], steps=40, burn_in=0)
    assert not found.valid
    assert found.verdict == "undecided"


def test_the_model_and_the_random_state_are_as_before(tied):
    task, mirror = tied
    task.model.train()
    before = {k: p.clone() for k, p in task.model.named_parameters()}
    state = torch.get_rng_state()
    lyapunov_exponent(task, mirror, steps=40, burn_in=0)
    assert torch.equal(state, torch.get_rng_state())
    assert task.model.training
    assert all(torch.equal(p, before[k]) and p.grad is None for k, p in task.model.named_parameters())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 10}, "at least 40"),
        ({"mode": "average"}, "'path' or 'frozen'"),
        ({"optimizer": "adam"}, "optimizer='sgd'"),
        ({"lr": 1e6}, "diverges"),
    ],
)
def test_what_cannot_be_measured_is_refused(tied, change, match):
    task, mirror = tied
    settings = {k: change.pop(k) for k in ("optimizer", "lr") if k in change}
    task = dataclasses.replace(task, **settings, loss=lambda m, b: m(b[0]).square().sum(1).square())
    with pytest.raises(MeasurementError, match=match):
        lyapunov_exponent(task, mirror, **change)


def test_frozen_parameters_are_refused(tied):
    task, mirror = tied
    task.model[0].weight.requires_grad_(False)
    with pytest.raises(MeasurementError, match=r"0\.weight"):
        lyapunov_exponent(task, mirror)


@pytest.mark.parametrize("mode", ["frozen", "path"])
def test_the_threshold_without_noise_is_the_curvature(product_task, mode):
    task = product_task(0.1, batch_size=80)
    found = weight_decay_threshold(task, PLUS, mode=mode, steps=40, burn_in=0, tolerance=1e-9)
    assert found.value == pytest.approx(0.5, rel=1e-8)  # −h = E y
    assert found.converged
    assert weight_decay_threshold(task, MINUS, mode=mode, steps=40, burn_in=0).value == 0.0


def test_the_threshold_under_noise_is_the_root_of_the_closed_form(product_task):
    found = weight_decay_threshold(product_task(0.3), PLUS, steps=160, burn_in=0, tolerance=1e-10)
    assert closed_form(-SIGNALS, 0.3, found.value) == pytest.approx(0.0, abs=1e-9)
    assert 0.1 < found.value < 0.3  # λ = 0.1 escapes, 0.3 collapses; −λ_min of the mean loss is 0.5
    assert found.stderr > 0


def test_no_threshold_below_one_over_the_learning_rate(product_task):
    task = product_task(0.9, targets=np.array([5.0]))
    with pytest.raises(MeasurementError, match="overshoot"):
        weight_decay_threshold(task, PLUS, steps=40, burn_in=0)


def test_the_report_takes_the_nearest_mirror_of_every_symmetry(tied):
    task, mirror = tied
    with torch.no_grad():
        for k, p in task.model.named_parameters():
            p.copy_(mirror.project(dict(task.model.named_parameters()))[k])
    found = lyapunov(task, find_symmetries(task), steps=60, burn_in=10)
    assert found.mirrors[0].name == mirror.name
    assert found.mirrors[0].distance < 1e-12
    assert len(found.mirrors) == 2  # swaps and sign flips
    assert "only the nearest 1" in " ".join(lyapunov(task, find_symmetries(task), max_mirrors=1, steps=40).skipped)


def test_listing_the_entries_of_the_plane_changes_nothing(tied, monkeypatch):
    task, mirror = tied
    listed = lyapunov_exponent(task, mirror, steps=40, burn_in=0).value
    monkeypatch.setattr("gaugefix.measure.tangent_path._LISTED", 0)
    assert lyapunov_exponent(task, mirror, steps=40, burn_in=0).value == pytest.approx(listed, abs=1e-12)
