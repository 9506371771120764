import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import gradient_noise, unit_noise
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.moments import collect_moments
from gaugefix.measure.perexample import Moments


def _by_hand(task, batch):
    """Gradients of single samples, one backward pass each."""
    params = [p for p in task.model.parameters() if p.requires_grad]
    n = len(batch[0])
    rows = []
    for i in range(n):
        loss = task.loss(task.model, tuple(t[i : i + 1] for t in batch)).sum()
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def _check(task, batch, method):
    noise = gradient_noise(task)
    each = _by_hand(task, batch)
    covariance = torch.cov(each.T, correction=0)
    assert noise.method == method
    assert noise.n_samples == len(each)
    assert noise.total.trace == pytest.approx(float(covariance.trace()), rel=1e-10)
    assert noise.total.mean_sq == pytest.approx(float(each.mean(0).square().sum()), rel=1e-10)
    assert sum(g.trace for g in noise.groups) == pytest.approx(noise.total.trace, rel=1e-10)
    assert noise.total.snr == pytest.approx(noise.total.mean_sq / (noise.total.trace / task.batch_size))
    assert noise.stderr == pytest.approx(float(each.square().sum(1).std()) / len(each) ** 0.5)
    assert noise.temperature == task.lr / task.batch_size


def test_ghost_norms_of_an_mlp(mlp, make_task, blobs):
    _check(make_task(mlp((5, 7, 3), "tanh"), blobs, batch_size=16), blobs, "ghost norms")


def test_ghost_norms_of_frozen_parts(mlp, make_task, blobs):
    model = mlp((5, 7, 3), "relu")
    model[0].weight.requires_grad_(False)
    _check(make_task(model, blobs, batch_size=16), blobs, "ghost norms")


@pytest.mark.parametrize("positions", [2, 9])
def test_ghost_norms_over_positions(positions):
    torch_generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, positions, 4, generator=torch_generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    batch = (x, x.sum(1)[:, :2])
    task = Task(
        model,
        lambda m, b: (m(b[0]).sum(1) - b[1]).square().sum(1),
        lambda: [batch],
        lr=0.1,
        weight_decay=0.0,
        batch_size=12,
    )
    _check(task, batch, "ghost norms")


def _task(model, loss, *data):
    return Task(model, loss, lambda: [data], lr=0.1, weight_decay=0.0, batch_size=len(data[0]))


def _squares(model, batch):
    return model(batch[0]).square().flatten(1).sum(1)


def _next_word(model, batch):
    scores = model(batch[0])[:, :-1].transpose(1, 2)
    return nn.functional.cross_entropy(scores, batch[0][:, 1:], reduction="none").mean(1)


class _Encoder(nn.Module):
    """Attention on parameters of its own, a class token, positions added as a raw parameter, a gain per channel."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(4, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.second, self.gain, self.head = nn.RMSNorm(8), nn.Parameter(torch.rand(8)), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0] * self.gain - self.gain
        return self.head(self.second(x)).mean(1 if self.batch_first else 0)


class _Words(nn.Module):
    """Words and positions; the output layer may share the words, and one layer is used twice."""

    def __init__(self, tied):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(9, 8)
        self.layer, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        x = x + self.layer(self.norm(x)).relu()
        return self.head(x + self.layer(self.norm(x)).tanh())


class _Reused(nn.Module):
    """Raw parameters, each used several times and in several ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return (((x @ self.a).tanh() @ self.a.T) * self.b - self.b).sigmoid() @ self.a + self.b


