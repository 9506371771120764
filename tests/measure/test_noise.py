import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import gradient_noise


def _by_hand(task, batch):
    """Gradients of single samples, one backward pass each."""
    params = [p for p in task.model.parameters() if p.requires_grad]
    n = len(batch[0])
    rows = []
    for i in range(n):
        loss = task.loss(task.model, tuple(t[i : i + 1] for t in batch)).sum()
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def _check(task, batch, method):
    noise = gradient_noise(task)
    each = _by_hand(task, batch)
    covariance = torch.cov(each.T, correction=0)
    assert noise.method == method
    assert noise.n_samples == len(each)
    assert noise.total.trace == pytest.approx(float(covariance.trace()), rel=1e-10)
    assert noise.total.mean_sq == pytest.approx(float(each.mean(0).square().sum()), rel=1e-10)
    assert sum(g.trace for g in noise.groups) == pytest.approx(noise.total.trace, rel=1e-10)
    assert noise.total.snr == pytest.approx(noise.total.mean_sq / (noise.total.trace / task.batch_size))
    assert noise.stderr == pytest.approx(float(each.square().sum(1).std()) / len(each) ** 0.5)
    assert noise.temperature == task.lr / task.batch_size


def test_ghost_norms_of_an_mlp(mlp, make_task, blobs):
    _check(make_task(mlp((5, 7, 3), "tanh"), blobs, batch_size=16), blobs, "ghost norms")


def test_ghost_norms_of_frozen_parts(mlp, make_task, blobs):
    model = mlp((5, 7, 3), "relu")
    model[0].weight.requires_grad_(False)
    _check(make_task(model, blobs, batch_size=16), blobs, "ghost norms")


@pytest.mark.parametrize("positions", [2, 9])
def test_ghost_norms_over_positions(positions):
    torch_generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, positions, 4, generator=torch_generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    batch = (x, x.sum(1)[:, :2])
    task = Task(
        model,
        lambda m, b: (m(b[0]).sum(1) - b[1]).square().sum(1),
        lambda: [batch],
        lr=0.1,
        weight_decay=0.0,
        batch_size=12,
    )
    _check(task, batch, "ghost norms")


def test_vmap_for_other_layers():
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(10, 1, 6, 6, generator=generator, dtype=torch.float64),
        torch.arange(10) % 3,
    )
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()
    task = Task(
        model,
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"),
        lambda: [batch],
        lr=0.1,
        weight_decay=0.0,
        batch_size=10,
    )
    _check(task, batch, "vmap")


class _Tied(nn.Module):
    """A Linear layer whose weight is used a second time behind the back of its hooks."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).tanh() @ self.layer.weight


class _Branching(nn.Module):
    """Control flow on values: vmap cannot trace it."""

    def __init__(self):
        super().__init__()
        values = torch.linspace(-1, 1, 16).reshape(2, 4, 2)
        self.a, self.b = nn.Parameter(values[0].clone()), nn.Parameter(values[1].clone())

    def forward(self, x):
        return torch.stack([row @ (self.a if row.sum() > 0 else self.b) for row in x])


@pytest.mark.parametrize(("model", "method"), [(_Tied, "vmap"), (_Branching, "loop")])
def test_fallbacks(model, method):
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(9, 4, generator=generator, dtype=torch.float64),)
    task = Task(
        model().double(), lambda m, b: m(b[0]).square().sum(1), lambda: [batch], lr=0.1, weight_decay=0.0, batch_size=9
    )
    _check(task, batch, method)


def test_max_samples_stops_after_the_batch(mlp, make_task, blobs):
    task = make_task(mlp((5, 4, 3), "relu"), blobs, batch_size=8)
    assert gradient_noise(task, max_samples=10).n_samples == 16


def test_a_loss_with_float32_inside_still_works(mlp, blobs):
    weights = torch.tensor([1.0, 2.0, 3.0])
    x, y = blobs[0].float(), blobs[1]
    task = Task(
        mlp((5, 4, 3), "relu").float(),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], weight=weights, reduction="none"),
        lambda: [(x, y)],
        lr=0.1,
        weight_decay=0.0,
        batch_size=48,
    )
    assert gradient_noise(task).total.trace > 0


def test_nothing_to_measure(mlp, make_task, blobs):
    model = mlp((5, 4, 3), "relu")
    with pytest.raises(MeasurementError, match="at least 1"):
        gradient_noise(make_task(model, blobs), max_samples=0)
    model.requires_grad_(False)
    with pytest.raises(MeasurementError, match="requires_grad"):
        gradient_noise(make_task(model, blobs))
