"""Per-sample Hessians against finite differences, limits of stability against closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import normal_blocks, stability_limits
from gaugefix.theory import batch_means
from gaugefix.theory import lyapunov_exponent as closed_form

SIGNALS = np.array([2.0, -1.0])
PLUS, MINUS = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])


def test_limits_of_the_origin(product_task):
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


def test_limits_need_plain_sgd(product_task):
    task = dataclasses.replace(product_task(0.3), momentum=0.9)
    with pytest.raises(MeasurementError, match="momentum=0"):
        stability_limits(task, PLUS)


def test_batches_of_the_closed_form_are_those_of_the_blocks(product_task):
    blocks = normal_blocks(product_task(0.1), PLUS)
    drawn = blocks.batches(2, 40_000)[:, 0, 0]
    values, counts = np.unique(drawn.round(9), return_counts=True)
    assert values == pytest.approx(np.unique(-batch_means(SIGNALS, 2)))
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