class _Tied(nn.Module):
    """A Linear layer whose weight is used a second time behind the back of its module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).tanh() @ self.layer.weight


class _Branching(nn.Module):
    """Control flow on values: vmap cannot trace it, and each sample has a graph of its own."""

    def __init__(self):
        super().__init__()
        values = torch.linspace(-1, 1, 16).reshape(2, 4, 2)
        self.a, self.b = nn.Parameter(values[0].clone()), nn.Parameter(values[1].clone())

    def forward(self, x):
        return torch.stack([row @ (self.a if row.sum() > 0 else self.b) for row in x])


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


def _images():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), nn.ReLU(), nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1, bias=False), nn.GroupNorm(2, 4),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(216, 3),
    )  # fmt: skip
    model[2].running_mean.normal_()
    model[2].running_var.uniform_(0.5, 2.0)
    return model


def _zero_gate():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    nn.init.zeros_(model[2].weight)  # the gradient of the first layer is zero
    return model


_LENGTHS = nn.Sequential(nn.Conv1d(4, 6, 3, padding="same", dilation=2), nn.ReLU(), nn.Conv1d(6, 3, 3, stride=3))
_CASES = {
    "images": (_images, _squares, (4, 7, 7), "ghost norms"),
    "sequences": (lambda: _LENGTHS, _squares, (4, 13), "ghost norms"),
    "volumes": (lambda: nn.Conv3d(1, 2, 2), _squares, (1, 3, 4, 5), "ghost norms"),
    "padded in a circle": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), _squares, (4, 9),
                           "ghost norms"),
    "attention": (_Encoder, _squares, (5, 4), "ghost norms"),
    "attention, positions first": (lambda: _Encoder(batch_first=False), _squares, (5, 4), "ghost norms"),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), _squares, (3, 4), "ghost norms"),
    "words": (lambda: _Words(tied=False), _next_word, None, "ghost norms"),
    "tied words": (lambda: _Words(tied=True), _next_word, None, "ghost norms"),
    "reused parameters": (_Reused, _squares, (4,), "ghost norms"),
    "tied behind the module": (_Tied, _squares, (4,), "ghost norms"),
    "recurrent": (_Recurrent, _squares, (6, 4), "ghost norms"),
    "no gradient to check with": (_zero_gate, _squares, (3, 4), "ghost norms, vmap"),
    "slopes of negative inputs": (lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 2)), _squares, (4,),
                                  "ghost norms, vmap"),
    "branches": (_Branching, _squares, (4,), "loop"),
}  # fmt: skip


@pytest.fixture(params=_CASES, ids=list(_CASES))
def case(request):
    """An architecture with random weights and data, and the way its noise is found."""
    make, loss, shape, method = _CASES[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().eval()
        data = torch.randint(0, 11, (10, 7)) if shape is None else torch.randn(10, *shape, dtype=torch.float64)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p) * (p != 0))
    return _task(model, loss, data), (data,), method


def test_every_architecture_against_a_loop(case):
    _check(*case)


def test_squares_of_every_entry(case):
    task, batch, _ = case
    moments = collect_moments(exact_copy(task), diagonal=True)
    expected = _by_hand(task, batch).square().sum(0)
    found = torch.cat([moments.diagonal[k].reshape(-1) for k, _ in task.model.named_parameters()])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(expected.max()))


def test_positions_and_samples_of_equal_number_are_told_apart():
    """Position-major rows with as many positions as samples: the wrong reading has the right shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 5, 4, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 3, bias=False).double()
    task = _task(model, lambda m, b: m(b[0].transpose(0, 1)).transpose(0, 1).square().sum(1).prod(1), x)
    _check(task, (x,), "ghost norms")


