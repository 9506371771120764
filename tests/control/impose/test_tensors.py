"""Constraints on one tensor: the function stays, the penalty is the one that is promised, bad input changes nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gaugefix.control import impose
from gaugefix.errors import ControlError

TWO_ROWS = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])

VERBS = {
    "sparse": lambda m, s: impose.sparse(m, "0.weight", strength=s),
    "rows": lambda m, s: impose.group_sparse(m, "0.weight", strength=s),
    "columns": lambda m, s: impose.group_sparse(m, "0.weight", strength=s, dim=1),
    "labels": lambda m, s: impose.group_sparse(m, "0.weight", strength=s, groups=torch.arange(20).reshape(4, 5) % 3),
    "rank": lambda m, s: impose.low_rank(m, "0.weight", strength=s),
    "tied": lambda m, s: impose.tied(m, "0.weight", strength=s, units=[(0, 2, 3)]),
    "tied entries": lambda m, s: impose.tied(m, "0.weight", strength=s, units=(0, 2), entries=True, dim=1),
    "map": lambda m, s: impose.constraint(m, "0.weight", TWO_ROWS, [1.0, -2.0], strength=s, dim=0),
    "map groups": lambda m, s: impose.constraint(m, "0.weight", TWO_ROWS, strength=s, dim=0, groups=[0, 0]),
    "flat map": lambda m, s: impose.constraint(m, "0.bias", TWO_ROWS, strength=s),
}  # fmt: skip


def penalised(name: str, model: nn.Module) -> torch.Tensor:
    """The penalty that each verb stands for, written out."""
    w, b = model[0].weight, model[0].bias
    a = torch.from_numpy(TWO_ROWS)
    return {
        "sparse": lambda: w.abs().sum(),
        "rows": lambda: w.norm(dim=1).sum(),
        "columns": lambda: w.norm(dim=0).sum(),
        "labels": lambda: sum(w.flatten()[torch.arange(20) % 3 == k].norm() for k in range(3)),
        "rank": lambda: torch.linalg.matrix_norm(w, "nuc"),
        "tied": lambda: (w[2] - w[0]).norm() + (w[3] - w[2]).norm(),
        "tied entries": lambda: (w[:, 2] - w[:, 0]).abs().sum(),
        "map": lambda: (a @ w - torch.tensor([[1.0], [-2.0]])).abs().sum(),
        "map groups": lambda: (a @ w).norm(),
        "flat map": lambda: (a @ b).abs().sum(),
    }[name]()


@pytest.fixture
def model(mlp):
    return mlp((5, 4, 3), "tanh")


@pytest.fixture
def x():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", VERBS)
def test_the_function_is_unchanged_and_the_tensor_plain_again_after_collapse(name, model, x):
    before, keys = model(x).detach(), list(model.state_dict())
    VERBS[name](model, 0.1)
    assert torch.allclose(model(x), before, rtol=0, atol=1e-14)
    impose.collapse_(model, threshold=0.0)
    assert torch.allclose(model(x), before, rtol=0, atol=1e-14)
    assert list(model.state_dict()) == keys or set(model.state_dict()) == set(keys)
    assert type(model[0]) is nn.Linear
    assert all(p.requires_grad and p.is_leaf and isinstance(p, nn.Parameter) for p in model.parameters())


@pytest.mark.parametrize("name", VERBS)
def test_the_least_penalty_over_the_factors_is_the_promised_one(name, model):
    """Minimise the penalty along the gauge orbit of the factors: no smaller than promised, and reached at balance."""
    VERBS[name](model, 0.3)
    assert impose.penalty(model) > 0.3 * penalised(name, model)
    for tensor in [t for t in model[0].modules() if hasattr(t, "spread")]:
        tensor.spread = 1e-12  # balanced factors
    target = "bias" if name == "flat map" else "weight"
    setattr(model[0], target, getattr(model[0], target).detach().clone())
    assert impose.penalty(model).item() == pytest.approx(0.3 * penalised(name, model).item(), rel=1e-9)


@pytest.mark.parametrize("name", VERBS)
def test_stationary_points_are_those_of_the_penalised_problem(name, model):
    """Pull the tensor to a target T: no point near the end has a smaller ½‖W − T‖² + strength·R(W)."""
    VERBS[name](model, 0.4)
    where = "bias" if name == "flat map" else "weight"
    read = lambda: getattr(model[0], where)  # noqa: E731
    goal = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(read().shape)))
    chosen = [p for n, p in model[0].named_parameters() if n.startswith("parametrizations")]
    solver = torch.optim.LBFGS(chosen, max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-11,
                               tolerance_change=1e-15)  # fmt: skip

    def closure():
        solver.zero_grad()
        loss = (read() - goal).square().sum() / 2 + impose.penalty(model)
        loss.backward()
        return loss

    solver.step(closure)
    found = read().detach().clone()
    impose.collapse_(model, threshold=1e-4)
    value = read().detach().clone()
    assert torch.allclose(found, value, atol=1e-4)

    def objective(w):
        with torch.no_grad():
            read().copy_(w)
            return float((w - goal).square().sum() / 2 + 0.4 * penalised(name, model))

    best = objective(value)
    assert best <= objective(goal) - 1e-3  # the penalty did something
    for seed in range(200):  # convex: no point nearby is better, in any direction, those off the sparse set too
        step = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(value + 10.0 ** -(seed % 4) * step) > best - 1e-8


@pytest.mark.long
def test_l1_is_the_soft_threshold(x):
    layer = nn.Linear(24, 1, bias=False).double()
    goal = torch.linspace(-2, 2, 24, dtype=torch.float64)
    impose.sparse(layer, "weight", strength=0.7)
    adam = impose.optimizer(torch.optim.Adam, layer, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 4000)
    for _ in range(4000):
        adam.zero_grad()
        ((layer.weight[0] - goal).square().sum() / 2).backward()
        adam.step()
        schedule.step()
    expected = goal.sign() * (goal.abs() - 0.7).clamp_min(0)
    assert torch.allclose(layer.weight[0], expected, atol=1e-6)
    (done,) = impose.collapse_(layer)
    assert done.clear
    assert torch.equal(layer.weight[0] == 0, expected == 0)


def test_a_sign_flips_and_a_zero_grows(model):
    """Training from |u| = |v| could do neither."""
    layer = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, -1.0]]))
    impose.sparse(layer, "weight", strength=0.0)
    goal = torch.tensor([[-1.0, 1.0, 1.0]], dtype=torch.float64)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(500):
        sgd.zero_grad()
        (layer.weight - goal).square().sum().backward()
        sgd.step()
    assert torch.allclose(layer.weight, goal, atol=1e-6)


def test_a_smaller_rank_is_the_best_approximation(model):
    weight = model[0].weight.detach().clone()
    impose.low_rank(model, "0.weight", rank=2)
    left, s, right = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(model[0].weight, left[:, :2] * s[:2] @ right[:2], atol=1e-13)
    assert sum(p.numel() for p in model[0].parametrizations.parameters()) == 2 * (4 + 5)


def test_low_rank_of_a_convolution_and_groups_of_kernels():
    conv = nn.Conv2d(3, 8, 3).double()
    weight = conv.weight.detach().clone()
    impose.low_rank(conv, "weight", rank=3)
    assert conv.weight.shape == weight.shape
    assert int(torch.linalg.matrix_rank(conv.weight.flatten(1))) == 3
    other = impose.group_sparse(nn.Conv2d(3, 8, 3).double(), "weight", strength=0.1, dim=(0, 1))
    assert other.parametrizations.weight.original0.shape == (8, 3, 1, 1)
    norms = other.weight.detach().flatten(2).norm(dim=2)
    (done,) = impose.collapse_(other, threshold=float(norms.median()))
    assert (done.kind, done.dead, done.total) == ("groups", 12, 24)
    assert int((other.weight.flatten(2).norm(dim=2) == 0).sum()) == 12


def test_state_deepcopy_and_safetensors(tmp_path, model, mlp, x):
    VERBS["tied"](VERBS["flat map"](model, 0.2), 0.1)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fresh = VERBS["tied"](VERBS["flat map"](mlp((5, 4, 3), "tanh", seed=9), 0.2), 0.1)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(x), model(x))
    with torch.no_grad():
        next(model[0].parametrizations.parameters()).mul_(2)
    assert not torch.equal(twin(x), model(x))


@pytest.mark.parametrize("name", ["sparse", "rank", "tied"])
def test_factors_keep_their_precision_under_autocast(name, model):
    model = model.float()
    weight = model[0].weight.detach().clone()
    VERBS[name](model, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[0].weight.dtype == torch.float32
        assert torch.allclose(model[0].weight, weight, atol=1e-6)
        out = model(torch.randn(3, 5))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in impose.factors(model))


def _frozen(m):
    m[0].weight.requires_grad_(False)


def _shared(m):
    m.add_module("again", m[0])


def _tied_weights(m):
    m.add_module("again", nn.Linear(5, 4))
    m.again.weight = m[0].weight


def _imposed(m):
    impose.sparse(m, "0.weight", strength=0.1)


def _nan(m):
    with torch.no_grad():
        m[0].weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("prepare", "verb", "message"),
    [
        (None, lambda m: impose.sparse(m, "0.wieght", strength=1.0), "Did you mean '0.weight'"),
        (None, lambda m: impose.sparse(m, "weight", strength=1.0), "Did you mean '2.weight', '0.weight'"),
        (None, lambda m: impose.sparse(m[0], "running_mean", strength=1.0), "no parameter"),
        (None, lambda m: impose.sparse(m, "0.weight", strength=-1.0), r"number in \[0, inf\), got -1.0"),
        (None, lambda m: impose.sparse(m, "0.weight", strength=float("nan")), "got nan"),
        (None, lambda m: impose.sparse(m, "0.weight", strength=1.0, spread=0.0), "spread"),
        (None, lambda m: impose.low_rank(m, "0.weight", rank=5), r"rank must be an integer in \[1, 4\].*got 5"),
        (None, lambda m: impose.low_rank(m, "0.weight", rank=0), "got 0"),
        (None, lambda m: impose.low_rank(m, "0.weight", rank=True), "got True"),
        (None, lambda m: impose.low_rank(m, "0.weight", rank=2.5), "got 2.5"),
        (None, lambda m: impose.low_rank(m, "0.weight", strength=-1.0), "got -1.0"),
        (None, lambda m: impose.group_sparse(m, "0.weight", strength=-1.0), "got -1.0"),
        (None, lambda m: impose.tied(m, "0.weight", strength=-1.0, units=[0, 1]), "got -1.0"),
        (None, lambda m: impose.constraint(m, "0.bias", np.ones((1, 4)), strength=-1.0), "got -1.0"),
        (None, lambda m: impose.sparse(m, "0.weight", strength="0.1"), "got '0.1'"),
        (None, lambda m: impose.sparse(m, None, strength=1.0), r"got \(Sequential, None\)"),
        (None, lambda m: impose.low_rank(m, "0.bias", rank=1), "two dimensions"),
        (None, lambda m: impose.group_sparse(m, "0.weight", strength=1.0, dim=2), r"dim must be in \[-2, 2\)"),
        (None, lambda m: impose.group_sparse(m, "0.bias", strength=1.0, groups=torch.tensor([0, 2, 0, 2])), "left out"),
        (None, lambda m: impose.group_sparse(m, "0.bias", strength=1.0, groups=torch.ones(4)), "integer labels"),
        (None, lambda m: impose.group_sparse(m, "0.bias", strength=1.0, groups=torch.ones(3).int()), "shape"),
        (None, lambda m: impose.tied(m, "0.weight", strength=1.0, units=[0]), "two positions or more"),
        (None, lambda m: impose.tied(m, "0.weight", strength=1.0, units=[0, 4]), r"\[0, 4\)"),
        (None, lambda m: impose.tied(m, "0.weight", strength=1.0, units=[(0, 1), (1, 2)]), "once"),
        (None, lambda m: impose.constraint(m, "0.bias", np.ones((2, 4)), strength=1.0), "rank 1"),
        (None, lambda m: impose.constraint(m, "0.bias", np.ones((1, 3)), strength=1.0), r"shape \(k, 4\)"),
        (None, lambda m: impose.constraint(m, "0.bias", np.ones((1, 4)), np.ones(2), strength=1.0), r"b must have"),
        (None, lambda m: impose.constraint(m, "0.bias", np.full((1, 4), np.nan), strength=1.0), "finite"),
        (_frozen, lambda m: impose.sparse(m, "0.weight", strength=1.0), "frozen"),
        (_tied_weights, lambda m: impose.sparse(m, "0.weight", strength=1.0), "same parameter as 'again.weight'"),
        (_shared, lambda m: impose.low_rank(m, "0.weight", rank=1), "same parameter"),
        (_imposed, lambda m: impose.low_rank(m, "0.weight", rank=1), "parametrised already"),
        (_nan, lambda m: impose.sparse(m, "0.weight", strength=1.0), "not finite"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_changes_nothing(prepare, verb, message, model):
    if prepare:
        prepare(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ControlError, match=message):
        verb(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) or after[k].isnan().any() for k in before)


@pytest.mark.parametrize("name", ["sparse", "rank", "tied"])
def test_single_precision_keeps_the_function_to_rounding(name):
    model = nn.Sequential(nn.Linear(64, 32))
    weight = model[0].weight.detach().clone()
    VERBS[name](model, 0.1)
    rounding = torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(weight, 2))  # of a product of factors
    assert float((model[0].weight - weight).detach().abs().max()) < 2 * rounding


def test_integers_and_recurrent_layers_are_refused():
    with pytest.raises(ControlError, match="meta"):
        impose.sparse(nn.Linear(3, 4, device="meta"), "weight", strength=0.1)
    module = nn.Module()
    module.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ControlError, match="int64"):
        impose.sparse(module, "table", strength=0.1)
    with pytest.raises(ControlError, match="LSTMCell"):
        impose.sparse(nn.LSTM(3, 4), "weight_hh_l0", strength=0.1)
    cell = impose.sparse(nn.LSTMCell(3, 4), "weight_hh", strength=0.1)
    assert cell(torch.ones(2, 3))[0].shape == (2, 4)
