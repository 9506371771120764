"""Balance of layers, the loss of backward error analysis, entropy production of a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import (
    backward_error_loss,
    entropic_loss,
    entropy_production_curve,
    equipartition_residual,
    gradient_balance,
    irreversibility,
)


@pytest.fixture
def layers():
    """A ReLU network 6-8-8-3 without biases on noisy targets, in batches of 8."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    sizes = ((6, 8), (8, 8), (8, 3))
    parts = [m for a, b in sizes for m in (nn.Linear(a, b, bias=False), nn.ReLU())][:-1]
    model = nn.Sequential(*parts).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)

    def batches(seed=0):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        return zip(x[order].split(8), y[order].split(8), strict=True)

    return Task(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1), batches, lr=0.05, weight_decay=0.03, batch_size=8)


def test_it_is_the_balance_of_its_groups(layers):
    found = gradient_balance(layers, n_batches=16)
    assert found.valid
    assert found.groups == ("0.weight", "2.weight", "4.weight")
    same = equipartition_residual(layers, {k: [k] for k in found.groups}, n_batches=16)[0]
    assert found.z == pytest.approx(same.z[:, 0], rel=1e-10)
    assert found.spread == pytest.approx(same.spread, rel=1e-10)
    assert found.predicted_sizes.sum() == pytest.approx(found.sizes.sum())


def test_sizes_that_are_as_predicted_are_in_balance(layers):
    """z is the same for all layers exactly where the sizes are those that the gradients hold."""
    found = gradient_balance(layers, n_batches=16)
    decay = 2 * 0.03 * (1 - 0.05 * 0.03 / 2)
    assert np.ptp(layers.lr * found.squares - decay * found.predicted_sizes) < 1e-12
    assert found.relaxation_steps == pytest.approx(1 / (layers.lr * decay))
    free = gradient_balance(dataclasses.replace(layers, weight_decay=0.0), n_batches=4)
    assert np.isnan(free.predicted_sizes).all()
    assert free.relaxation_steps == np.inf


def test_layers_that_no_rescaling_connects_are_refused_as_a_balance(layers, mlp, make_task, blobs):
    found = gradient_balance(make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=12), n_batches=4)
    assert not found.valid
    assert "no rescaling connects" in found.reason
    heavy = gradient_balance(dataclasses.replace(layers, momentum=0.9), n_batches=4)
    assert not heavy.valid
    assert "momentum" in heavy.reason


def test_groups_must_exist(layers):
    with pytest.raises(MeasurementError, match="no trainable parameter"):
        gradient_balance(layers, {"a": ["0.weight"], "b": ["nothing"]})
    with pytest.raises(MeasurementError, match="at least two"):
        gradient_balance(layers, {"a": ["0.weight"]})


def test_many_small_steps_on_the_modified_loss_are_one_large_step():
    curve = lambda p: (p["x"].cos() + 0.3 * p["x"] ** 2).sum()  # noqa: E731
    start = {"x": torch.tensor([0.4, 1.7], dtype=torch.float64)}

    def errors(n, added):
        out = []
        for lr in (0.02, 0.01):
            phi, x = backward_error_loss(curve, lr=lr, n_substeps=n) if added else curve, start
            for _ in range(n):
                x = {"x": x["x"] - lr / n * torch.func.grad(phi)(x)["x"]}
            once = start["x"] - lr * torch.func.grad(curve)(start)["x"]
            out.append(float((x["x"] - once).norm()))
        return out

    for n in (2, 8):
        large, small = errors(n, added=True)
        assert np.log2(large / small) == pytest.approx(3, abs=0.1)
        large, small = errors(n, added=False)
        assert np.log2(large / small) == pytest.approx(2, abs=0.1)
    assert backward_error_loss(curve, lr=0.1, n_substeps=1)(start) == curve(start)
    for bad in ({"lr": 0.0}, {"lr": 0.1, "n_substeps": 0}):
        with pytest.raises(MeasurementError, match="must be"):
            backward_error_loss(curve, **bad)


def test_its_mean_over_batches_is_the_entropic_loss(regression):
    task = regression(lr=0.01)
    params = {k: p.detach() for k, p in task.model.named_parameters()}

    def loss(batch):
        def of(p):
            out = torch.func.functional_call(task.model, p, (batch[0],))
            copy = nn.Identity()
            copy.forward = lambda _: out
            return task.loss(copy, batch).mean()

        return of

    values = [float(backward_error_loss(loss(b), lr=0.01)(params)) for b in task.batch_iter(0)]
    assert np.mean(values) == pytest.approx(entropic_loss(task, n_batches=4).total, rel=1e-10)


def test_the_entropy_production_of_a_run(regression):
    task = regression(lr=0.02, weight_decay=0.1)
    before = {k: p.detach().clone() for k, p in task.model.named_parameters()}
    found = entropy_production_curve(task, steps=200, smoothing=0.9)
    assert all(torch.equal(p, before[k]) for k, p in task.model.named_parameters())
    assert found.phi[0] == pytest.approx(irreversibility(task, n_batches=1).phi)
    assert found.cumulative == pytest.approx(np.cumsum(found.phi))
    assert found.smoothed[0] == pytest.approx(found.phi[0])
    assert (found.smoothed >= found.phi.min()).all()
    assert (found.smoothed <= found.phi.max()).all()
    assert found.falling
    assert not entropy_production_curve(task, steps=3).falling
    for bad in ({"steps": 0}, {"smoothing": 1.0}):
        with pytest.raises(MeasurementError, match="must be"):
            entropy_production_curve(task, **bad)
