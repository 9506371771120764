"""Decay to a random point: the force and the displacement that theory gives, every optimizer, checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.control.remove import L2Init, SyreDecay, WFix, shrink_and_perturb_
from gaugefix.errors import ControlError
from gaugefix.measure import o_hessian


def net(seed: int = 1) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture
def data():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2


def losses(model, batch):
    return (model(batch[0]).squeeze(-1) - batch[1]).square()


@pytest.fixture
def swap(data):
    return next(m for m in find_symmetries(net(), (data[0],)).mirrors() if m.kind == "swap")


def settle(model, data, *, decay=0.0, syre=None, steps=300):
    """L-BFGS to rest."""
    solver = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-13,
                               tolerance_change=1e-16)  # fmt: skip

    def closure():
        solver.zero_grad()
        extra = syre.penalty() if syre else decay / 2 * sum(p.square().sum() for p in model.parameters())
        value = losses(model, data).mean() + extra
        value.backward()
        return value

    solver.step(closure)
    model.zero_grad()
    return model


@pytest.mark.parametrize("sigma_d", [0.0, 0.3])
def test_the_escape_force_is_minus_the_normal_gradient_on_the_plane(data, swap, sigma_d):
    model = net()
    with torch.no_grad():
        for name, value in swap.project(dict(model.named_parameters())).items():
            model.get_parameter(name).copy_(value)
    syre = SyreDecay(model, 0.1, sigma0=1e-2, sigma_d=sigma_d, absolute=True, seed=3)
    (losses(model, data).mean() + syre.penalty()).backward()
    gradient = swap.coordinates({name: p.grad for name, p in model.named_parameters()})
    force = syre.escape_force(swap)
    assert torch.allclose(-gradient, force, atol=1e-14)
    if not sigma_d:
        point = swap.coordinates(dict(syre.anchors()))
        assert torch.allclose(force, 0.1 * point, atol=1e-15)
    assert float(force.norm()) > 1e-4


@pytest.mark.parametrize(("sigma0", "tolerance"), [(1e-3, 1e-2), (1e-2, 5e-2)])
def test_the_collapsed_minimum_moves_as_predicted(data, swap, sigma0, tolerance):
    """At λ = 0.1 the swapped neurons of this net are stable twins."""
    model = net()
    with torch.no_grad():
        for name, value in swap.project(dict(model.named_parameters())).items():
            model.get_parameter(name).copy_(value)
    settle(model, data, decay=0.1)
    task = Task(model, losses, lambda: [data], lr=0.1, weight_decay=0.1, batch_size=64)
    syre = SyreDecay(model, 0.1, sigma0=sigma0, absolute=True, seed=0)
    predicted = syre.predicted_displacement(swap, o_hessian(task, swap))
    assert predicted.valid
    settle(model, data, syre=syre)
    moved = swap.coordinates({k: p.detach() for k, p in model.named_parameters()}).numpy()
    assert np.linalg.norm(moved - predicted.coordinates) < tolerance * predicted.norm
    off = syre.predicted_displacement(swap, o_hessian(task, swap))
    assert not off.valid
    assert "not on the plane" in off.reason


@pytest.mark.parametrize(
    ("kind", "form", "coupled"),
    [
        (torch.optim.SGD, "auto", True),
        (torch.optim.Adam, "auto", True),
        (torch.optim.AdamW, "auto", False),
        (torch.optim.SGD, "decoupled", False),
        (torch.optim.AdamW, "coupled", True),
    ],
)
def test_every_optimizer_decays_to_the_point(data, kind, form, coupled):
    """With the point at zero it is the optimizer's own decay; else the gradient or the step moves by the pull."""
    one, two = net(), net()
    syre = SyreDecay(one, 0.3, sigma0=0.0 if form == "auto" else 0.5, seed=2)
    first = kind(one.parameters(), lr=0.1, weight_decay=0.0)
    detach = syre.attach(first, form)
    second = kind(two.parameters(), lr=0.1, weight_decay=0.3 if form == "auto" else 0.0)
    other = SyreDecay(two, 0.3, sigma0=0.5, seed=2)
    for _ in range(5):
        first.zero_grad(), second.zero_grad()
        losses(one, data).mean().backward()
        (losses(two, data).mean() + (other.penalty() if form != "auto" and coupled else 0)).backward()
        if form != "auto" and not coupled:
            with torch.no_grad():
                for name, p in two.named_parameters():
                    p.sub_(0.1 * 0.3 * (p - other.anchor(name)))
        first.step(), second.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)
    detach()
    with torch.no_grad():
        before = [p.clone() for p in one.parameters()]
    for p in one.parameters():
        p.grad = torch.zeros_like(p)
    if kind is torch.optim.SGD:
        first.step()
        assert all(torch.equal(p, b) for p, b in zip(one.parameters(), before, strict=True))


