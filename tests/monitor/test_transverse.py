"""The exponent along a training loop is the growth of a perturbation that the loop itself carries."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import TiedNeurons
from gaugefix.monitor import TransverseMonitor


def _task(lr=0.1):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 1, generator=generator).double(), torch.randn(64, generator=generator).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    task = Task(
        model, lambda m, b: (m(b[0])[:, 0] - b[1]) ** 2 / 2, lambda: iter(zip(x.split(8), y.split(8), strict=True)),
        lr=lr, weight_decay=0.02, batch_size=8,
    )  # fmt: skip
    return task


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_it_measures_how_a_small_difference_grows(momentum):
    """Beside the tied network train one whose pair is 1e-9 apart, on the same batches."""
    task = _task()
    plane = TiedNeurons("0", "2", 0, 1)
    apart = copy.deepcopy(task.model)
    mirror = plane.mirror(task.model)
    z = torch.randn(mirror.codim(dict(apart.named_parameters())), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for k, v in mirror.embed(1e-9 * z, dict(apart.named_parameters())).items():
            dict(apart.named_parameters())[k].add_(v)
    runs = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=momentum, weight_decay=0.02) for m in (task.model, apart)]
    monitor = TransverseMonitor(task, plane, runs[0], burn_in=300)
    state, sizes, batches = torch.get_rng_state(), [], list(task.batch_iter())
    for step in range(900):
        batch = batches[step % 8]
        monitor.step(batch)
        for model, sgd in zip((task.model, apart), runs, strict=True):
            sgd.zero_grad()
            task.loss(model, batch).mean().backward()
            sgd.step()
        sizes.append(float(mirror.coordinates({k: p.detach() for k, p in apart.named_parameters()}).norm()))
    found = monitor.result()
    assert found.steps == 600
    assert found.type2_residual < 1e-12
    assert found.value == pytest.approx(math.log(sizes[-1] / sizes[299]) / 600, abs=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_monitor_reads_what_the_optimiser_does_now():
    task = _task()
    sgd = torch.optim.SGD(task.model.parameters(), lr=0.1, weight_decay=0.02)
    monitor = TransverseMonitor(task, TiedNeurons("0", "2", 0, 1), sgd)
    batch = task.first_batch()
    before = {k: p.detach().clone() for k, p in task.model.named_parameters()}
    monitor.step(batch)
    assert all(torch.equal(p, before[k]) for k, p in task.model.named_parameters())
    sgd.param_groups[0]["lr"] = 1e-12
    assert monitor.step(batch) == pytest.approx(0.0, abs=1e-9)


def test_only_plain_sgd_of_one_setting_is_followed():
    task, plane = _task(), TiedNeurons("0", "2", 0, 1)
    with pytest.raises(MeasurementError, match="Adam"):
        TransverseMonitor(task, plane, torch.optim.Adam(task.model.parameters()))
    with pytest.raises(MeasurementError, match="Nesterov"):
        TransverseMonitor(task, plane, torch.optim.SGD(task.model.parameters(), 0.1, momentum=0.9, nesterov=True))
    first, second = task.model[0].parameters(), task.model[2].parameters()
    two = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2}])
    with pytest.raises(MeasurementError, match="2 different"):
        TransverseMonitor(task, plane, two).step(task.first_batch())
