import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import NoiseOperator, directional_variance, gradient_noise, noise_matvec


def _covariance(task, batch):
    params = list(task.model.parameters())
    losses = task.loss(task.model, batch)
    each = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, params, retain_graph=True)]) for value in losses
    ])
    return torch.cov(each.T, correction=0), each.mean(0)


def _flat(tensors, like):
    return torch.cat([tensors[k].reshape(-1) for k in like])


def _random(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}


class _Squared(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class _Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return _Squared.apply(self.layer(x))


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.attention, self.head = (
            nn.Linear(1, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = self.lift(x[..., None])
        return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))


@pytest.fixture(params=["mlp", "custom", "attention"])
def task(request, mlp, make_task, blobs):
    model = {"mlp": lambda: mlp((5, 4, 3), "tanh"), "custom": _Custom, "attention": _Attention}[request.param]()
    return make_task(model.double(), blobs, batch_size=20)


def test_directions_against_the_covariance(task, blobs):
    covariance, mean = _covariance(task, blobs)
    params = dict(task.model.named_parameters())
    directions = [_random(params, seed) for seed in range(3)]
    found = directional_variance(task, directions)
    for k, v in enumerate(directions):
        flat = _flat(v, params)
        assert found.variance[k] == pytest.approx(float(flat @ covariance @ flat), rel=1e-10)
        assert found.mean[k] == pytest.approx(float(mean @ flat), rel=1e-10)
    assert found.n_samples == 48
    assert (found.stderr > 0).all()


def test_product_against_the_covariance(task, blobs):
    covariance, _ = _covariance(task, blobs)
    params = dict(task.model.named_parameters())
    v = _random(params)
    expected = covariance @ _flat(v, params)
    assert torch.allclose(_flat(noise_matvec(task, v), params), expected, rtol=1e-9, atol=1e-12)
    part = {k: v[k] for k in list(v)[:1]}  # missing entries are zero
    padded = {k: part.get(k, torch.zeros_like(p)) for k, p in params.items()}
    assert torch.allclose(_flat(NoiseOperator(task) @ part, params), covariance @ _flat(padded, params), atol=1e-12)


def test_unit_vectors_add_up_to_the_trace(mlp, make_task, blobs):
    task = make_task(mlp((5, 2, 3), "tanh"), blobs, batch_size=48)
    bias = [{"2.bias": row} for row in torch.eye(3)]
    trace = {g.name: g.trace for g in gradient_noise(task).groups}["2.bias"]
    assert directional_variance(task, bias).variance.sum() == pytest.approx(trace, rel=1e-10)


def test_no_direction_and_unknown_names(mlp, make_task, blobs):
    task = make_task(mlp((5, 2, 3), "tanh"), blobs)
    assert directional_variance(task, []).variance.shape == (0,)
    with pytest.raises(MeasurementError, match=r"'nope'.*0\.weight"):
        directional_variance(task, {"nope": torch.ones(1)})
    task.model.requires_grad_(False)
    with pytest.raises(MeasurementError, match="requires_grad"):
        NoiseOperator(task)


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    task = Task(model, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=8)
    rng = torch.get_rng_state()
    found = directional_variance(task, {"0.weight": torch.ones(3, 3)})
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.isfinite(found.variance).all()
