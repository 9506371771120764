"""The report against the step that the optimiser really took, and against gradients with a known signal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.measure import optimizer_report


class LaProp(torch.optim.Optimizer):
    """The rule as published, constant learning rate; the state that LaProp implementations keep."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.999), eps=1e-15):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    s |= {"exp_avg_lr_1": 0.0}
                s["step"] += 1
                s["exp_avg_lr_1"] = b1 * s["exp_avg_lr_1"] + (1 - b1) * lr
                s["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                unit = p.grad / ((s["exp_avg_sq"] / (1 - b2 ** s["step"])).sqrt() + group["eps"])
                s["exp_avg"].mul_(b1).add_(unit, alpha=(1 - b1) * lr)
                p.sub_(s["exp_avg"], alpha=lr / s["exp_avg_lr_1"])


class Holder(nn.Module):
    def __init__(self, n=4000):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.idle = nn.Parameter(torch.zeros(2))


def run(optimizer, model, steps, *, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        before = model.w.detach().clone()
        model.w.grad = mean + torch.randn(model.w.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return model.w.detach() - before


ADAMS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99), weight_decay=0.0),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "laprop": LaProp,
}


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_update_is_the_step_that_was_taken(kind, steps):
    model = Holder(50)
    optimizer = ADAMS[kind]([model.w])
    moved = run(optimizer, model, steps)
    found = optimizer_report(optimizer, model).parameters[0]
    assert found.step == steps
    assert found.rms_update == pytest.approx(float(moved.square().mean().sqrt()) / 0.01, rel=1e-9)
    assert float(moved.abs().max()) / 0.01 <= found.bound * (1 + 1e-6) or kind == "amsgrad"
    assert found.near_bound == pytest.approx(float((moved.abs() / 0.01 > found.bound / 2).double().mean()))


@pytest.mark.parametrize("kind", ["adam", "laprop"])
@pytest.mark.parametrize("snr", [0.0, 0.25, 2.0])
def test_the_signal_to_noise_ratio_comes_out(kind, snr):
    model = Holder()
    optimizer = ADAMS[kind]([model.w])
    run(optimizer, model, 3000, mean=math.sqrt(snr))
    report = optimizer_report(optimizer, model)
    found = report.parameters[0]
    assert found.valid
    assert found.snr == pytest.approx(snr, rel=0.1, abs=0.01)
    if kind == "adam":
        assert report.snr == found.snr
    if snr == 0:
        assert found.rms_update == pytest.approx(found.noise_rms, rel=0.05)


def test_the_effective_rate_is_that_of_a_gradient_step():
    model = Holder(3)
    for amsgrad in (False, True):
        optimizer = torch.optim.Adam([model.w], lr=0.02, betas=(0.0, 0.9), amsgrad=amsgrad, eps=1e-3)
        for size in (5.0, 1.0, 1.0):
            model.w.grad = torch.tensor([size, 2 * size, -4 * size], dtype=torch.float64)
            before = model.w.detach().clone()
            optimizer.step()
        rates = (before - model.w.detach()) / model.w.grad
        found = optimizer_report(optimizer, model).parameters[0]
        assert found.effective_lr_range == pytest.approx((float(rates.min()), float(rates.max())))
        assert found.effective_lr == pytest.approx(float(rates.median()))
        assert ("AMSGrad" in found.reason) == amsgrad


def test_betas_are_judged():
    model = Holder(3)
    groups = [{"params": [model.w], "betas": (0.9, 0.7)}, {"params": [model.idle]}]
    report = optimizer_report(torch.optim.Adam(groups), model)
    assert [g.stable for g in report.groups] == [False, True]
    assert report.groups[0].max_update == math.inf
    assert report.groups[1].max_update == pytest.approx(7.27, abs=0.01)
    assert report.parameters == ()
    assert report.skipped == ("w: no update yet", "idle: no update yet")
    laprop = optimizer_report(LaProp([model.w], betas=(0.9, 0.7)), model).groups[0]
    assert laprop.stable
    assert laprop.max_update == pytest.approx(1 / math.sqrt(0.3))


def test_reasons_to_distrust_are_given():
    model = Holder(100)
    optimizer = torch.optim.Adam([model.w], eps=1.0)
    run(optimizer, model, 3)
    assert "only 3 updates" in optimizer_report(optimizer, model).parameters[0].reason
    run(optimizer, model, 30)
    assert "ε decides" in optimizer_report(optimizer, model).parameters[0].reason


def test_nothing_is_changed():
    model = Holder(10)
    optimizer = torch.optim.Adam([model.w], amsgrad=True)
    run(optimizer, model, 5)
    before = {k: v.clone() for k, v in optimizer.state[model.w].items()}
    optimizer_report(optimizer, model).to_dict()
    assert all(torch.equal(v, before[k]) for k, v in optimizer.state[model.w].items())
    assert len(optimizer.state) == 1


def test_other_optimisers_are_refused():
    model = Holder(10)
    with pytest.raises(MeasurementError, match="SGD has no"):
        optimizer_report(torch.optim.SGD([model.w], lr=0.1), model)
    adamax = torch.optim.Adamax([model.w])
    run(adamax, model, 1)
    with pytest.raises(MeasurementError, match="exp_inf"):
        optimizer_report(adamax, model)


@pytest.mark.peer
def test_the_state_of_another_library_is_read():
    library = pytest.importorskip("pytorch_optimizer")
    model = Holder(50)
    optimizer = library.LaProp([model.w], lr=0.01, foreach=False)
    moved = run(optimizer, model, 20)
    report = optimizer_report(optimizer, model)
    assert report.groups[0].algorithm == "laprop"
    assert report.parameters[0].rms_update == pytest.approx(float(moved.square().mean().sqrt()) / 0.01, rel=1e-6)
