"""Declared symmetries: the law of the charge, the point of rest, the jump, and agreement with what is found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.control import AttentionPair, MatrixPair, Rescaling, Scale
from gaugefix.errors import ControlError, ValidityWarning
from gaugefix.measure import noether_charges, noise_equilibrium

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, Y = draw(40, 5, seed=1), draw(40, 4, seed=2)


def relu(p):
    return ((X @ p["w"].T).relu() @ p["u"].T - Y).square().sum(1)


def unit(p):
    return (X @ (p["w"] / p["w"].norm()).T - Y[:, :3]).square().sum(1)


def product(p):
    return (torch.tanh(X @ (p["u"] @ p["w"]).T) - Y).square().sum(1)


def attention(p):
    q, k = ((X.view(8, 5, 5) @ p[n].T).unflatten(-1, (2, 2)).transpose(1, 2) for n in ("q", "k"))
    return ((q @ k.mT).softmax(-1).mean(1) @ X.view(8, 5, 5)).square().sum((1, 2))


CASES = {
    "rescaling": (Rescaling("u", "w"), relu, {"u": draw(4, 6), "w": draw(6, 5)}),
    "scale": (Scale("w"), unit, {"w": draw(3, 5)}),
    "matrix": (MatrixPair("u", "w"), product, {"u": draw(4, 3), "w": draw(3, 5)}),
    "attention": (AttentionPair("q", "k", heads=2), attention, {"q": draw(4, 5), "k": draw(4, 5, seed=3)}),
}


def gradients(losses, params):
    each = torch.func.jacrev(losses)(params)
    return [{k: g[i] for k, g in each.items()} for i in range(len(each[next(iter(each))]))]


@pytest.fixture(params=CASES)
def case(request):
    pair, losses, params = CASES[request.param]
    return pair, losses, {k: v.clone() for k, v in params.items()}


def test_the_losses_are_invariant_and_others_are_not(case):
    pair, losses, params = case
    assert pair.check(losses, params) < 1e-14
    assert pair.check(lambda p: losses(p) + sum(v.sum() for v in p.values()), params) > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_one_step_moves_the_charge_as_the_law_says(case, decay):
    pair, losses, params = case
    gradient = torch.func.grad(lambda p: losses(p).mean())(params)
    after = {k: p - 0.2 * (gradient[k] + decay * p) for k, p in params.items()}
    predicted = pair.charge(params) + pair.drift(params, [gradient], lr=0.2, weight_decay=decay)
    assert torch.allclose(pair.charge(after), predicted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rescaling", "matrix", "attention"])
def test_the_jump_ends_the_drift_at_the_least_noise_and_keeps_the_losses(name):
    pair, losses, params = CASES[name]
    params = {k: v.clone() for k, v in params.items()}
    before, noise = losses(params), sum(g.square().sum() for each in gradients(losses, params) for g in each.values())
    maps = pair.equilibrium(gradients(losses, params))
    pair.teleport_(params, maps)
    assert torch.allclose(losses(params), before, rtol=1e-10)
    now = gradients(losses, params)
    least = sum(g.square().sum() for each in now for g in each.values())
    assert least < noise
    assert pair.drift(params, now, lr=1.0).norm() < 1e-10 * least
    assert torch.allclose(pair.equilibrium(now), torch.eye(maps.shape[1], dtype=F64), atol=1e-8)
    generator = torch.Generator().manual_seed(5)
    for size in (1e-2, 0.3):  # anywhere else on the orbit there is more
        other = {k: v.clone() for k, v in params.items()}
        step = torch.randn(maps.shape, generator=generator, dtype=F64) * size
        pair.teleport_(other, torch.eye(maps.shape[1], dtype=F64) + step @ step.mT)
        assert sum(g.square().sum() for each in gradients(losses, other) for g in each.values()) > least


def test_momentum_moves_as_gradients_do():
    pair, losses, params = CASES["matrix"]
    params = {k: v.clone() for k, v in params.items()}
    momentum = {k: v.clone() for k, v in gradients(losses, params)[0].items()}
    maps = pair.equilibrium(gradients(losses, params))
    pair.teleport_(params, maps, momentum)
    expected = gradients(losses, params)[0]
    assert all(torch.allclose(momentum[k], expected[k], rtol=1e-8) for k in momentum)


def test_noise_on_one_side_has_no_finite_rest():
    with pytest.warns(ValidityWarning, match="no finite point"):
        maps = Scale("w").equilibrium([{"w": torch.ones(3)}])
    assert torch.isinf(maps).all()
    with pytest.raises(ControlError, match="finite and invertible"):
        Scale("w").teleport_({"w": torch.ones(3)}, maps)
    with pytest.warns(ValidityWarning):
        assert torch.isnan(MatrixPair("u", "w").equilibrium([{"u": torch.zeros(2, 2), "w": torch.ones(2, 2)}])).all()


def test_what_does_not_fit_is_refused():
    params = {"u": torch.ones(2, 3), "w": torch.ones(2, 3)}
    with pytest.raises(ControlError, match="MatrixPair needs"):
        MatrixPair("u", "w").charge(params)
    with pytest.raises(ControlError, match="no tensor named 'v'"):
        Rescaling("u", "v").charge(params)
    with pytest.raises(ControlError, match="heads of one size"):
        AttentionPair("u", "w", heads=3).charge(params)
    with pytest.raises(ControlError, match="shape"):
        Rescaling("u", "w").teleport_(params, torch.ones(2, 2, 2))
    with pytest.raises(ControlError, match="at least one"):
        Rescaling("u", "w").drift(params, [], lr=0.1)
    with pytest.raises(ControlError, match="at least one"):
        Rescaling("u", "w").equilibrium([])


def test_it_is_what_the_search_finds_in_a_module():
    net = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 4, bias=False)).double()
    task = Task(net, lambda m, b: (m(b[0]) - b[1]).square().sum(1), lambda: [(X, Y)], lr=0.1, weight_decay=0.0,
                batch_size=40)  # fmt: skip
    found = find_symmetries(task)
    params = {k: p.detach() for k, p in net.named_parameters()}
    pair = MatrixPair("1.weight", "0.weight")
    charge = noether_charges(params, found)[0].charge[0]
    assert abs(abs(charge) - abs(pair.charge(params)[0].numpy())).max() < 1e-12
    losses = lambda p: (X @ p["0.weight"].T @ p["1.weight"].T - Y).square().sum(1)  # noqa: E731
    mean = torch.func.grad(lambda p: losses(p).mean())(params)
    centred = [{k: g[k] - mean[k] for k in g} for g in gradients(losses, params)]
    shift = noise_equilibrium(task, found)[0].shift[0]
    mine = torch.linalg.eigvalsh(pair.equilibrium(centred)[0]).log().numpy()
    assert abs(sorted(abs(shift)) - abs(mine[abs(mine).argsort()])).max() < 1e-8
