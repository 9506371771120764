"""Per-sample Hessians against finite differences, limits of stability against closed forms."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import normal_blocks, stability_limits
from gaugefix.measure.batches import joined
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


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_blocks_do_not_depend_on_the_batches_the_samples_come_in(mlp, make_task, blobs, batch_size):
    task = make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=12, lr=0.2, weight_decay=0.02)
    mirror = next(m for m in find_symmetries(task).mirrors() if m.kind == "swap")
    data = [tuple(b) for b in task.batches()]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    whole = normal_blocks(dataclasses.replace(task, batches=lambda: [(x, y)]), mirror, max_samples=21, tolerance=9.0)
    split = dataclasses.replace(
        task, batches=lambda: list(zip(x.split(batch_size), y.split(batch_size), strict=True)), batch_size=batch_size
    )
    found = normal_blocks(split, mirror, max_samples=21, tolerance=9.0)
    assert found.blocks.shape == whole.blocks.shape == (21, 9, 9)
    assert np.abs(found.blocks - whole.blocks).max() < 1e-12 * np.abs(whole.blocks).max()


def test_batches_of_different_kinds_stay_apart():
    tokens = [{"ids": torch.ones(2, length), "y": torch.arange(2)} for length in (3, 3, 5)]
    sizes = [tuple(b["ids"].shape) for b in joined([*tokens, tokens[0]])]
    assert sizes == [(4, 3), (2, 5), (2, 3)]
    together = next(joined(tokens))
    assert together["y"].tolist() == [0, 1, 0, 1]
    scalars = [torch.tensor(1.0), torch.tensor(2.0)]
    assert list(joined(scalars)) == scalars
    assert len(list(joined([(torch.ones(1), 1), (torch.ones(1), 2)]))) == 2


def test_single_samples_are_differentiated_together(product_task, monkeypatch):
    """160 batches of one sample cost one forward derivative per direction, not 160."""
    import gaugefix.measure.normal_blocks  # noqa: F401  the name in the room is the function

    module, calls = sys.modules["gaugefix.measure.normal_blocks"], []
    monkeypatch.setattr(module, "jvp", lambda *a: calls.append(1) or torch.func.jvp(*a))
    task = product_task(0.1, repeats=80)
    assert normal_blocks(task, torch.eye(2)).blocks.shape == (160, 2, 2)
    assert len(calls) == 2
