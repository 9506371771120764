"""Rebalancing keeps the function, reaches the balanced point, and is the closed form where there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, Attention, Case, LoRA, numbers
from tests.control.zoo import ZOO, evaluate, relative, zoo_model, zoo_symmetries
from torch import Tensor, nn

from gaugefix import Task
from gaugefix.control import rebalance_
from gaugefix.control.gauges.matrices import balanced_pair, geometric_mean_map, nearest_turn, spd_power
from gaugefix.control.gauges.noise import _gradients
from gaugefix.errors import ControlError
from gaugefix.symmetry import find_symmetries


@pytest.mark.parametrize("to", ["norm", "equal_scale"])
@pytest.mark.parametrize("case", ZOO)
def test_the_function_is_kept_on_the_zoo(case: Case, to: str) -> None:
    model, args = zoo_model(case)
    before = evaluate(model, args)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    done = rebalance_(model, zoo_symmetries(case.name), example_inputs=args, to=to)
    assert relative(evaluate(model, args), before) < 1e-12
    assert done.error < 1e-12
    assert done.converged
    assert to != "norm" or done.norm[1] <= done.norm[0] * (1 + 1e-12)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


def test_both_sides_of_a_relu_unit_have_equal_norm() -> None:
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    rebalance_(net, example_inputs=numbers(8, 4))
    for into, out in ((net[0], net[2]), (net[2], net[4])):
        incoming = into.weight.square().sum(1) + into.bias.square()
        assert torch.allclose(incoming, out.weight.square().sum(0), rtol=1e-9)


def test_training_mode_is_kept_too_with_batch_norm() -> None:
    model, args = zoo_model(next(c for c in CASES if c.name == "bn-leaky"))
    model.train()
    before = evaluate(copy.deepcopy(model), args)
    done = rebalance_(model, example_inputs=args)
    assert done.changed
    assert relative(evaluate(copy.deepcopy(model), args), before) < 1e-12


def test_heads_have_equal_moments_on_both_sides() -> None:
    model, x = Attention(d=6, heads=2, bias=True).double(), numbers(3, 4, 6).double()
    done = rebalance_(model, example_inputs=x)
    assert len(done.groups) == 2
    stacked = torch.cat([model.qkv.weight, model.qkv.bias[:, None]], dim=1).detach()
    q, k, v = (part.reshape(2, 3, 7) for part in stacked.split(6))
    out = model.out.weight.detach().T.reshape(2, 3, 6)
    assert torch.allclose(q @ q.transpose(1, 2), k @ k.transpose(1, 2), atol=1e-12)
    assert torch.allclose(v @ v.transpose(1, 2), out @ out.transpose(1, 2), atol=1e-12)


def test_an_adapter_at_its_start_is_left_trainable() -> None:
    """B = 0 has no balanced point on its orbit; the limit A = B = 0 has the same function and no gradient."""
    model, x = LoRA().double(), numbers(8, 5).double()
    with torch.no_grad():
        model.B.zero_()
    before = model.A.detach().clone()
    done = rebalance_(model, example_inputs=x)
    assert done.unbounded == 2
    assert torch.equal(model.A, before)


def test_directions_that_the_product_lacks_stay_and_the_scale_is_balanced() -> None:
    net = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 8, bias=False)).double()
    done = rebalance_(net, example_inputs=numbers(8, 3))
    assert done.unbounded == 3
    assert done.converged
    assert torch.linalg.matrix_rank(net[1].weight) == 6
    assert torch.allclose(net[0].weight.norm(), net[1].weight.norm())


def test_the_matrix_step_is_the_geometric_mean_and_turns_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    plus, minus = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (9, 6))
    new, _, values = balanced_pair(plus, minus)
    mapped = nearest_turn(plus, new) @ new
    expected = spd_power(geometric_mean_map(plus @ plus.T, minus @ minus.T), 0.5) @ plus
    assert torch.allclose(mapped, expected, atol=1e-10)
    assert torch.allclose(values, torch.linalg.svdvals(minus.T @ plus)[:4], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(0, 1000))
def test_a_balanced_pair_has_the_same_product_at_any_rank(n: int, p: int, q: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plus = torch.randn(n, rank, generator=generator, dtype=torch.float64) @ torch.randn(
        rank, p, generator=generator, dtype=torch.float64
    )
    minus = torch.randn(n, q, generator=generator, dtype=torch.float64)
    a, b, _ = balanced_pair(plus, minus)
    assert torch.allclose(b.T @ a, minus.T @ plus, atol=1e-10)
    assert torch.allclose(a @ a.T, b @ b.T, atol=1e-10)


@pytest.fixture
def regression() -> Callable[[nn.Module], Task]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(96, 4, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1) + 0.3 * torch.randn(
        96, 2, generator=generator, dtype=torch.float64
    )

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().sum(1)

    return lambda model: Task(
        model, loss, lambda: zip(x.split(8), y.split(8), strict=True), lr=0.1, weight_decay=0.0, batch_size=8
    )


def test_noise_balance_of_units_is_the_fourth_root_law(regression: Callable[[nn.Module], Task]) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    task, old = regression(net), copy.deepcopy(net)

    def moments() -> tuple[Tensor, Tensor]:
        grads = _gradients(regression(net), 64, 0)
        into = sum(g["0.weight"].square().sum(1) + g["0.bias"].square() for g in grads)
        return into, sum(g["2.weight"].square().sum(0) for g in grads)

    into, out = moments()
    done = rebalance_(task, to="noise")
    assert done.error < 1e-12
    assert done.converged
    assert done.residual < 1e-6
    live = (into > 0) & (out > 0)
    factor = net[0].weight.norm(dim=1) / old[0].weight.norm(dim=1)
    assert torch.allclose(factor[live] ** 4, (into / out)[live], rtol=1e-6)
    into, out = moments()
    assert torch.allclose(into, out, rtol=1e-6)


def test_noise_balance_of_a_linear_pair_equates_the_moment_matrices(regression: Callable[[nn.Module], Task]) -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    done = rebalance_(regression(net), to="noise")
    assert done.error < 1e-12
    grads = _gradients(regression(net), 64, 0)
    plus = sum(g["0.weight"] @ g["0.weight"].T for g in grads)
    minus = sum(g["1.weight"].T @ g["1.weight"] for g in grads)
    assert relative(plus, minus) < 1e-3  # rank 2 of 3: the ridge of 1e-8 limits what can be reached


def test_frozen_parameters_stay_and_say_so() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    net[0].weight.requires_grad_(False)
    weight, last = net[0].weight.clone(), net[4].weight.detach().clone()
    done = rebalance_(net, example_inputs=numbers(8, 4))
    assert torch.equal(net[0].weight, weight)
    assert not torch.equal(net[4].weight, last)
    assert "0.weight" in done.left["0: rescale"]
    assert [p.requires_grad for p in net.parameters()] == [False, *[True] * 5]


def test_a_scale_invariant_weight_is_left_alone() -> None:
    model, args = zoo_model(next(c for c in CASES if c.name == "bn-gelu"))
    done = rebalance_(model, example_inputs=args)
    assert done.changed == ()
    assert any("scale invariance" in reason for reason in done.left.values())


def test_bad_input_leaves_the_model_untouched() -> None:
    net, other = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), nn.Linear(4, 2)
    x = numbers(8, 4)
    before = copy.deepcopy(net.state_dict())
    found = find_symmetries(net, (x,))
    with pytest.raises(ControlError, match="'norm', 'noise' or 'equal_scale', got 'sideways'"):
        rebalance_(net, found, to="sideways", example_inputs=x)  # type: ignore[arg-type]
    with pytest.raises(ControlError, match="example_inputs are needed"):
        rebalance_(net, found)
    with pytest.raises(ControlError, match="needs gradients"):
        rebalance_(net, found, to="noise", example_inputs=x)
    with pytest.raises(ControlError, match="which this model does not have"):
        rebalance_(other, found, example_inputs=x)
    with pytest.raises(ControlError, match=r"shape \(7, 4\), the symmetries were found for \(5, 4\)"):
        rebalance_(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)), found, example_inputs=x)
    with pytest.raises(ControlError, match=r"must be an nn\.Module or a gaugefix\.Task"):
        rebalance_("net", found, example_inputs=x)  # type: ignore[arg-type]
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())


def test_integer_parameters_are_refused() -> None:
    net = nn.Linear(4, 2)
    net.register_parameter("codes", nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False))
    with pytest.raises(ControlError, match=r"'codes' has dtype torch\.int8"):
        rebalance_(net, example_inputs=numbers(8, 4))


def test_a_change_of_the_function_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gaugefix.control.gauges import rebalance

    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    before, balance = copy.deepcopy(net.state_dict()), rebalance.balance_norms

    def wrong(state: dict[str, Tensor], *rest: object) -> object:
        done = balance(state, *rest)  # type: ignore[arg-type]
        done.state["2.bias"] = done.state["2.bias"] + 1.0
        return done

    monkeypatch.setattr(rebalance, "balance_norms", wrong)
    with pytest.raises(ControlError, match="The model is as it was"):
        rebalance_(net, example_inputs=numbers(8, 4))
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())


def test_half_precision_is_balanced_to_its_own_precision() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).bfloat16()
    done = rebalance_(net, example_inputs=numbers(8, 16).bfloat16())
    assert 1e-5 < done.error < done.tolerance == 2e-2
    assert net[0].weight.dtype == torch.bfloat16
