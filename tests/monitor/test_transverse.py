"""The exponent along a training loop is the growth of a perturbation that the loop itself carries."""

from __future__ import annotations

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


class _Toy(nn.Module):
    """w = 0 is a plane of codimension one; its curvature depends on the batch and on a, which trains."""

    def __init__(self, w):
        super().__init__()
        self.a, self.w = nn.Parameter(torch.tensor(0.3).double()), nn.Parameter(torch.tensor(w).double())


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_it_measures_how_a_small_difference_grows(momentum):
    """Beside a run on the plane train one that is 1e-9 away from it, on the same batches."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).double()

    def loss(m, b):
        return (m.a * b - b - 1) ** 2 / 2 + (1 + b) * m.a * m.w**2 / 2 + m.w**4

    on, off = _Toy(0.0), _Toy(1e-9)
    task = Task(on, loss, lambda: iter(x), lr=0.1, weight_decay=0.02, batch_size=4)
    runs = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=momentum, weight_decay=0.02) for m in (on, off)]
    monitor = TransverseMonitor(task, torch.tensor([[0.0], [1.0]]), runs[0], burn_in=0)
    before, size = torch.get_rng_state(), 1e-9
    for batch in x:
        monitor.step(batch)
        for model, sgd in zip((on, off), runs, strict=True):
            sgd.zero_grad()
            loss(model, batch).mean().backward()
            sgd.step()
        buffer = runs[1].state[off.w]["momentum_buffer"].item() if momentum else 0.0
        size = math.hypot(off.w.item(), 0.1 * buffer)  # the pair is what is multiplied
    found = monitor.result()
    assert found.steps == 40
    assert found.value == pytest.approx(math.log(size / 1e-9) / 40, abs=1e-7)
    assert found.type2_residual < 1e-12
    assert torch.equal(torch.get_rng_state(), before)


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
