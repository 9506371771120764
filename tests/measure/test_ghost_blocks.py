"""The Hessian of a ghost against the dense Hessian of a unit added by hand, for every kind of class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attention_models import SeparateAttention, seeded
from tests.cases import Attention, LoRA, SwiGLU, numbers
from torch import nn
from torch.nn import functional as F

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import exact_copy, ghost_block, product_modes, two_sides
from gaugefix.measure import ghost_blocks as module
from gaugefix.measure.modes import dead_mode_block


def _task(model: nn.Module, x: torch.Tensor, seed: int = 5) -> Task:
    y = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)

    def loss(m, batch):
        return (m(batch[0]) - batch[1]).square().flatten(1).sum(1)

    def batches():
        return zip(x.split(7), y.split(7), strict=True)

    return Task(model, loss, batches, lr=0.1, weight_decay=0.01, batch_size=7)


def _units(task: Task, name: str):
    found = find_symmetries(task, verify=False)
    return next(u for u in found.units if u.name == name), found


def _kappa_by_hand(task: Task, loss, size: int) -> np.ndarray:
    """Growth rates from the dense Hessian of the mean loss in ``size`` ghost coordinates."""
    block = torch.autograd.functional.hessian(lambda z: loss(z).mean(), torch.zeros(size, dtype=torch.float64))
    return np.sort(-np.linalg.eigvalsh(block.numpy()))[::-1]


def _all(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*task.batches(), strict=True)
    return torch.cat(x), torch.cat(y)


def test_channels() -> None:
    """A convolution of smooth activation: κ in single precision to 1e-4."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten()))
    task = _task(model, numbers(20, 1, 6, 6).double())
    x, y = _all(task)

    def loss(z):
        ghost = torch.tanh(F.conv2d(x, z[:9].reshape(1, 1, 3, 3), z[9:10]))
        out = model[2](torch.tanh(model[0](x))) + F.conv2d(ghost, z[10:].reshape(2, 1, 3, 3))
        return (out.flatten(1) - y).square().sum(1)

    units, _ = _units(task, "0")
    found = ghost_block(exact_copy(task), units)
    assert found.spectra[0][:5] == pytest.approx(_kappa_by_hand(task, loss, 28)[:5], rel=1e-4)
    assert found.converged
    assert found.curvatures().mean() == pytest.approx(-found.kappa, rel=1e-2)


