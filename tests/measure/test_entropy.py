"""Entropic loss, gradient balance, irreversibility and echo against exact averages over batches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure import (
    backward_error_objective,
    entropic_force,
    entropic_loss,
    entropy_report,
    equipartition_residual,
    matrix_equipartition,
)
from gaugefix.measure.perexample import trainable


def _set(task, values):
    with torch.no_grad():
        for k, p in task.model.named_parameters():
            p.copy_(values[k])


def _values(task):
    return {k: p.detach().clone() for k, p in task.model.named_parameters()}


def _gradient(task, batches):
    losses = torch.cat([task.loss(task.model, b) for b in batches]).mean()
    return dict(zip(trainable(task.model), torch.autograd.grad(losses, list(task.model.parameters())), strict=True))


def _distance(a, b):
    return math.sqrt(sum(float((a[k] - b[k]).square().sum()) for k in a))


def test_the_parts_are_those_of_the_definition(regression):
    task = regression(lr=0.02, weight_decay=0.1)
    found = entropic_loss(task, n_batches=4)
    batches = list(task.batches())
    each = [sum(float(g.square().sum()) for g in _gradient(task, [b]).values()) for b in batches]
    mean_sq = sum(float(g.square().sum()) for g in _gradient(task, batches).values())
    assert found.entropy == pytest.approx(0.02 / 4 * np.mean(each), rel=1e-12)
    assert found.mean_sq == pytest.approx(mean_sq, rel=1e-12)
    assert found.noise == pytest.approx(np.mean(each) - mean_sq, rel=1e-9)
    assert found.penalty == pytest.approx(0.05 * sum(float(p.square().sum()) for p in _values(task).values()))
    assert found.total == pytest.approx(found.loss + found.penalty + found.entropy, rel=1e-15)
    assert found.stderr == pytest.approx(0.005 * np.std(each, ddof=1) / 2)


def test_the_force_is_minus_the_gradient_of_the_entropy(regression):
    task = regression()
    force = entropic_force(task, n_batches=4).force
    start, size = _values(task), 1e-5
    for name, index in [("0.weight", (1, 2)), ("2.bias", (0,)), ("2.weight", (2, 4))]:
        sides = []
        for sign in (1, -1):
            moved = {k: v.clone() for k, v in start.items()}
            moved[name][index] += sign * size
            _set(task, moved)
            sides.append(entropic_loss(task, n_batches=4).entropy)
        assert float(force[name][index]) == pytest.approx(-(sides[0] - sides[1]) / (2 * size), rel=1e-6)


def test_an_epoch_follows_the_entropic_loss_and_no_other_multiple(regression):
    """Mean over all 24 orders of 4 batches against the flow of L + c·S: third order in lr for c = 1, second else."""
    errors = {c: [] for c in (0.0, 0.5, 1.0, 1.5)}
    for lr in (0.004, 0.002):
        task = regression(lr=lr)
        start, batches = _values(task), list(task.batches())
        ends = {k: torch.zeros_like(v) for k, v in start.items()}
        for order in itertools.permutations(batches):
            _set(task, start)
            for b in order:
                g = _gradient(task, [b])
                _set(task, {k: v - lr * g[k] for k, v in _values(task).items()})
            ends = {k: v + _values(task)[k] / 24 for k, v in ends.items()}
        for c, found in errors.items():
            found.append(_distance(ends, _flow(task, start, batches, 4 * lr, c)))
    assert math.log2(errors[1.0][0] / errors[1.0][1]) == pytest.approx(3, abs=0.25)
    for c in (0.0, 0.5, 1.5):
        assert math.log2(errors[c][0] / errors[c][1]) < 2.4
        assert errors[c][1] > 3 * errors[1.0][1]


def _flow(task, start, batches, time, coefficient, n=4):
    """θ(time) of θ' = −∇(L + coefficient·S), by Runge–Kutta."""

    def velocity(point):
        _set(task, point)
        force, g = entropic_force(task, n_batches=4).force, _gradient(task, batches)
        return {k: coefficient * force[k] - g[k] for k in g}

    move = lambda a, v, t: {k: a[k] + t * v[k] for k in a}  # noqa: E731
    point, h = start, time / n
    for _ in range(n):
        a = velocity(point)
        b = velocity(move(point, a, h / 2))
        c = velocity(move(point, b, h / 2))
        d = velocity(move(point, c, h))
        point = {k: p + h / 6 * (a[k] + 2 * b[k] + 2 * c[k] + d[k]) for k, p in point.items()}
    return point


