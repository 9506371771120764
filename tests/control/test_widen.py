"""A wider copy computes the same, trains at the new width, and what cannot be widened is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.attention_models import SeparateAttention, seeded
from tests.cases import GPT2, Attention, Einsum, LoRA, SelfAttention, SwiGLU, numbers, tokens
from torch import nn

from gaugefix import find_symmetries
from gaugefix.control import widen
from gaugefix.errors import ControlError
from gaugefix.forecast import forecast

IMAGES = numbers(4, 1, 6, 6)


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3),
    ).eval()  # fmt: skip


def _transposed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 2, 3))


WIDENED = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), (numbers(4, 6),), ["0"]),
    "gated": (SwiGLU, (numbers(4, 4),), ["gate"]),
    "adapter": (LoRA, (numbers(4, 5),), ["A"]),
    "experts": (Einsum, (numbers(4, 4),), ["first #2", "first #3"]),
    "channels": (_convolutions, (IMAGES,), ["0", "3"]),
    "transposed": (_transposed, (IMAGES,), ["0"]),
    "heads": (SeparateAttention, (numbers(2, 4, 6),), ["q #2", "v"]),
    "heads, implicit scale": (lambda: SeparateAttention(scale=None), (numbers(2, 4, 6),), ["q #2", "v"]),
    "mlp of a transformer": (GPT2, (tokens(2, 4, 9),), ["blocks.0.up"]),
}


@pytest.mark.parametrize("case", WIDENED)
def test_the_function_is_kept_and_the_new_width_trains(case) -> None:
    make, args, names = WIDENED[case]
    model = seeded(make)
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    units = {u.name: u for u in find_symmetries(model, args, verify=False).units}
    for name in names:
        wide = widen(model, units[name], 2, args, size=0.5)
        assert torch.allclose(wide(*args), model(*args), rtol=1e-12, atol=1e-12)
        assert wide.training == model.training
        assert {k for k, _ in wide.named_parameters()} == {k for k, _ in model.named_parameters()}
        fresh = next(u for u in find_symmetries(wide, args, verify=False).units if u.name == name)
        assert fresh.size == units[name].size + 2
        wide(*args).square().mean().backward()  # outgoing weights of the new units feel a pull: they can grow
        gradients = {k: p.grad for k, p in wide.named_parameters()}
        sizes = fresh.rows(gradients).reshape(fresh.fibers, fresh.size, -1).norm(dim=2)
        assert (sizes[:, -2:] > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_ghosts_of_zero_size_never_move() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = numbers(4, 6).double()
    units = find_symmetries(model, (x,), verify=False).units[0]
    wide = widen(model, units, 3)
    assert (wide[0].out_features, wide[2].in_features) == (8, 8)
    wide(x).square().mean().backward()
    assert float(wide[0].weight.grad[5:].abs().max()) == float(wide[2].weight.grad[:, 5:].abs().max()) == 0.0


def test_a_grown_unit_grows_at_the_forecast_rate(make_task, blobs) -> None:
    """Widen along the best direction by hand, train the new unit alone, and compare with κ − λ."""
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    task = make_task(model, blobs, weight_decay=0.01, lr=0.05)
    symmetries = find_symmetries(task, verify=False)
    rate = forecast(task, symmetries, settle_steps=0).classes[0].rate
    wide = widen(model, symmetries.units[0], 1, (blobs[0],), size=1e-6, seed=3)
    w, b, u = wide[0].weight, wide[0].bias, wide[2].weight
    sizes = []
    for _ in range(600):
        grads = torch.autograd.grad(task.loss(wide, blobs).mean(), [w, b, u])
        with torch.no_grad():
            for p, g, cut in zip((w, b, u), grads, (slice(4, 5), slice(4, 5), (slice(None), slice(4, 5))), strict=True):
                p[cut] -= 0.05 * (g[cut] + 0.01 * p[cut])
        sizes.append(float(u.detach()[:, 4].norm()))
        if sizes[-1] > 1e-3:
            break
    growth = torch.tensor(sizes).log().diff()[-20:].mean() / 0.05
    assert float(growth) == pytest.approx(rate, rel=0.05)


def _refused(model, args, name, message) -> None:
    units = {u.name: u for u in find_symmetries(model, args, verify=False).units}[name]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ControlError, match=message):
        widen(model, units, 1, args)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_cannot_be_widened_is_refused_with_its_reason() -> None:
    _refused(GPT2(), (tokens(2, 4, 9),), "wte #2", "residual stream")
    _refused(SelfAttention(), (numbers(2, 4, 6),), "attention #2", "MultiheadAttention has the size")
    _refused(Attention(), (numbers(2, 4, 6),), "qkv #2", "does not run with 4 units")
    _refused(SeparateAttention(), (numbers(2, 4, 6),), "q", "computes something else|does not run")
    grouped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten())
    units = find_symmetries(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (numbers(3, 6),)).units[0]
    with pytest.raises(ControlError, match="groups"):
        widen(nn.Sequential(grouped[2], nn.ReLU(), nn.Linear(4, 2)), units, 1)
    with pytest.raises(ControlError, match="does not belong to this model"):
        widen(nn.Linear(6, 4), units, 1)
    with pytest.raises(ControlError, match=r"'0.weight' is on the meta device"):
        widen(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).to("meta"), units, 1)
    with pytest.raises(ControlError, match="at least 1"):
        widen(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), units, 0)


def test_without_arguments_only_known_modules_are_widened() -> None:
    model = SeparateAttention()
    units = {u.name: u for u in find_symmetries(model, (numbers(2, 4, 6),), verify=False).units}
    with pytest.raises(ControlError, match="Give example arguments"):
        widen(model, units["q #2"], 1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_adapters_keep_their_rank_in_step() -> None:
    pytest.importorskip("peft")
    from tests.transformers.models import CASES

    case = CASES["lora"]
    model = case.make().eval()
    for p in model.parameters():
        p.requires_grad_(True)
    units = next(u for u in find_symmetries(model, case.args, verify=False).units if "lora_A" in u.name)
    wide = widen(model, units, 2, case.args)
    layer = wide.get_submodule(units.name.rpartition(".lora_A")[0])
    assert layer.r["default"] == 4
    assert layer.lora_A["default"].out_features == layer.lora_B["default"].in_features == 4
