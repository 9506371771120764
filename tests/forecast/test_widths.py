import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries, load_task, train
from gaugefix.forecast import certificate, forecast
from gaugefix.measure import check_charge_law, collapse_report, exact_copy, probe_classes, unit_sizes
from gaugefix.symmetry import Slice, Units
from gaugefix.theory import homogeneous_threshold


@pytest.fixture
def net(mlp, mlp_units, make_task, blobs):
    def make(activation="relu", widths=(5, 8, 3), **settings):
        model = mlp(widths, activation)
        return make_task(model, blobs, batch_size=16, **settings), mlp_units(model, activation)

    return make


def _kill(model):
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "2.weight"):
            dict(model.named_parameters())[name].zero_()


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "leaky_relu", "gelu"])
def test_a_dead_class_grows_at_the_forecast_rate(net, blobs, activation):
    task, units = net(activation)
    model = task.model
    _kill(model)
    found = forecast(task, units, settle_steps=0).classes[0]
    assert found.verdict == "would be reborn"
    assert found.alive == 0
    assert np.isnan(found.drives).all()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-7 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    sizes, lr = [], 0.05
    for _ in range(1200):
        loss = task.loss(model, blobs).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), grads, strict=True):
                if name != "2.bias":  # the rest of the network stays as it is
                    p -= lr * (g + task.weight_decay * p)
        sizes.append(float(model[2].weight.detach().norm()))
        if sizes[-1] > 1e-3:
            break
    tail = np.log(sizes[-20:])
    assert sizes[-1] > 1e-3
    assert np.diff(tail).mean() / lr == pytest.approx(found.rate, rel=0.05)


def test_a_dead_class_stays_dead_above_the_threshold(net):
    task, units = net(weight_decay=5.0)
    _kill(task.model)
    found = forecast(task, units).classes[0]
    assert found.verdict == "dead stays dead"
    assert found.headroom < 1
    assert certificate(task, units).saturated


def test_kappa_is_at_least_every_drive_of_a_homogeneous_class(net):
    for activation in ("relu", "leaky_relu", "identity"):
        task, units = net(activation, widths=(5, 8, 6, 3))
        for c in forecast(task, units).classes:
            assert c.kappa >= np.nanmax(c.drives) - 1e-12
            assert c.drives.shape == (c.size,)


def test_every_hidden_layer_has_its_own_threshold(net):
    task, units = net("tanh", widths=(5, 8, 6, 3))
    found = forecast(task, units)
    assert [c.name for c in found.classes] == ["0", "2"]
    assert len({c.kappa for c in found.classes}) == 2
    assert np.isnan(found.collapse.lambda_c)
    assert "two or more hidden layers" in found.collapse.reason


def test_kappa_is_the_curvature_of_a_real_ghost(net, blobs):
    """−λ_min of the Hessian in the coordinates of an added unit, on a widened model."""
    task, units = net("tanh", widths=(5, 8, 6, 3))
    kappa = forecast(task, units, settle_steps=0).classes[0].kappa
    model = task.model
    x, y = blobs

    def loss(ghost):
        w, b, u = ghost[:5], ghost[5], ghost[6:]
        h = torch.tanh(model[0](x))
        z = model[2](h) + torch.tanh(x @ w + b)[:, None] * u
        return nn.functional.cross_entropy(model[4](torch.tanh(z)), y)

    block = torch.autograd.functional.hessian(loss, torch.zeros(12, dtype=torch.float64))
    assert kappa == pytest.approx(-float(torch.linalg.eigvalsh(block)[0]), rel=1e-9)


def test_a_dying_unit_is_named(net, blobs):
    task, units = net("relu", weight_decay=0.03, lr=0.2)
    with torch.no_grad():
        task.model[0].bias[2] = -50.0  # never active: nothing pulls on it
    found = forecast(task, units).classes[0]
    assert 2 in found.dying
    assert found.drives[2] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weight_decay": 0.0}, "weight decay is 0"),
        ({"optimizer": "adam"}, "Adam"),
        ({"optimizer": "adamw"}, "decouples"),
    ],
)
def test_outside_the_theory_kappa_is_reported_without_a_verdict(net, settings, reason):
    task, units = net(**settings)
    found = forecast(task, units).classes[0]
    assert found.verdict == "not applicable"
    assert not found.valid
    assert reason in found.reason
    assert found.kappa > 0
    assert np.isnan(found.headroom) == (task.weight_decay == 0)
    assert certificate(task, units).uncovered == ("0",)
    assert not certificate(task, units).saturated