def test_entropy_keeps_rotations_and_breaks_rescalings(regression):
    task = regression("relu")
    start = _values(task)
    along = []
    for c in (0.8, 0.9, 1.0, 1.1, 1.2):
        s = torch.tensor([c, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
        _set(task, start | {"0.weight": s[:, None] * start["0.weight"], "0.bias": s * start["0.bias"],
                            "2.weight": start["2.weight"] / s})  # fmt: skip
        along.append(entropic_loss(task, n_batches=4))
    assert np.ptp([e.loss for e in along]) < 1e-12
    assert np.all(np.diff([e.entropy for e in along], 2) > 0)
    order = torch.tensor([3, 1, 0, 4, 2])
    _set(task, start | {"0.weight": start["0.weight"][order], "0.bias": start["0.bias"][order],
                        "2.weight": start["2.weight"][:, order]})  # fmt: skip
    assert entropic_loss(task, n_batches=4).entropy == pytest.approx(along[2].entropy, rel=1e-13)


def test_online_sampling_is_warned_about(regression):
    task = regression()
    with pytest.warns(ValidityWarning, match="symmetry directions only"):
        found = entropic_force(task, sampling="online", n_batches=2)
    assert not found.valid
    assert entropic_force(task, n_batches=2).valid
    assert set(found.to_dict()["force"]) == set(_values(task))
    with pytest.raises(MeasurementError, match="'reshuffle' or 'online'"):
        entropic_force(task, sampling="sometimes")


def test_one_batch_has_no_noise(regression):
    found = entropic_loss(regression(batch_size=64), n_batches=1)
    assert math.isnan(found.noise)
    assert not found.valid
    assert found.entropy == pytest.approx(0.005 / 4 * found.mean_sq)
    with pytest.raises(MeasurementError, match="n_batches"):
        entropic_loss(regression(), n_batches=0)


def test_the_drift_of_every_charge_is_exact(regression):
    """Mean over the batches of one real step, not a limit of small steps."""
    task = regression("relu", lr=0.05, weight_decay=0.3)
    symmetries = find_symmetries(task)
    found = next(e for e in equipartition_residual(task, symmetries, n_batches=4))
    units = next(u for u in symmetries.units if u.name == found.name)
    start = _values(task)

    def charge(values):
        return units.rows(values, "read").square().sum(1) - units.rows(values, "write").square().sum(1)

    changes = []
    for b in task.batches():
        g = _gradient(task, [b])
        after = {k: v - 0.05 * (g[k] + 0.3 * v) for k, v in start.items()}
        changes.append(charge(after) - charge(start))
    assert found.drift == pytest.approx(torch.stack(changes).mean(0).numpy(), abs=1e-12)
    assert np.abs(found.drift).max() > 1e-3


def test_the_layers_of_a_homogeneous_network_drift_apart_by_their_z(mlp, make_task):
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.standard_normal((32, 4))), torch.from_numpy(rng.standard_normal((32, 2)))
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) if a else nn.ReLU() for a, b in [(4, 6), (0, 0), (6, 5), (0, 0), (5, 2)])).double()  # fmt: skip  # noqa: E501
    task = make_task(model, (x, y), batch_size=8, lr=0.03, weight_decay=0.2)
    names = list(_values(task))
    (found,) = equipartition_residual(task, {k: [k] for k in names}, n_batches=4)
    start, changes = _values(task), []
    for b in task.batches():
        g = _gradient(task, [b])
        after = {k: v - 0.03 * (g[k] + 0.2 * v) for k, v in start.items()}
        changes.append([float(after[k].square().sum() - start[k].square().sum()) for k in names])
    change = np.mean(changes, axis=0)
    assert np.diff(change) == pytest.approx(0.03 * np.diff(found.z[:, 0]), abs=1e-13)
    assert found.spread == pytest.approx(np.ptp(found.z) / np.abs(found.z).mean())
    with pytest.raises(MeasurementError, match=r"'9\.weight'"):
        equipartition_residual(task, {"a": ["9.weight"]})


