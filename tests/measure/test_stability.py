"""Exponents of live runs against closed forms, against perturbed runs, and against each other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure import lyapunov, lyapunov_exponent, normal_blocks, stability_limits, weight_decay_threshold
from gaugefix.measure.batches import endless
from gaugefix.measure.tangent_path import TangentPath
from gaugefix.theory import batch_means, origin_exponents
from gaugefix.theory import lyapunov_exponent as closed_form

SIGNALS = np.array([2.0, -1.0])


class Product(nn.Module):
    """f = u·w at its origin."""

    def __init__(self, u=0.0, w=0.0):
        super().__init__()
        self.uw = nn.Parameter(torch.tensor([u, w], dtype=torch.float64))


def product_task(lr, *, targets=SIGNALS, repeats=40, batch_size=1, weight_decay=0.0, model=None):
    """½(uw − y)², every target equally often, shuffled anew in every pass."""
    y = torch.tensor(np.tile(targets, repeats))

    def batches(seed=0):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        return y[order].split(batch_size)

    loss = lambda m, b: (m.uw.prod() - b).square() / 2  # noqa: E731
    return Task(model or Product(), loss, batches, lr=lr, weight_decay=weight_decay, batch_size=batch_size)


PLUS, MINUS = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])


@pytest.mark.parametrize("lr", [0.1, 0.45, 0.6, 0.9, 1.5])
@pytest.mark.parametrize("mode", ["frozen", "path"])
def test_both_modes_of_the_origin(lr, mode):
    """A pass holds every target equally often, so that whole passes give the exact mean."""
    task = product_task(lr)
    for directions, exact in zip((PLUS, MINUS), origin_exponents(SIGNALS, lr), strict=True):
        found = lyapunov_exponent(task, directions, mode=mode, steps=160, burn_in=0)
        assert found.value == pytest.approx(exact, abs=1e-9)
        assert found.type2_residual < 1e-12
        assert found.verdict == ("collapses" if exact < 0 else "escapes") or abs(exact) < 2 * found.stderr


def test_all_directions_together_have_the_larger_exponent():
    found = lyapunov_exponent(product_task(0.9), torch.eye(2), steps=1600, burn_in=80)
    assert found.value == pytest.approx(max(origin_exponents(SIGNALS, 0.9)), abs=0.002)


def test_the_error_bar_is_that_of_independent_batches():
    h = torch.randn(1600, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    task = dataclasses.replace(product_task(0.3), batches=lambda: h.split(1))
    found = lyapunov_exponent(task, PLUS, mode="frozen", steps=1600, burn_in=0)
    logs = np.log(np.abs(1 + 0.3 * h.numpy()))
    assert found.value == pytest.approx(logs.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(logs.std() / math.sqrt(1600), rel=0.35)


@pytest.fixture
def tied(mlp, make_task, blobs):
    """A tanh network beside a swap mirror, with minibatches of 12."""
    task = make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=12, lr=0.2, weight_decay=0.02)
    mirror = next(m for m in find_symmetries(task).mirrors() if m.kind == "swap")
    return task, mirror


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


def test_without_noise_path_mode_at_a_fixed_point_is_the_hessian():
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
def test_the_threshold_without_noise_is_the_curvature(mode):
    task = product_task(0.1, batch_size=80)
    found = weight_decay_threshold(task, PLUS, mode=mode, steps=40, burn_in=0, tolerance=1e-9)
    assert found.value == pytest.approx(0.5, rel=1e-8)  # −h = E y
    assert found.converged
    assert weight_decay_threshold(task, MINUS, mode=mode, steps=40, burn_in=0).value == 0.0


def test_the_threshold_under_noise_is_the_root_of_the_closed_form():
    found = weight_decay_threshold(product_task(0.3), PLUS, steps=160, burn_in=0, tolerance=1e-10)
    assert closed_form(-SIGNALS, 0.3, found.value) == pytest.approx(0.0, abs=1e-9)
    assert 0.1 < found.value < 0.3  # λ = 0.1 escapes, 0.3 collapses; −λ_min of the mean loss is 0.5
    assert found.stderr > 0


def test_no_threshold_below_one_over_the_learning_rate():
    task = product_task(0.9, targets=np.array([5.0]))
    with pytest.raises(MeasurementError, match="overshoot"):
        weight_decay_threshold(task, PLUS, steps=40, burn_in=0)


def test_limits_of_the_origin():
    found = stability_limits(product_task(0.9), PLUS, steps=3000)
    assert found.value == pytest.approx(closed_form(-SIGNALS, 0.9), abs=4 * found.stderr)
    assert found.curvature == pytest.approx(-0.5)
    assert found.critical_lr == pytest.approx(0.5, abs=max(4 * found.critical_lr_stderr, 1e-3))
    assert found.critical_lr_stderr < 0.03
    assert found.critical_batch == 2  # held by batches of 2, not of 3
    assert found.critical_decay == 0.0
    small = stability_limits(product_task(0.3), PLUS, steps=3000)
    assert closed_form(-SIGNALS, 0.3, small.critical_decay) == pytest.approx(0.0, abs=4 * small.stderr)
    assert small.critical_batch == 0
    assert stability_limits(product_task(0.3), MINUS, steps=400).critical_batch == math.inf


def test_blocks_are_the_hessians_of_the_samples(tied, blobs):
    task, mirror = tied
    found = normal_blocks(task, mirror, max_samples=20, tolerance=math.inf)
    assert found.blocks.shape == (20, 9, 9)
    params = mirror.project({k: p.detach() for k, p in task.model.named_parameters()})

    def loss(z, i):
        moved = {k: params[k] + v for k, v in mirror.embed(z, params).items()}
        out = torch.func.functional_call(task.model, {**params, **moved}, (blobs[0][i : i + 1],))
        return nn.functional.cross_entropy(out, blobs[1][i : i + 1])

    size = 1e-4
    for i in (0, 13):
        values = {}
        for a, b in [(0, 0), (0, 1), (3, 8)]:
            e = size * torch.eye(9, dtype=torch.float64)
            corners = [s * t * loss(s * e[a] + t * e[b], i) for s in (1, -1) for t in (1, -1)]
            values[a, b] = float(sum(corners)) / (4 * size**2)
        for (a, b), value in values.items():
            assert found.blocks[i, a, b] == pytest.approx(value, abs=1e-5)


def test_batches_of_a_smaller_size_are_prefixes_of_the_same_draws(tied):
    task, mirror = tied
    blocks = normal_blocks(task, mirror, max_samples=48, tolerance=math.inf)
    one, few, many = (blocks.batches(b, 30, seed=1) for b in (1, 4, 30))
    assert np.abs(few - one).max() > 1e-6
    direct = np.stack([blocks.blocks[i] for i in np.random.default_rng(1).integers(0, 48, 30)])
    assert one == pytest.approx(direct)
    assert np.abs(many.mean(0) - blocks.blocks.mean(0)).max() < np.abs(one.mean(0) - blocks.blocks.mean(0)).max()


def test_too_many_directions_are_refused():
    model = nn.Sequential(nn.Linear(200, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    x = torch.randn(8, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = Task(model, lambda m, b: (m(b)[:, 0] - 1).square(), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=8)
    with pytest.raises(MeasurementError, match=r"20[01] normal directions"):
        normal_blocks(task, next(find_symmetries(task).mirrors()))


def test_limits_need_plain_sgd():
    task = dataclasses.replace(product_task(0.3), momentum=0.9)
    with pytest.raises(MeasurementError, match="momentum=0"):
        stability_limits(task, PLUS)


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


def test_batches_of_the_closed_form_are_those_of_the_blocks():
    blocks = normal_blocks(product_task(0.1), PLUS)
    drawn = blocks.batches(2, 40_000)[:, 0, 0]
    values, counts = np.unique(drawn.round(9), return_counts=True)
    assert values == pytest.approx(np.unique(-batch_means(SIGNALS, 2)))
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_listing_the_entries_of_the_plane_changes_nothing(tied, monkeypatch):
    task, mirror = tied
    listed = lyapunov_exponent(task, mirror, steps=40, burn_in=0).value
    monkeypatch.setattr("gaugefix.measure.tangent_path._LISTED", 0)
    assert lyapunov_exponent(task, mirror, steps=40, burn_in=0).value == pytest.approx(listed, abs=1e-12)