def test_momentum_is_said(net):
    task, units = net(momentum=0.9)
    assert "momentum" in forecast(task, units).classes[0].reason


def _reason(task, units):
    c = forecast(task, units).classes[0]
    assert c.verdict == "not applicable"
    assert np.isnan(c.kappa)
    return c.reason


def test_structures_it_cannot_judge_are_named(net, mlp_units, blobs):
    task, units = net()
    task.model[0].weight.requires_grad_(False)
    assert "frozen" in _reason(task, units)
    task, units = net()
    one_sided = Units("0", 8, 1, units[0].incoming, "relu")
    assert "no outgoing" in _reason(task, [one_sided])
    gain = Slice("0.bias", 0, units[0].slices[0].index, "gain")
    assert "gain" in _reason(task, [Units("0", 8, 1, (*units[0].slices, gain), "relu")])
    task, units = net("sigmoid")
    assert "does not vanish" in _reason(task, units)


def test_tied_layers_are_named_and_shared_ones_measured():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.b(torch.relu(self.a(self.b(torch.relu(self.a(x))))))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.c.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(torch.relu(self.a(x))))

    index = np.arange(6).reshape(1, 6, 1)
    slices = (Slice("a.weight", 0, index, "write"), Slice("a.bias", 0, index, "write"))
    units = [Units("a", 6, 1, (*slices, Slice("b.weight", 1, index, "read")), "relu")]

    def task_of(model, width):
        x = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
        return Task(model, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.1, batch_size=8)

    assert "tied" in _reason(task_of(Tied(), 6), units)
    shared = forecast(task_of(Recurrent(), 4), units, settle_steps=0).classes[0]  # a unit that is used twice
    assert shared.method == "ascent"
    assert shared.kappa >= np.nanmax(shared.drives) - 1e-9


def test_a_wrong_label_does_not_change_the_threshold(net):
    """The class says tanh, the network computes ReLU: the ghosts see what it computes."""
    task, units = net()
    right = forecast(task, units, settle_steps=0).classes[0].kappa
    wrong = forecast(task, [Units("0", 8, 1, units[0].slices, "tanh")], settle_steps=0).classes[0]
    assert wrong.method == "ascent"
    assert wrong.kappa == pytest.approx(right, rel=1e-3)


