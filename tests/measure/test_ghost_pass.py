"""What a measurement in one backward pass leaves behind: nothing of the graph, nothing in the user's model."""

import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.measure import gradient_noise
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.sample_gradients import Formed, Outer, RowNorms, squares


class _Kept:
    """A tensor that the graph keeps for its backward pass, as an object that can be watched."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, tensor):
        self.tensor = tensor
        self.alive.add(self)


@pytest.fixture
def task():
    """A network whose graph is watched, of linear layers and a convolution, over three batches."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(12, 1, 6, 6, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 2))

    def loss(model, batch):
        with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
            return model(batch[0]).square().sum(1)

    return Task(model.double(), loss, lambda: [(p,) for p in data.split(4)], lr=0.1, weight_decay=0.0, batch_size=4)


def test_graphs_go_without_the_garbage_collector(task):
    """A hook that knows its node would be a circle through the graph, and every batch would leave one."""
    gradient_noise(task)  # the check of the first call is another matter
    gc.collect()
    _Kept.alive.clear()
    gc.disable()
    try:
        assert gradient_noise(task).method == "ghost norms"
        assert len(_Kept.alive) == 0
    finally:
        gc.enable()


def test_the_graph_is_freed_as_the_pass_goes(task, monkeypatch):
    """When the last node is read, what the layers above it kept is gone."""
    seen = []
    gradient_noise(task)
    before = Outer.__init__
    monkeypatch.setattr(Outer, "__init__", lambda self, *a: (seen.append(len(_Kept.alive)), before(self, *a))[1])
    _Kept.alive.clear()
    gc.collect()
    gradient_noise(task, max_samples=1)
    assert len(seen) == 3  # three weights, the last one first
    assert seen[0] > seen[1] > seen[2]


def test_a_model_is_left_as_it_was(task):
    model = task.model.train()
    calls = []
    handle = model[3].register_forward_hook(lambda *_: calls.append(0))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    model[3].weight.grad = torch.ones_like(model[3].weight)
    gradient_noise(task)
    assert model.training
    assert model[3].weight.grad.eq(1).all()
    assert model[0].weight.grad is None
    assert all(torch.equal(before[k], p) and p.is_leaf and p.requires_grad for k, p in model.named_parameters())
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_copy_to_read_has_the_values_in_common(dtype):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).to(dtype)
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    task = Task(model, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=5)
    copy = exact_copy(task, read_only=True).model
    assert copy[2].weight is copy[0].weight
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]
    for p, q in zip(model.parameters(), copy.parameters(), strict=True):
        assert q is not p
        assert q.dtype == torch.float64
        assert torch.equal(p.double(), q)
        assert (p.data_ptr() == q.data_ptr()) == (dtype == torch.float64)
    assert copy[1].running_mean.data_ptr() != model[1].running_mean.data_ptr()
    assert all(p.dtype == dtype for p in model.parameters())


def test_norms_that_two_parameters_share_are_taken_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(6, k, generator=generator, dtype=torch.float64) for k in (4, 3))
    taken, norm = [], torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda t, **k: (taken.append(t), norm(t, **k))[1])
    norms = RowNorms()
    weight = squares([Outer(left[:, None, None], right[:, None, None], 4)], norms=norms)
    bias = squares([Formed(left)], norms=norms)
    assert len(taken) == 2
    assert torch.allclose(weight, torch.einsum("na,nb->nab", left, right).square().sum((1, 2)), rtol=1e-12)
    assert torch.allclose(bias, left.square().sum(1), rtol=1e-12)


def test_rows_that_begin_at_one_place_are_not_taken_for_each_other():
    rows = torch.arange(24.0, dtype=torch.float64).reshape(4, 6)
    norms = RowNorms()
    for view in (rows, rows.reshape(8, 3), rows[:2], rows.T, rows[:, :3], rows.expand(2, 4, 6)):
        assert torch.allclose(norms(view), view.square().sum(-1).sqrt().flatten(), rtol=1e-12)
