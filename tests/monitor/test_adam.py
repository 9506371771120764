"""Signal-to-noise ratios from Adam's state, averaged over snapshots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.monitor import AdamStateMonitor


def _run(optimizer, params, mean, steps=1500, every=10):
    monitor, generator = AdamStateMonitor(optimizer, batch_size=8), torch.Generator().manual_seed(0)
    for step in range(steps):
        for p, m in zip(params, mean, strict=True):
            p.grad = m + torch.randn(p.shape, generator=generator)
        optimizer.step()
        if step % every == 0:
            monitor.update()
    return monitor.report()


def test_the_ratio_and_its_error_bar_are_right():
    params = [nn.Parameter(torch.zeros(300)), nn.Parameter(torch.zeros(300))]
    weak, strong = _run(torch.optim.Adam(params, lr=0.0), params, (0.3, 2.0))
    for row, truth in ((weak, 0.09), (strong, 4.0)):
        assert row["snr"] == pytest.approx(truth, abs=max(4 * row["snr_stderr"], 0.03 * truth))
        assert row["noise_scale"] == pytest.approx(8 / row["snr"])
        assert row["snapshots"] > 100
        assert row["valid"]
    assert strong["rms_update"] > weak["rms_update"] > weak["noise_rms"]


def test_pure_noise_has_the_size_of_the_reference():
    params = [nn.Parameter(torch.zeros(2000))]
    (row,) = _run(torch.optim.Adam(params, lr=0.0), params, (0.0,), steps=400)
    assert row["snr"] < 0.02
    assert row["rms_update"] == pytest.approx(row["noise_rms"], rel=0.05)
    assert row["near_bound"] == 0.0


def test_amsgrad_has_no_reference_and_sgd_no_state():
    params = [nn.Parameter(torch.zeros(5))]
    (row,) = _run(torch.optim.Adam(params, lr=0.0, amsgrad=True), params, (1.0,), steps=40)
    assert (row["valid"], row["snapshots"]) == (False, 0)
    assert math.isnan(row["snr"])
    with pytest.raises(MeasurementError, match="SGD"):
        AdamStateMonitor(torch.optim.SGD(params, lr=0.1)).update()


def test_parameters_are_named_by_the_model():
    layer = nn.Linear(2, 1)
    adam = torch.optim.Adam(layer.parameters())
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    adam.step()
    assert [row["parameter"] for row in AdamStateMonitor(adam, layer).report()] == ["weight", "bias"]
