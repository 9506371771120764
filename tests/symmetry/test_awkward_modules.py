"""Noise inside, recurrence, shared parts, odd modes: each has a defined answer, and none a false claim."""

from __future__ import annotations

import pytest
import torch
from tests.cases import X, numbers
from torch import Tensor, nn
from torch.nn import functional as F

from gaugefix import Task
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.testing import check_symmetries, completeness, flat_directions


def groups(found: Symmetries) -> list[str]:
    return [s.group for s in found]


class VAE(nn.Module):
    """Encoder with two heads, z = μ + σε, decoder; returns what the loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 7)
        self.mean, self.log_var = nn.Linear(7, 3), nn.Linear(7, 3)
        self.open, self.leave = nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.enter(x))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.leave(torch.tanh(self.open(z))), mean, log_var


def evidence_bound(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    x = batch[0]
    out, mean, log_var = model(x)
    divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
    return F.mse_loss(out, x, reduction="none").sum(1) + divergence


class TestVariationalAutoencoder:
    """The noise is part of the function, so the axis of the code is pinned; hidden layers are as everywhere."""

    def test_groups_and_flat_dimension(self) -> None:
        model, args = VAE(), (numbers(8, 5),)
        state = torch.get_rng_state()
        found = find_symmetries(model, args, verify=True)
        assert sorted(groups(found)) == ["S_6", "S_7", "Z_2^6", "Z_2^7"]
        assert found.opaque == ()
        assert found.rejected == ()
        assert found.verified
        assert found.flat_dim == flat_directions(model, args).flat == 0
        assert torch.equal(torch.get_rng_state(), state)

    def test_its_loss_with_the_divergence(self) -> None:
        x = numbers(8, 5)
        task = Task(VAE(), evidence_bound, lambda: [(x,)], lr=0.1, weight_decay=0.0, batch_size=8)
        found = find_symmetries(task)
        assert found.rejected == ()
        assert {"S_6", "S_7", "Z_2^6", "Z_2^7"} <= set(groups(found))
        assert not any(s.level == "loss" and s.dim for s in found)


def test_a_linear_autoencoder_turns_its_code() -> None:
    model = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 5))
    found = find_symmetries(model, (numbers(8, 5),))
    assert groups(found) == ["GL(2)", "T(2)"]
    assert found.flat_dim == flat_directions(model, (numbers(8, 5),)).flat == 4 + 2


class Recurrent(nn.Module):
    """tanh(Linear), a recurrent part, and a two-layer head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.enter, self.head = nn.Linear(3, 4), nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
        make = {"gru cell": nn.GRUCell, "lstm cell": nn.LSTMCell, "rnn cell": nn.RNNCell,
                "gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[kind]  # fmt: skip
        self.part = make(4, 5) if "cell" in kind else make(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(torch.tanh(self.enter(x)))
        if self.kind == "lstm cell":
            y = y[0]
        elif "cell" not in self.kind:
            y = y[0][:, -1]
        return self.head(y)


@pytest.mark.parametrize("kind", ["gru cell", "lstm cell", "rnn cell"])
def test_recurrent_cells_are_seen_through(kind: str) -> None:
    """Units of one step from a state of zeros: their permutations, and the signs of tanh where nothing gates them."""
    model, args = Recurrent(kind), (numbers(8, 3),)
    found = find_symmetries(model, args, verify=True)
    assert found.rejected == ()
    assert found.opaque == ()
    assert {"S_4", "S_5", "S_6"} <= set(groups(found))
    assert found.verified
    check_symmetries(found, model, args)
    biases = {"gru cell": 10, "lstm cell": 20, "rnn cell": 5}[kind]  # input and recurrent biases of a gate are added
    assert found.flat_dim >= biases


class Unrolled(nn.Module):
    """A cell of the library for two steps, then a linear head."""

    def __init__(self, make: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = make(3, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("make", "added"),
    # gates in which the input's bias is added to the recurrent one
    [(nn.GRUCell, 2), (nn.LSTMCell, 4), (nn.RNNCell, 1)],
)
def test_unrolled_cells(make: type[nn.Module], added: int) -> None:
    """Units are permuted, and tanh lets their signs through: what the gates read of a state turns with it."""
    model, args = Unrolled(make), (numbers(8, 2, 3),)
    found = find_symmetries(model, args, verify=True)
    assert found.opaque == ()
    assert found.rejected == ()
    assert sorted(groups(found)) == ["S_4", *["T(4)"] * added, "Z_2^4"]
    assert found.flat_dim == flat_directions(model, args).flat == 4 * added


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
def test_whole_sequences_are_opaque_and_pin_what_touches_them(kind: str) -> None:
    model, x = Recurrent(kind), numbers(3, 4, 3)
    found = find_symmetries(model, (x,), verify=True)
    assert found.rejected == ()
    assert {o.op for o in found.opaque} <= {"gru", "lstm", "rnn_tanh"}
    assert groups(found) == ["S_6", "Z_2^6"]  # of the head; the recurrent units and what they read stay put
    assert all(name.startswith("head.") for s in found for name in s.parameters)


class HandWrittenGRU(nn.Module):
    """The same cell from elementary operations, two steps: its hidden units can be permuted."""

    def __init__(self, n_in: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.hidden = hidden
        self.x, self.h = nn.Linear(n_in, 3 * hidden), nn.Linear(hidden, 3 * hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hidden)
        for t in range(2):
            (xr, xz, xn), (hr, hz, hn) = self.x(x[:, t]).chunk(3, 1), self.h(h).chunk(3, 1)
            z = torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h
        return self.head(h)


class HandWrittenLSTM(nn.Module):
    """An LSTM cell from elementary operations, two steps."""

    def __init__(self, n_in: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.hidden = hidden
        self.x, self.h = nn.Linear(n_in, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.hidden)
        for t in range(2):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@pytest.mark.parametrize(
    ("make", "flat"),
    # input and recurrent biases are added in the reset and update gates of the GRU, and in all gates of the LSTM
    [(HandWrittenGRU, 2 * 4), (HandWrittenLSTM, 4 * 4)],
)
def test_written_out_cells_are_seen_through(make: type[nn.Module], flat: int) -> None:
    model, args = make(), (numbers(8, 2, 3),)
    found = find_symmetries(model, args, verify=True)
    assert found.opaque == ()
    assert found.rejected == ()
    assert "S_4" in groups(found)
    assert found.flat_dim == flat_directions(model, args).flat == flat
    check_symmetries(found, model, args)


def test_batch_norm_counts_as_in_training_whatever_the_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.Linear(6, 3))
    running = model[1].running_mean.clone()
    in_training = find_symmetries(model.train(), (X,), verify=True)
    assert model.training
    assert model[1].training
    in_evaluation = find_symmetries(model.eval(), (X,), verify=True)
    assert in_training.to_json() == in_evaluation.to_json()
    assert in_training.rejected == ()
    assert torch.equal(model[1].running_mean, running)
    assert int(model[1].num_batches_tracked) == 0


def test_batch_norm_without_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3))
    found = find_symmetries(model, (X,), verify=True)
    assert found.rejected == ()
    assert completeness(found, model, (X,)).complete


def test_a_module_registered_twice_is_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.again, self.out = self.a, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.a(x)) + torch.tanh(self.again(2 * x)))

    model = Twice()
    found = find_symmetries(model, (X,), verify=True)
    assert groups(found) == ["S_6", "Z_2^6"]
    assert not any("again" in axis for s in found for axis in s.axes)
    assert found.n_parameters == sum(p.numel() for p in model.parameters())


def test_half_precision_weights_are_checked_in_double() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3)).to(torch.bfloat16)
    found = find_symmetries(model, (X.to(torch.bfloat16),), verify=True)
    assert groups(found) == ["S_6", "R+^6"]
    assert max(v.error for v in found.verification) < 1e-9


def test_a_gain_behind_a_function_is_seen_through_as_far_as_it_goes() -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.gain = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.enter(x) * F.softplus(self.gain))

    found = find_symmetries(Positive(), (X,), verify=True)
    assert found.rejected == ()
    assert {"S_5", "R+^5"} <= set(groups(found))


def test_parametrised_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.LeakyReLU(), nn.Linear(6, 3))
    found = find_symmetries(model, (X,), verify=True)
    assert found.rejected == ()
    check_symmetries(found, model, (X,))
