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


def squared(model, batch):
    return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(1)


def tall(outputs=5, *, bias=True):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs, bias=bias))


PLANE = torch.randn(12, 2).double() @ torch.randn(2, 5).double()
ONE_HOT = F.one_hot(torch.arange(12) % 5, 5).float()


class TestSquaredError:
    """Outputs may turn about the targets, in directions in which these do not vary."""

    @pytest.mark.parametrize(
        ("target", "bias", "group", "dim", "isometric"),
        [
            (torch.zeros(12, 5), True, "O(5)", 10, True),
            (torch.zeros(12, 5), False, "O(5)", 10, True),
            (torch.ones(12, 5), True, "O(5)", 10, False),  # about the point (1, …, 1), which the bias can do
            (torch.ones(12, 5), False, "O(4)", 6, True),
            (PLANE, True, "O(3)", 3, None),
            (ONE_HOT, True, "Z_2", 0, False),  # targets sum to one: a reflection of the sum about one
        ],
        ids=["zero", "zero, no bias", "constant", "constant, no bias", "a plane", "one-hot"],
    )
    def test_what_the_targets_leave_free(self, target, bias, group, dim, isometric):
        found = find_symmetries(make_task(tall(bias=bias), squared, target))
        (turn,) = losses_of(found)
        assert (turn.group, turn.dim) == (group, dim)
        assert isometric is None or turn.isometric == isometric
        assert turn.parameters == (("2.weight", "2.bias") if bias else ("2.weight",))
        assert "these targets" in turn.name
        assert found.verified
        assert not found.rejected

    @pytest.mark.parametrize("target", [torch.randn(12, 5), ONE_HOT[:, [0, 1, 2, 3, 4]] * 2 + torch.eye(12, 5)])
    def test_nothing_if_the_targets_vary_in_all_directions(self, target):
        assert losses_of(find_symmetries(make_task(tall(bias=False), squared, target))) == []

    @pytest.mark.parametrize(
        "loss",
        [
            lambda m, b: F.smooth_l1_loss(m(b[0]), b[1], reduction="none").mean(1),
            lambda m, b: ((m(b[0]) - b[1]) ** 2 * torch.tensor([1.0, 1, 1, 1, 2])).sum(1),
            lambda m, b: (m(b[0]) - b[1]).pow(4).sum(1),
            lambda m, b: F.mse_loss(torch.tanh(m(b[0])), b[1], reduction="none").mean(1),
            lambda m, b: -(m(b[0]) - b[1]).square().sum(1),
        ],
        ids=["smooth l1", "weighted outputs", "fourth power", "squashed", "negative"],
    )
    def test_other_losses_are_not_taken_for_squared_error(self, loss):
        assert losses_of(find_symmetries(make_task(tall(), loss, torch.zeros(12, 5)))) == []

    def test_every_batch_counts(self):
        x, y = torch.randn(12, 4), torch.zeros(12, 5)
        y[-1] = torch.arange(5.0)  # the last batch of the pass

        def task(target):
            return Task(
                tall(), squared, lambda: zip(x.split(4), target.split(4), strict=True), lr=0.1, weight_decay=0.0,
                batch_size=4,
            )  # fmt: skip

        (free,) = losses_of(find_symmetries(task(torch.zeros(12, 5))))
        (turn,) = losses_of(find_symmetries(task(y)))
        assert (free.group, turn.group) == ("O(5)", "O(4)")

    def test_samples_of_weight_zero_do_not_count(self):
        weight = torch.tensor([1.0] * 8 + [0.0] * 4)
        target = torch.cat([torch.zeros(8, 5), torch.randn(4, 5)])
        found = find_symmetries(make_task(tall(), lambda m, b: weight * squared(m, b), target))
        assert [s.group for s in losses_of(found)] == ["O(5)"]

    def test_a_tied_or_squashed_last_layer_cannot_turn(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.randn(4, 4))

            def forward(self, x):
                return torch.tanh(x @ self.w) @ self.w

        assert losses_of(find_symmetries(make_task(Tied(), squared, torch.zeros(12, 4)))) == []
        squashed = nn.Sequential(tall(), nn.Sigmoid())
        assert losses_of(find_symmetries(make_task(squashed, squared, torch.zeros(12, 5)))) == []

    def test_the_generators_leave_the_loss_to_first_order(self):
        task = make_task(tall().double(), squared, PLANE)
        (turn,) = losses_of(find_symmetries(task))
        params = {n: p.detach().double() for n, p in task.model.named_parameters()}
        x, y = task.first_batch()

        def total(p):
            return squared(lambda z: torch.func.functional_call(task.model, p, (z,)), (x.double(), y)).sum()

        gradient = torch.func.grad(total)(params)
        for k in range(turn.n_generators):
            field = turn.generator(params, k)
            assert max(float(v.abs().max()) for v in field.values()) > 1e-3
            assert abs(sum(float((gradient[n] * v).sum()) for n, v in field.items())) < 1e-12

    def test_random_numbers_of_the_loss_are_its_own(self):
        task = make_task(tall(), lambda m, b: squared(m, b) * (1 + torch.rand(len(b[0]))), torch.zeros(12, 5))
        state = torch.get_rng_state()
        found = find_symmetries(task)
        assert torch.equal(torch.get_rng_state(), state)
        assert not found.rejected


class TestLossesOfDirections:
    """A loss that sees only the direction of the output does not see its length."""

    @pytest.mark.parametrize(
        "loss",
        [
            lambda m, b: 1 - F.cosine_similarity(m(b[0]), b[1]),
            lambda m, b: (F.normalize(m(b[0]), dim=1) - b[1]).square().sum(1),
            lambda m, b: (m(b[0]) / m(b[0]).norm(dim=1, keepdim=True) - b[1]).square().sum(1),
        ],
        ids=["cosine", "normalise", "by hand"],
    )
    def test_the_last_layer_may_be_rescaled(self, loss):
        found = find_symmetries(make_task(tall(3), loss, torch.randn(12, 3)))
        (scale,) = losses_of(found)
        assert (scale.group, scale.dim) == ("R+", 1)
        assert set(scale.parameters) == {"2.weight", "2.bias"}
        assert found.verified
        assert not found.rejected
        assert not any("loss:" in note for note in found.skipped)