def test_the_matrix_drift_of_a_linear_class_is_exact(regression):
    task = regression("identity", lr=0.05, weight_decay=0.3)
    symmetries = find_symmetries(task)
    (found,) = matrix_equipartition(task, symmetries, n_batches=4)
    units = next(u for u in symmetries.units if u.name == found.name)
    start = _values(task)

    def charge(values):
        u, w = units.rows(values, "read"), units.rows(values, "write")
        return u @ u.T - w @ w.T

    changes = []
    for b in task.batches():
        g = _gradient(task, [b])
        changes.append(charge({k: v - 0.05 * (g[k] + 0.3 * v) for k, v in start.items()}) - charge(start))
    assert found.drift[0] == pytest.approx(torch.stack(changes).mean(0).numpy(), abs=1e-12)
    diagonal = equipartition_residual(task, symmetries, n_batches=4)[0].drift
    assert np.diagonal(found.drift[0]) == pytest.approx(diagonal, abs=1e-13)
    assert found.residual > 0.01
    relu = regression("relu")
    assert matrix_equipartition(relu, find_symmetries(relu), n_batches=1) == ()


def test_training_brings_the_layers_into_balance(make_task):
    """Online label noise, weight decay: the spread of z ends small while the gradients themselves stay apart."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((512, 4)))
    y = x @ torch.from_numpy(rng.standard_normal((4, 2))) + torch.from_numpy(rng.standard_normal((512, 2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.mul_(3)
    task = make_task(model, (x, y), batch_size=8, lr=0.03, weight_decay=0.1)
    groups = {"first": ["0.weight"], "second": ["2.weight"]}
    before = equipartition_residual(task, groups)[0].spread
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, weight_decay=0.1)
    total = np.zeros((2, 1))
    rounds = 20
    for epoch in range(2 * rounds):
        for i in torch.randperm(512, generator=torch.Generator().manual_seed(epoch)).split(8):
            optimizer.zero_grad()
            task.loss(model, (x[i], y[i])).mean().backward()
            optimizer.step()
        if epoch >= rounds:
            total += equipartition_residual(task, groups)[0].z / rounds
    after = np.ptp(total) / np.abs(total).mean()
    assert before > 0.3
    assert after < 0.1


def test_the_report_has_every_class_or_a_reason(regression):
    task = regression("relu")
    found = entropy_report(task, find_symmetries(task), n_batches=4)
    assert [e.name for e in found.equipartition] == ["0"]
    assert not found.skipped
    tanh = regression()
    assert "rescaling is not" in entropy_report(tanh, find_symmetries(tanh), n_batches=2).skipped[0]
    found.to_dict()


@pytest.mark.parametrize(("n_substeps", "order"), [(4, 3), (1, 2)])
def test_small_steps_on_the_backward_error_objective_go_where_one_step_goes(regression, n_substeps, order):
    """Four steps η/4 on φ_4 miss one step η on ℓ by O(η³), on ℓ itself (φ_1) by O(η²)."""
    misses = []
    for lr in (0.02, 0.01):
        task = regression(lr=lr, weight_decay=0.1)
        batch, start = next(iter(task.batches())), _values(task)
        params = dict(task.model.named_parameters())

        def descend(steps, n, task=task, batch=batch, params=params, start=start):
            _set(task, start)
            for _ in range(steps):
                slope = torch.autograd.grad(backward_error_objective(task, batch, n_substeps=n), list(params.values()))
                _set(task, {k: p - task.lr / steps * g for (k, p), g in zip(params.items(), slope, strict=True)})
            return _values(task)

        misses.append(_distance(descend(1, 1), descend(4, n_substeps)))
    assert math.log2(misses[0] / misses[1]) == pytest.approx(order, abs=0.25)


def test_its_mean_is_the_entropic_loss(regression):
    task = regression(lr=0.02, weight_decay=0.0)
    each = [backward_error_objective(task, batch).item() for batch in task.batches()]
    assert np.mean(each) == pytest.approx(entropic_loss(task, n_batches=4).total, rel=1e-12)
    with pytest.raises(MeasurementError, match=r"at least 1, got 0\.5"):
        backward_error_objective(task, next(iter(task.batches())), n_substeps=0.5)
