import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from gaugefix import Mirror, Task
from gaugefix.forecast import critical_weight_decay
from gaugefix.measure import o_hessian
from gaugefix.symmetry import Slice
from gaugefix.theory import growth_rates

LR = 0.05


def _problem(gamma, seed=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    y = (torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2)[:, None]
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    generator.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 3**0.5)
    task = Task(
        model,
        lambda m, b: (m(b[0]) - b[1]).square().sum(1),
        lambda: [(x, y)],
        lr=LR,
        weight_decay=2 * gamma,
        batch_size=64,
    )
    index = np.arange(3).reshape(1, 3, 1)
    slices = (Slice("0.weight", 0, index, "write"), Slice("2.weight", 1, index, "read"))
    return task, Mirror("0 = 1", slices, 0, np.array([1.0, -1.0, 0.0]) / 2**0.5, "swap")


def _params(task):
    return {k: p.detach() for k, p in task.model.named_parameters()}


def _descend(task, steps, each=lambda: None):
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LR, weight_decay=task.weight_decay)
    batch = task.first_batch()
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.model, batch).mean().backward()
        optimizer.step()
        each()


def _move(task, change):
    with torch.no_grad():
        for k, p in task.model.named_parameters():
            p.copy_(change[k])


def _settle(task, mirror):
    """The stationary point of the penalised loss on the plane, by L-BFGS through the projection."""
    model, batch = task.model, task.first_batch()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        projected = mirror.project(dict(model.named_parameters()))
        output = functional_call(model, projected, (batch[0],))
        penalty = task.weight_decay / 2 * sum(p.square().sum() for p in projected.values())
        value = (output - batch[1]).square().mean() + penalty
        value.backward()
        return value

    optimizer.step(closure)
    _move(task, mirror.project(_params(task)))


@pytest.mark.parametrize(
    ("gamma", "published"),
    [(0.001, 0.016078), (0.003, 0.011189), (0.01, 0.003667), (0.03, -0.002297), (0.1, -0.002052)],
)
def test_growth_rate_off_the_plane(gamma, published):
    """2309.16932: log|z| grows by log(1 − η(λ_min + 2γ)) per step, to 1e-5."""
    task, mirror = _problem(gamma)
    _settle(task, mirror)
    found = critical_weight_decay(task, mirror)
    assert found.valid
    assert found.stationarity < 1e-6
    assert found.distance < 1e-12
    block = o_hessian(task, mirror)
    z = torch.from_numpy(block.eigenvectors[:, 0])
    start = _params(task)
    _move(task, {k: start[k] + 1e-6 * t for k, t in mirror.embed(z, start).items()})
    sizes = []
    _descend(task, 400, lambda: sizes.append(abs(float(mirror.coordinates(_params(task)) @ z))))
    slope = np.polyfit(np.arange(400), np.log(sizes), 1)[0]
    predicted = growth_rates(block.eigenvalues[:1], lr=LR, weight_decay=task.weight_decay)[0]
    assert slope == pytest.approx(predicted, abs=1e-5)
    assert found.rates[0] == pytest.approx(predicted)
    assert predicted == pytest.approx(published, abs=1e-6)
    assert found.collapses == (predicted < 0)


def test_conventions_and_validity():
    task, mirror = _problem(0.01)
    found = critical_weight_decay(task, mirror)
    assert found.gamma == found.weight_decay / 2
    assert found.weight_decay == max(0.0, -found.lambda_min)
    assert not found.valid  # a fresh model is at no stationary point
    assert "stationary" in found.reason
    assert found.distance > 0.01
    assert found.to_dict()["name"] == "0 = 1"


def test_other_optimisers_are_said():
    task, mirror = _problem(0.01)
    adam = Task(task.model, task.loss, task.batches, lr=LR, weight_decay=0.02, batch_size=64, optimizer="adam")
    assert "adam" in critical_weight_decay(adam, mirror).reason
