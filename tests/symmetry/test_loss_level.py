"""Symmetries that only the loss has."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gaugefix import Task, find_symmetries
from gaugefix.errors import SymmetryError


def make_task(model, loss, target):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return Task(model, loss, lambda: [(x, target)], lr=0.1, weight_decay=0.0, batch_size=12)


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3))


LABELS = torch.arange(12) % 3


def losses_of(symmetries):
    return [s for s in symmetries if s.level == "loss"]


def test_cross_entropy_does_not_see_a_common_shift_of_the_logits():
    found = find_symmetries(make_task(mlp(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), LABELS))
    extra = losses_of(found)
    assert sum(s.dim for s in extra) == 6  # the weight's 5 columns and the bias
    assert found.flat_dim == 11  # those of the function
    assert not found.rejected
    assert found.verified


def test_log_softmax_with_nll_is_the_same_loss():
    def loss(model, batch):
        return F.nll_loss(F.log_softmax(model(batch[0]), dim=-1), batch[1], reduction="none")

    assert sum(s.dim for s in losses_of(find_symmetries(make_task(mlp(), loss, LABELS)))) == 6


def test_soft_targets_keep_the_shift():
    target = torch.softmax(torch.randn(12, 3), dim=1)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    assert sum(s.dim for s in losses_of(find_symmetries(make_task(mlp(), loss, target)))) == 6


def test_squared_error_adds_nothing():
    def loss(model, batch):
        return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(1)

    found = find_symmetries(make_task(mlp(), loss, torch.randn(12, 3)))
    assert losses_of(found) == []
    assert found.flat_dim == 11


def test_loss_level_symmetries_leave_the_loss_and_move_the_function():
    task = make_task(mlp(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), LABELS)
    params = {n: p.detach().double() for n, p in task.model.named_parameters()}
    model = task.model.double()
    x, y = task.first_batch()
    x = x.double()

    def logits(p):
        return torch.func.functional_call(model, p, (x,))

    for s in losses_of(find_symmetries(task)):
        moved = s.apply(params, s.sample(torch.Generator().manual_seed(1)))
        assert not torch.allclose(logits(moved), logits(params), atol=1e-3)
        before, after = (F.cross_entropy(logits(p), y, reduction="none") for p in (params, moved))
        assert torch.allclose(after, before, rtol=1e-9, atol=1e-12)


def test_a_module_needs_arguments():
    with pytest.raises(SymmetryError, match="example arguments"):
        find_symmetries(mlp())
