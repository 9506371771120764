"""Adapters beside a weight, rows sent to experts, axes cut into parts: nothing false where the pattern almost fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.bypass import Bypass
from gaugefix.testing import check_symmetries, flat_directions


class Adapter(nn.Module):
    """W x + s·B A x between two activations; variants break the pattern in one place each."""

    def __init__(self, variant: str = "plain") -> None:
        super().__init__()
        self.variant = variant
        self.first = nn.Linear(3, 6)
        self.base = nn.Linear(6, 5, bias=variant != "no bias")
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.out = nn.Linear(5, 4)
        self.tap = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        low = self.down(x)
        if self.variant == "activation":
            low = torch.tanh(low)
        wide = self.base(x) + 0.5 * self.up(low)
        if self.variant == "other input":
            wide = self.base(x) + self.up(self.down(x * x))
        if self.variant == "base twice":
            wide = wide + self.base(x * x)
        out: Tensor = self.out(torch.tanh(wide))
        return out + self.tap(low) if self.variant == "tapped" else out


def bypasses(found: Symmetries) -> list[Bypass]:
    return [s for s in found if isinstance(s, Bypass)]


class TestAdapters:
    @pytest.mark.parametrize("variant", ["plain", "no bias"])
    def test_found_and_complete(self, variant: str) -> None:
        model, x = Adapter(variant), torch.randn(4, 3)
        found = find_symmetries(model, (x,), verify=True)
        (bypass,) = bypasses(found)
        assert bypass.group == "T(22)"  # 2 * (6 + 5)
        assert bypass.dim == 18  # the other four are GL(2)
        assert bypass.scale == 0.5
        assert not found.rejected
        unread = {f"tap.{n}: unread" for n, _ in model.tap.named_parameters()}  # this variant does not use them
        assert {s.name for s in found if s.name.endswith("unread")} == unread
        assert found.flat_dim == flat_directions(model, (x,)).flat
        check_symmetries(found, model, (x,))

    @pytest.mark.parametrize("variant", ["activation", "other input", "base twice", "tapped"])
    def test_not_where_something_else_is_in_the_way(self, variant: str) -> None:
        found = find_symmetries(Adapter(variant), (torch.randn(4, 3),), verify=True)
        assert not bypasses(found)
        assert not found.rejected


class Merged(nn.Module):
    """x (W + B A)ᵀ, the sum written in different ways."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.W, self.A, self.B = (nn.Parameter(torch.randn(s)) for s in ((5, 6), (2, 6), (5, 2)))

    def forward(self, x: Tensor) -> Tensor:
        match self.variant:
            case "linear":
                return nn.functional.linear(x, self.W + 0.5 * self.B @ self.A)
            case "scaled after":
                return x @ (3 * (self.B @ self.A) - self.W).T
            case "einsum":
                return nn.functional.linear(x, torch.einsum("ri,or->oi", self.A, self.B) + self.W)
            case "activation":
                return nn.functional.linear(x, self.W + torch.tanh(self.B @ self.A))
            case "twice":
                return nn.functional.linear(x, self.W + self.B @ self.A) + nn.functional.linear(x * x, self.W)
        raise ValueError(self.variant)


@pytest.mark.parametrize("variant", ["linear", "scaled after", "einsum", "activation", "twice"])
def test_a_product_added_to_a_weight(variant: str) -> None:
    model, x = Merged(variant), torch.randn(12, 6)
    found = find_symmetries(model, (x,), verify=True)
    assert not found.rejected
    taken = {"linear": 0.5, "scaled after": -3.0, "einsum": 1.0}
    assert [s.scale for s in bypasses(found)] == ([taken[variant]] if variant in taken else [])
    if variant != "activation":  # there W takes back a function of B A, which is not looked for
        assert found.flat_dim == flat_directions(model, (x,)).flat
    check_symmetries(found, model, (x,))


class Choose(nn.Module):
    """Top-k of hidden units, and what is done with the values or the positions."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.score, self.hidden, self.out = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(2, 4)
        self.table = nn.Embedding(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        values, positions = self.score(x).topk(2, dim=-1)
        out: Tensor = self.out(values)
        if self.use == "look up":
            out = out + self.out(self.table(positions).sum(1))
        if self.use == "gather":
            out = out + self.out(torch.gather(self.hidden(x), 1, positions))
        if self.use == "rows":
            out = out + self.out(self.score.weight[positions[:, 0]][:, :2])
        return out


@pytest.mark.parametrize("use", ["values", "look up", "gather", "rows"])
def test_choices_are_reported_and_nothing_is_false(use: str) -> None:
    found = find_symmetries(Choose(use), (torch.randn(8, 3),), verify=True)
    assert not found.rejected
    assert "topk" in {o.op for o in found.opaque}
    assert all("score" not in axis for s in found if s.group.startswith("S_") for axis in s.axes)


class Tokens(nn.Module):
    """Attention over a first token and the others; ``mixed`` gives the first token keys of its own."""

    def __init__(self, *, mixed: bool, d: int = 4) -> None:
        super().__init__()
        self.mixed = mixed
        self.first = nn.Parameter(torch.randn(1, 1, d))
        self.norm = nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.own = nn.Linear(d, d)
        self.out = nn.Linear(d, 7)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
        n = self.norm(x)
        keys = self.k(n)
        if self.mixed:
            keys = torch.cat([self.own(n[:, :1]), keys[:, 1:]], dim=1)
        x = x + self.o(nn.functional.scaled_dot_product_attention(self.q(n), keys, self.v(n)))
        out: Tensor = self.out(x[:, 0] + x[:, 1])
        return out


class TestCutTokenAxis:
    def test_a_key_bias_of_all_tokens_is_dead(self) -> None:
        model, x = Tokens(mixed=False), torch.randn(3, 4, 4)
        found = find_symmetries(model, (x,), verify=True)
        assert not found.rejected
        assert any(s.name == "k.bias: shift" and s.group == "T(4)" for s in found)

    def test_one_of_some_tokens_is_not(self) -> None:
        model, x = Tokens(mixed=True), torch.randn(3, 4, 4)
        found = find_symmetries(model, (x,), verify=True)
        assert not found.rejected
        assert not any(s.name in {"k.bias: shift", "own.bias: shift"} for s in found)
        check_symmetries(found, model, (x,))