def test_channels_with_a_kink() -> None:
    """ReLU: no ghost of many random ones grows faster, and the best one grows at κ."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)))
    task = _task(model, numbers(30, 1, 6, 6).double())
    x, y = _all(task)
    units, _ = _units(task, "0")
    found = ghost_block(exact_copy(task), units)
    assert (found.method, found.kink) == ("ascent", True)
    g = -2 * (model(x) - y).detach()

    def pull(w):
        h = torch.relu(F.conv2d(x, w[:, :9].reshape(-1, 1, 3, 3), w[:, 9])).flatten(2)  # (n, ghosts, 16)
        return torch.einsum("no,ngp->gop", g, h).flatten(1).norm(dim=1) / len(x)

    w = torch.randn(3000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = float(pull(w / w.norm(dim=1, keepdim=True)).max())
    assert found.kappa >= best
    direction = torch.as_tensor(found.incoming)[None]
    assert found.kappa == pytest.approx(float(pull(direction)[0]), rel=1e-4)
    near = ghost_block(exact_copy(task), units, near=found.incoming)
    assert near.kappa == pytest.approx(found.kappa, rel=1e-4)


@pytest.mark.parametrize("scale", [0.5, None])
def test_query_key_and_value_output_dimensions(scale) -> None:
    """Per head, for a scale that is given and for one that the operation takes from the width."""
    model = seeded(SeparateAttention, scale=scale)
    task = _task(model, numbers(14, 4, 6).double())
    x, y = _all(task)
    own = 3**-0.5 if scale is None else scale

    def attention(z, *, head, scores):
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, 2, 3).transpose(1, 2) for m in (model.q, model.k, model.v))
        s = q @ k.transpose(2, 3) * own
        ghost_a, ghost_b = x @ z[:6] + z[12], x @ z[6:12] + z[13]
        bump = torch.zeros_like(s)
        bump[:, head] = 1.0
        if scores:
            s = s + bump * (ghost_a[:, None, :, None] * ghost_b[:, None, None, :] * own)
        s = s.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
        a = s.softmax(-1)
        out = model.out((a @ v).transpose(1, 2).reshape(b, t, -1))
        if not scores:
            out = out + (a[:, head] @ (x @ z[:6] + z[12])[..., None]) * z[6:12]
        return (out - y).square().flatten(1).sum(1)

    for name, scores in (("q #2", True), ("v", False)):
        units, _ = _units(task, name)
        found = ghost_block(exact_copy(task), units)
        assert found.converged
        for head in (0, 1):
            by_hand = _kappa_by_hand(task, lambda z, h=head, s=scores: attention(z, head=h, scores=s), 14)
            assert found.spectra[head][:3] == pytest.approx(by_hand[:3], rel=1e-9)


def test_dead_modes_stand_for_ghosts_where_the_width_is_built_in() -> None:
    """A fused projection that cannot be widened, against the same weights in separate projections that can."""
    fused = seeded(Attention)
    separate = seeded(SeparateAttention, scale=3**-0.5, bias=False, causal=False)
    with torch.no_grad():
        fused.qkv.weight[2], fused.qkv.weight[8 + 0] = 0.0, 0.0  # one mode of head 0 of queries and keys
        for part, m in zip(fused.qkv.weight.chunk(3), (separate.q, separate.k, separate.v), strict=True):
            m.weight.copy_(part)
        separate.out.weight.copy_(fused.out.weight)
    x = numbers(14, 4, 6).double()
    one, two = _task(fused, x), _task(separate, x)
    units, symmetries = _units(one, "qkv #2")
    with pytest.raises(MeasurementError, match="does not run"):
        ghost_block(exact_copy(one), units)
    stand_in = dead_mode_block(exact_copy(one), units, two_sides(units, symmetries))
    real = ghost_block(exact_copy(two), _units(two, "q #2")[0])
    assert np.isnan(stand_in.spectra[1]).all()  # head 1 is wholly alive
    assert stand_in.spectra[0][:3] == pytest.approx(real.spectra[0][:3], rel=1e-9)
    alive, found = _units(one, "qkv #4")
    assert dead_mode_block(exact_copy(one), alive, two_sides(alive, found)) is None


def test_an_adapter_feels_the_singular_values_of_the_full_gradient() -> None:
    """G = −∂L/∂M through a zero matrix added beside the adapter."""
    model = seeded(LoRA)
    task = _task(model, numbers(21, 5).double())
    x, y = _all(task)
    zero = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((model(x) + x @ (0.5 * zero).T - y).square().sum(1).mean(), zero)
    units, _ = _units(task, "A")
    found = ghost_block(exact_copy(task), units)
    assert found.spectra[0][:4] == pytest.approx(torch.linalg.svdvals(slope).numpy(), rel=1e-9)


def test_gated_units_feel_nothing_at_zero() -> None:
    task = _task(seeded(SwiGLU), numbers(21, 4).double())
    found = ghost_block(exact_copy(task), _units(task, "gate")[0])
    assert (found.degree, found.kappa) == (2, 0.0)


def test_a_unit_that_is_not_zero_without_weights_is_said() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Sigmoid(), nn.Conv1d(3, 2, 2), nn.Flatten()))
    task = _task(model, numbers(21, 2, 5).double())
    found = ghost_block(exact_copy(task), _units(task, "0")[0])
    assert "not zero" in found.reason
    assert np.isnan(found.kappa)


def test_lanczos_finds_the_modes_of_the_dense_block(monkeypatch) -> None:
    task = _task(seeded(LoRA), numbers(21, 5).double())
    units, _ = _units(task, "A")
    dense = ghost_block(exact_copy(task), units)
    monkeypatch.setattr(module, "_DENSE", 4)
    sparse = ghost_block(exact_copy(task), units)
    assert sparse.method == "lanczos"
    assert sparse.spectra[0][:4] == pytest.approx(dense.spectra[0][:4], rel=1e-7)
    assert sparse.converged


def test_modes_of_a_product() -> None:
    """Singular values and drives against the full product and its gradient."""
    model = seeded(LoRA)
    task = _task(model, numbers(21, 5).double())
    x, y = _all(task)
    units, symmetries = _units(task, "A")
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(task.loss(model, (x, y)).mean(), list(params.values()))
    modes = product_modes(params, dict(zip(params, grads, strict=True)), units, two_sides(units, symmetries))
    product = (model.B @ model.A).detach().requires_grad_()
    (slope,) = torch.autograd.grad((model.base(x) + x @ (0.5 * product).T - y).square().sum(1).mean(), product)
    u, s, vt = torch.linalg.svd(product.detach(), full_matrices=False)
    assert modes.values[0] == pytest.approx(s[:2].numpy())
    assert modes.drives[0] == pytest.approx(torch.einsum("oi,od,id->i", u, -slope, vt)[:2].numpy(), rel=1e-8)
    assert modes.rank == 2


@pytest.mark.parametrize("c", [0.1, 30.0])
def test_modes_do_not_depend_on_the_gauge(c) -> None:
    task = _task(seeded(LoRA), numbers(21, 5).double())
    units, symmetries = _units(task, "A")
    turned = seeded(LoRA)
    mix = torch.tensor([[1.0, 0.4], [-0.3, c]], dtype=torch.float64)
    with torch.no_grad():
        turned.A.copy_(mix @ turned.A)
        turned.B.copy_(turned.B @ torch.linalg.inv(mix))
    x, y = _all(task)
    found = []
    for model in (task.model, turned):
        params = dict(model.named_parameters())
        grads = torch.autograd.grad(task.loss(model, (x, y)).mean(), list(params.values()))
        sides = two_sides(units, symmetries)
        found.append(product_modes(params, dict(zip(params, grads, strict=True)), units, sides))
    assert found[1].values == pytest.approx(found[0].values)
    assert found[1].drives == pytest.approx(found[0].drives, rel=1e-7)