def test_the_model_is_left_alone_and_the_answer_repeats(net):
    task, units = net(widths=(5, 8, 6, 3))
    task.model.train()
    state, rng = copy.deepcopy(task.model.state_dict()), torch.get_rng_state()
    first, second = (json.dumps(forecast(task, units).to_dict(), allow_nan=False) for _ in range(2))
    assert first == second
    assert task.model.training
    assert all(torch.equal(v, state[k]) for k, v in task.model.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in task.model.parameters())
    assert not any(m._forward_hooks for m in task.model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_positions_of_a_sequence_count_like_samples():
    """A class applied at every position: κ is the curvature of the loss summed over positions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    task = Task(
        model,
        lambda m, b: (m(b[0]).mean(1) - b[1]).square().sum(1),
        lambda: zip(x.split(5), y.split(5), strict=True),
        lr=0.1,
        weight_decay=0.1,
        batch_size=5,
    )
    index = np.arange(5).reshape(1, 5, 1)
    slices = (Slice("0.weight", 0, index, "write"), Slice("0.bias", 0, index, "write"))
    units = [Units("0", 5, 1, (*slices, Slice("2.weight", 1, index, "read")), "tanh")]

    def loss(ghost):
        out = model(x) + torch.tanh(x @ ghost[:3] + ghost[3])[..., None] * ghost[4:]
        return (out.mean(1) - y).square().sum(1).mean()

    block = torch.autograd.functional.hessian(loss, torch.zeros(6, dtype=torch.float64))
    kappa = forecast(task, units, settle_steps=0).classes[0].kappa
    assert kappa == pytest.approx(-float(torch.linalg.eigvalsh(block)[0]), rel=1e-9)


def test_no_class_no_forecast(net):
    task, _ = net()
    found = forecast(task, [])
    assert found.classes == ()
    assert found.collapse is None
    assert not certificate(task, []).saturated


def _sizes(task, units):
    return unit_sizes(dict(task.model.named_parameters()), units)


def _noisy_digits():
    """The digits network with lr / batch size = 3e-3, eight times its own."""
    task = load_task("digits-mlp")
    x, y = (torch.cat(parts) for parts in zip(*task.batches(seed=0), strict=True))

    def batches(seed=0):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return ((x[chunk], y[chunk]) for chunk in order.split(32))

    return dataclasses.replace(task, batches=batches, lr=0.1, weight_decay=5e-3, batch_size=32)


@pytest.mark.slow
def test_growth_of_every_unit_of_a_noisy_run_is_foretold(mlp_units):
    """Growth forecast after 150 epochs of real SGD with small batches, against the growth over the next 100."""
    task = _noisy_digits()
    units = mlp_units(task.model, "relu")
    train(task, 150)
    settled, raw = forecast(task, units), forecast(task, units, settle_steps=0)
    assert 0 < settled.moved < 0.02
    before = [_sizes(task, u) for u in units]
    train(task, 100, seed=150)
    for u, size, new, old in zip(units, before, settled.classes, raw.classes, strict=True):
        live = size > 0.1
        actual = np.log(_sizes(task, u) / size)[live]
        assert np.corrcoef(new.growth[live], actual)[0, 1] > 0.9
        assert np.corrcoef(old.growth[live], actual)[0, 1] < 0.5  # what the noise of one instant hides


def test_who_is_alive_is_what_the_collapse_report_says(net):
    """Life is counted at the model as it is, not after the settling steps, in which this decay kills every unit."""
    task, units = net(weight_decay=1.0, lr=0.1)
    params = dict(task.model.named_parameters())
    with torch.no_grad():
        for name, index in (("0.weight", (5,)), ("0.bias", (5,)), ("2.weight", (slice(None), 5))):
            params[name][index] *= 1e-4
    measured = collapse_report(params, units).units[0]
    found = forecast(task, units).classes[0]
    assert measured.dead == (5,)
    assert found.alive == len(measured.norms) - 1
    assert set(found.dying) == set(range(8)) - {5}


def test_settling_halves_an_unbearable_step_and_leaves_adam_alone(net):
    task, units = net(lr=50.0)
    assert "unstable" in forecast(task, units).note or "not settled" in forecast(task, units).note
    task, units = net(optimizer="adam")
    found = forecast(task, units)
    assert (found.settled, found.moved) == (0, 0.0)
    assert "adam" in found.note


@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "gelu"])
def test_found_symmetries_and_hand_written_classes_agree(net, activation):
    task, units = net(activation, widths=(5, 8, 6, 3))
    symmetries = find_symmetries(task.model, task.inputs(task.first_batch()))
    found, by_hand = forecast(task, symmetries).classes, forecast(task, units).classes
    assert [c.kappa for c in found] == pytest.approx([c.kappa for c in by_hand], rel=1e-6)
    assert [c.verdict for c in found] == [c.verdict for c in by_hand]
    laws = check_charge_law(task, symmetries).law
    assert len(laws) == (2 if units[0].homogeneous else 0)
    assert all(law.error < 1e-13 for law in laws)


def test_leaky_slope_is_read_off_the_values(net, blobs):
    """κ of LeakyReLU(0.3) although the class only says leaky_relu."""
    task, units = net("leaky_relu")
    task.model[1].negative_slope = 0.3
    kappa = forecast(task, units, settle_steps=0).classes[0].kappa
    probe = probe_classes(exact_copy(task), units).classes[0]
    assert kappa == pytest.approx(homogeneous_threshold(probe.g, probe.h, negative_slope=0.3).value, rel=1e-5)