def test_points_depend_on_seed_and_name_and_need_no_memory():
    model = nn.Sequential(nn.Linear(100, 30), nn.LayerNorm(30), nn.Embedding(7, 5))
    state = torch.random.get_rng_state()
    syre = SyreDecay(model, 0.1, sigma0=0.5, seed=4)
    again = SyreDecay(reversed(list(model.named_parameters())), 0.1, sigma0=0.5, seed=4)
    kept = SyreDecay(model, 0.1, sigma0=0.5, seed=4, store=True)
    other = SyreDecay(model, 0.1, sigma0=0.5, seed=5)
    for name, point in syre.anchors():
        assert torch.equal(point, again.anchor(name))
        assert torch.equal(point, kept.anchor(name))
        assert kept.anchor(name) is kept.anchor(name)
        assert not torch.equal(point, other.anchor(name))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not syre._kept
    spread = {name: float(point.std()) for name, point in syre.anchors()}
    assert spread["0.weight"] == pytest.approx(0.05, rel=0.05)
    assert spread["0.bias"] == pytest.approx(0.05, rel=0.5)  # the fan-in of its weight, not 1/√30
    assert spread["2.weight"] == pytest.approx(0.5 / 5**0.5, rel=0.5)
    absolute = SyreDecay(model, 0.1, sigma0=0.5, absolute=True)
    assert float(absolute.anchor("0.weight").std()) == pytest.approx(0.5, rel=0.05)
    metric = SyreDecay(model, 0.1, sigma_d=0.01).metric("0.weight")
    assert 0.99 <= float(metric.min()) < float(metric.max()) <= 1.01
    assert len(metric.unique()) > 0.99 * metric.numel()


def test_checkpoint(data):
    syre = SyreDecay(net(), 0.3, sigma0=0.2, sigma_d=0.1, seed=11)
    fresh = SyreDecay(net(), 0.1)
    fresh.load_state_dict(syre.state_dict())
    assert torch.equal(fresh.pull("0.weight"), syre.pull("0.weight"))
    with pytest.raises(ControlError, match="'cuda'"):
        fresh.load_state_dict({**syre.state_dict(), "device": "cuda"})
    kept = SyreDecay(net(), 0.3, sigma0=0.2, seed=12, store=True)
    fresh.load_state_dict({**kept.state_dict(), "device": "cuda"})
    assert fresh.store
    assert torch.equal(fresh.anchor("0.weight"), SyreDecay(net(), 0.3, sigma0=0.2, seed=12).anchor("0.weight"))
    kept.params["0.weight"].data = kept.params["0.weight"].data.float()
    assert kept.anchor("0.weight").dtype == torch.float32


def test_gradients_that_are_still_scaled_are_refused(data):
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    SyreDecay(model, 0.1).attach(sgd)
    losses(model, data).mean().backward()
    sgd.grad_scale = torch.tensor(1024.0)
    with pytest.raises(ControlError, match=r"scaler.unscale_\(optimizer\)"):
        sgd.step()


