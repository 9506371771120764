import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import check_noether_law, gradient_noise, noether_charges, noise_equilibrium


class _Attention(nn.Module):
    """Two heads and a ReLU layer: both general linear groups of every head, and rescalings."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.attention(x, x, x, need_weights=False)[0]
        return self.down(torch.relu(self.up(h)))


class _Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(5, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def _convolutions():
    return nn.Sequential(nn.Conv1d(4, 5, 3), nn.ReLU(), nn.Conv1d(5, 2, 1), nn.Flatten(), nn.Linear(10, 3))


_MODELS = {
    "attention": (_Attention, (6, 4), {"matrix": 2, "scale": 1}),
    "adapter": (_Adapter, (5,), {"matrix": 1, "scale": 0}),
    "convolutions": (_convolutions, (4, 7), {"matrix": 1, "scale": 1}),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (4,), {"matrix": 1, "scale": 0}),
}


_FOUND = {}


@pytest.fixture(params=list(_MODELS))
def made(request):
    make, shape, counts = _MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    x = torch.randn(24, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def task(**options):
        settings = {"lr": 0.05, "weight_decay": 0.0, "batch_size": 6, **options}
        return Task(model, lambda m, b: (m(b) - 1).square().flatten(1).sum(1), lambda: x.split(6), **settings)

    if request.param not in _FOUND:  # the search sees the structure alone
        _FOUND[request.param] = find_symmetries(model, (x[:2],))
    return task, _FOUND[request.param], counts


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.05}, {"momentum": 0.9, "weight_decay": 0.02}])
def test_the_law_is_exact_for_every_continuous_symmetry(made, options):
    task, symmetries, counts = made
    laws = check_noether_law(task(**options), symmetries, steps=12)
    for kind, dims in (("matrix", 3), ("scale", 1)):
        assert sum(law.measured.ndim == dims for law in laws) >= counts[kind]
    before = {c.name: c.charge for c in noether_charges(dict(task().model.named_parameters()), symmetries)}
    for law in laws:
        assert law.exact
        assert law.error < 1e-12
        assert np.abs(law.measured - before[law.name]).max() > 1e-6  # it did move


def test_learning_rates_by_parameter(made):
    task, symmetries, _ = made
    rates = {k: 0.02 * (1 + i % 3) for i, (k, _) in enumerate(task().model.named_parameters())}
    assert max(law.error for law in check_noether_law(task(), symmetries, lr=rates)) < 1e-12
    with pytest.raises(MeasurementError, match=r"weight decay 0\.1"):
        check_noether_law(task(weight_decay=0.1), symmetries, lr=rates)
    with pytest.raises(MeasurementError, match="at least 1"):
        check_noether_law(task(), symmetries, steps=0)


def test_adam_has_a_first_order_drift(made):
    task, symmetries, _ = made
    laws = check_noether_law(task(optimizer="adam"), symmetries)
    assert not any(law.exact for law in laws)
    assert max(law.error for law in laws) > 1e-4


def test_gradient_flow_conserves_matrix_charges():
    """The charge of a head is W_Q W_Qᵀ − W_K W_Kᵀ of its rows, biases included."""
    model = _Attention().double()
    found = noether_charges(dict(model.named_parameters()), find_symmetries(model, (torch.randn(2, 6, 4).double(),)))
    w, b = model.attention.in_proj_weight.detach(), model.attention.in_proj_bias.detach()
    rows = torch.cat([w, b[:, None]], dim=1)
    q, k = rows[:4].reshape(2, 2, 5), rows[4:8].reshape(2, 2, 5)
    expected = (q @ q.mT - k @ k.mT).numpy()
    assert any(
        c.charge.shape == (2, 2, 2)
        and min(np.abs(c.charge - expected).max(), np.abs(c.charge + expected).max()) < 1e-12
        for c in found
    )


def test_noise_equilibrium_balances_the_noise_and_has_the_least_of_it(made):
    """Apply the shift: the distance vanishes, the function is the same, the noise is smaller."""
    task, symmetries, counts = made
    t = task()
    start = noise_equilibrium(t, symmetries)
    assert sum(e.kind == "matrix" for e in start) >= min(counts["matrix"], 1) or counts["scale"]
    groups = {s.name: s for s in symmetries}
    for entry in start:
        if not entry.valid:
            continue
        group, params = groups[entry.name], {k: p.detach().clone() for k, p in t.model.named_parameters()}
        shape = group.units.fibers, group.units.size
        element = torch.tensor(entry.maps) if entry.kind == "matrix" else torch.tensor(entry.shift).reshape(shape)
        before = gradient_noise(t).total.trace
        _load(t.model, group.apply(params, element))
        after = {e.name: e for e in noise_equilibrium(t, symmetries)}[entry.name]
        assert after.distance < 1e-7
        assert np.abs(after.imbalance).max() < 1e-6
        assert gradient_noise(t).total.trace <= before * (1 + 1e-12)
        _load(t.model, params)
        assert entry.distance > 1e-3


def test_weight_decay_pulls_to_equal_norms():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task(model, lambda m, b: (m(b) - 1).square().sum(1), lambda: [x], lr=0.1, weight_decay=1e6, batch_size=1)
    symmetries = find_symmetries(model, (x[:2],))
    found = noise_equilibrium(task, symmetries, weight_decay=True)[0]
    incoming = model[0].weight.square().sum(1) + model[0].bias.square()
    outgoing = model[2].weight.square().sum(0)
    expected = 0.25 * torch.log(incoming / outgoing).detach().numpy()
    sign = np.sign(found.shift @ expected)  # which side is called plus is the search's choice
    assert found.shift == pytest.approx(sign * expected, abs=1e-4)


def test_one_sided_noise_has_no_equilibrium():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias += 1.0  # the others are on for some inputs
        model[0].weight[1], model[0].bias[1] = 0.0, -1.0  # never on: no noise on either side
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task(model, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=1)
    found = noise_equilibrium(task, find_symmetries(model, (x[:2],)))[0]
    assert not found.valid
    assert "1 of 4" in found.reason
    assert np.isfinite(found.distance)


def _load(model, params):
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(params[k])
