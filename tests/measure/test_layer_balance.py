"""The exact balance of noise and weight decay over a window, and its approach to a stationary state."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import stationarity_residual


def _loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("decay", [0.05, 0.0])
def test_the_balance_is_exact_over_any_window(mlp, blobs, make_task, decay):
    task = make_task(mlp((5, 4, 3), "relu"), blobs, batch_size=8, lr=0.1, weight_decay=decay)
    for steps in (1, 37):
        found = stationarity_residual(task, steps=steps)
        assert [b.name for b in found] == ["0.weight", "2.weight"]
        assert all(b.identity_error < 1e-12 for b in found)
        assert all(math.isinf(b.residual) == (decay == 0) for b in found)


def test_the_residual_falls_as_training_comes_to_rest(mlp, blobs, make_task):
    task = make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=8, lr=0.1, weight_decay=0.05)
    before = stationarity_residual(task, ["0"], steps=600)[0]
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1, weight_decay=0.05)
    for _ in range(300):
        for batch in task.batches():
            optimizer.zero_grad()
            task.loss(task.model, batch).mean().backward()
            optimizer.step()
    after = stationarity_residual(task, ["0"], steps=600)[0]
    assert after.residual < 0.02 < before.residual
    assert after.work == pytest.approx(1, abs=0.1)


def test_a_balance_needs_sgd_and_a_layer(mlp, blobs, make_task):
    task = make_task(mlp((5, 4, 3), "tanh"), blobs)
    with pytest.raises(MeasurementError, match="'7'"):
        stationarity_residual(task, ["7"])
    with pytest.raises(MeasurementError, match="at least 1"):
        stationarity_residual(task, steps=0)
    with pytest.raises(MeasurementError, match="optimizer='sgd'"):
        stationarity_residual(dataclasses.replace(task, optimizer="adam"))
    with pytest.raises(MeasurementError, match="no trainable"):
        stationarity_residual(Task(nn.Conv1d(1, 1, 1), _loss, lambda: [blobs], lr=0.1, weight_decay=0.0, batch_size=1))