def test_frozen_and_integer_parameters_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert set(SyreDecay(model, 0.1).params) == {"1.weight", "1.bias"}
    with pytest.raises(ControlError, match="'weight' is on the meta device"):
        SyreDecay(nn.Linear(2, 2, device="meta"), 0.1)
    with pytest.raises(ControlError, match="no trainable"):
        SyreDecay(model[0], 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: SyreDecay(m, 0.0), "weight_decay"),
        (lambda m: SyreDecay(m, float("nan")), "weight_decay"),
        (lambda m: SyreDecay(m, 0.1, sigma0=-1.0), "sigma0"),
        (lambda m: SyreDecay(m, 0.1, sigma_d=1.0), "sigma_d"),
        (lambda m: SyreDecay(m, 0.1).attach(torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1)), "Set it to 0"),
        (lambda m: SyreDecay(m, 0.1).attach(torch.optim.SGD([next(m.parameters())], lr=0.1)), "not in the optimizer"),
        (lambda m: SyreDecay(m, 0.1).attach(torch.optim.SGD(m.parameters(), lr=0.1), form="x"), "form"),
        (lambda m: WFix(m, fraction=1.0), "fraction"),
        (lambda m: WFix(m, scale=0.0), "scale"),
        (lambda m: WFix([m[0].weight[0].detach().requires_grad_()]), "two dimensions"),
        (lambda m: shrink_and_perturb_(m, shrink=1.1), "shrink"),
        (lambda m: shrink_and_perturb_(m, perturb=-1.0), "perturb"),
        (lambda m: L2Init(m, -1.0), "weight_decay"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ControlError, match=message):
        make(net())


def test_displacement_wants_the_block_of_its_mirror(data, swap):
    model = net()
    task = Task(model, losses, lambda: [data], lr=0.1, weight_decay=0.1, batch_size=64)
    other = next(m for m in find_symmetries(net(), (data[0],)).mirrors() if m.name != swap.name)
    with pytest.raises(ControlError, match="full block"):
        SyreDecay(model, 0.1).predicted_displacement(swap, o_hessian(task, other))
    with pytest.raises(ControlError, match="not decayed"):
        SyreDecay([("0.weight", model[0].weight)], 0.1).escape_force(swap)


def test_decay_to_the_start_and_its_checkpoint():
    model = net()
    start = [p.detach().clone() for p in model.parameters()]
    l2 = L2Init(model, 0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    l2.attach(sgd)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    fresh = L2Init(net(5), 0.5)
    fresh.load_state_dict(l2.state_dict())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    sgd.step()
    for p, s, (_, anchor) in zip(model.parameters(), start, fresh.anchors(), strict=True):
        assert torch.allclose(p, s + 0.95)
        assert torch.equal(anchor, s)


def test_a_fixed_part_stays_and_the_rest_trains(data):
    model = net()
    fix = WFix(model, fraction=0.5, seed=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    detach = fix.attach(sgd)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    for _ in range(3):
        sgd.zero_grad()
        losses(model, data).mean().backward()
        sgd.step()
    for name, p in model.named_parameters():
        mask, values = fix.held(name)
        assert 0 < int(mask.sum()) < mask.numel()
        assert torch.equal(p.detach()[mask], values[mask])
        assert not torch.equal(p.detach()[~mask], before[name][~mask])
    detach()
    sgd.step()
    assert not all(
        torch.equal(p.detach()[fix.held(n)[0]], fix.held(n)[1][fix.held(n)[0]]) for n, p in model.named_parameters()
    )


def test_shrink_and_perturb():
    model = nn.Linear(400, 300)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    shrink_and_perturb_(model, shrink=0.5, perturb=2.0, generator=torch.Generator().manual_seed(3))
    noise = model.weight.detach() - 0.5 * before["weight"]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(model.bias, 0.5 * before["bias"])