def test_batches_of_other_shapes_are_checked_again():
    """With one position nothing tells the layouts apart; the next batch has several."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, t, 4, generator=generator, dtype=torch.float64) for t in (1, 3)]
    model = nn.Linear(4, 3).double()
    loss = lambda m, b: m(b.transpose(0, 1)).transpose(0, 1).square().sum((1, 2))  # noqa: E731
    noise = gradient_noise(Task(model, loss, lambda: batches, lr=0.1, weight_decay=0.0, batch_size=6))
    parts = [_by_hand(Task(model, lambda m, b: loss(m, b[0]), list, lr=0.1, weight_decay=0.0, batch_size=6), (b,))
             for b in batches]  # fmt: skip
    covariance = torch.cov(torch.cat(parts).T, correction=0)
    assert noise.total.trace == pytest.approx(float(covariance.trace()), rel=1e-10)


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 2, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0]


def test_other_modules_are_checked_anew():
    """What was seen of the operations is kept with the task, as long as its modules are the same."""
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    task = _task(model, lambda m, b: m(b[0]).square().flatten(1).sum(1), x)
    first = gradient_noise(task)
    assert gradient_noise(task).total == first.total
    model[1] = _Recurrent().double()
    task.model[0].bias.requires_grad_(False)
    covariance = torch.cov(_by_hand(task, (x,)).T, correction=0)
    assert gradient_noise(task).total.trace == pytest.approx(float(covariance.trace()), rel=1e-9)


def test_noise_of_units(mlp, mlp_units, make_task, blobs):
    task = make_task(mlp((5, 7, 3), "relu"), blobs, batch_size=16)
    units = mlp_units(task.model, "relu")[0]
    found = unit_noise(task, [units])[0]
    each, sizes = _by_hand(task, blobs), [p.numel() for p in task.model.parameters()]
    variance = each.var(0, correction=0).split(sizes)
    shaped = {k: v.reshape(p.shape) for (k, p), v in zip(task.model.named_parameters(), variance, strict=True)}
    assert found.incoming == pytest.approx(units.rows(shaped, "write").sum(1).numpy(), rel=1e-9)
    assert found.outgoing == pytest.approx(units.rows(shaped, "read").sum(1).numpy(), rel=1e-9)
    assert found.n_samples == 48


@pytest.mark.parametrize("layers", ["mlp", "cnn"])
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_backpack_agrees_up_to_its_normalisation(layers):
    """BackPACK gives the variance of (1/N)∇ℓ, so that N² times its sum is Tr C."""
    backpack = pytest.importorskip("backpack")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(16) % 3
    first = [nn.Flatten(), nn.Linear(36, 12)] if layers == "mlp" else [nn.Conv2d(1, 3, 5), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*first, nn.ReLU(), nn.Linear(12, 3)).double()
    noise = gradient_noise(
        _task(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), x, y)
    )
    extended, loss = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())
    with backpack.backpack(backpack.extensions.Variance()):
        loss(extended(x), y).backward()
    total = sum(float(p.variance.sum()) for p in extended.parameters())
    assert 16**2 * total == pytest.approx(noise.total.trace, rel=1e-9)


def test_max_samples_stops_after_the_batch(mlp, make_task, blobs):
    task = make_task(mlp((5, 4, 3), "relu"), blobs, batch_size=8)
    assert gradient_noise(task, max_samples=10).n_samples == 16


def test_a_loss_with_float32_inside_still_works(mlp, blobs):
    weights = torch.tensor([1.0, 2.0, 3.0])
    x, y = blobs[0].float(), blobs[1]
    task = Task(
        mlp((5, 4, 3), "relu").float(),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], weight=weights, reduction="none"),
        lambda: [(x, y)],
        lr=0.1,
        weight_decay=0.0,
        batch_size=48,
    )
    assert gradient_noise(task).total.trace > 0


def test_nothing_to_measure(mlp, make_task, blobs):
    model = mlp((5, 4, 3), "relu")
    with pytest.raises(MeasurementError, match="at least 1"):
        gradient_noise(make_task(model, blobs), max_samples=0)
    model.requires_grad_(False)
    with pytest.raises(MeasurementError, match="requires_grad"):
        gradient_noise(make_task(model, blobs))


def test_sums_leave_what_others_read_as_it_was():
    """Two parameters can have one gradient in one memory: sums that grow in place must not meet in it."""
    shared, more = torch.ones(3), torch.full((3,), 2.0)
    moments = Moments()
    for total in (shared, more, more):
        for name in "ab":
            moments.add(name, total, torch.ones(1))
    assert [t.tolist() for t in (moments.total["a"], moments.total["b"], shared, more)] == [
        [5.0] * 3, [5.0] * 3, [1.0] * 3, [2.0] * 3,
    ]  # fmt: skip
    assert moments.count == 3
