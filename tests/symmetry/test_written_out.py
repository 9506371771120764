"""Norms, rotary positions, fused projections and gains as people write them, in place of the library's modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.offsets import Offset
from gaugefix.testing import flat_directions

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
SEQUENCE = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def twice_centred(x: Tensor) -> Tensor:
    """The mean is subtracted in the numerator and again under the root."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def by_variance(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)


def unbiased_std(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def unbiased_variance(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)


def root_mean_square(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def literal_eps(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], None, None, 1e-5)


class Stream(nn.Module):
    """A residual stream, one block with a gain, a norm without one before the head."""

    def __init__(self, norm: Callable[[Tensor], Tensor], *, offset: float = 0.0, shared: bool = False) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.head = (nn.Linear(a, b) for a, b in ((4, 4), (4, 6), (6, 4), (4, 7)))
        self.gain = nn.Parameter(torch.zeros(4))
        self.norm, self.offset, self.shared = norm, offset, shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gain = self.gain + self.offset if self.offset else self.gain
        x = x + self.down(torch.tanh(self.up(self.norm(x) * gain)))
        again = self.gain + self.offset if self.shared else 1.0
        return self.head(self.norm(x) * again)


class Library(nn.Module):
    """The same with the modules of the library."""

    def __init__(self, norm: Callable[[], nn.Module], last: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.head = (nn.Linear(a, b) for a, b in ((4, 4), (4, 6), (6, 4), (4, 7)))
        self.norm, self.last = norm(), last()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.head(self.last(x))


def search(model: nn.Module, args: tuple[Any, ...]) -> Symmetries:
    found = find_symmetries(model, args, verify=True)
    assert found.rejected == ()
    assert found.opaque == ()
    return found


@pytest.mark.parametrize("written", [twice_centred, by_variance, unbiased_std, unbiased_variance, literal_eps])
def test_a_written_layer_norm_has_the_symmetries_of_the_module(written: Callable[[Tensor], Tensor]) -> None:
    model = Stream(written)
    found = search(model, (X,))
    module = Library(lambda: nn.LayerNorm(4, bias=False), lambda: nn.LayerNorm(4, elementwise_affine=False))
    assert found.flat_dim == search(module, (X,)).flat_dim == flat_directions(model, (X,)).flat
    assert "O(3)" in {s.group for s in found}


def test_a_written_rms_norm_has_the_symmetries_of_the_module() -> None:
    model = Stream(root_mean_square)
    found = search(model, (X,))
    module = Library(lambda: nn.RMSNorm(4), lambda: nn.RMSNorm(4, elementwise_affine=False))
    assert found.flat_dim == search(module, (X,)).flat_dim == flat_directions(model, (X,)).flat
    assert "O(4)" in {s.group for s in found}


def test_a_constant_that_is_no_eps_is_part_of_the_function() -> None:
    model = Stream(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1.0))
    found = search(model, (X,))
    assert "O(4)" not in {s.group for s in found}
    assert found.flat_dim <= flat_directions(model, (X,)).flat


def test_a_variance_that_divides_nothing() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.enter(x))
            return self.head(x) * x.var(-1, keepdim=True) + x.std(dim=0, unbiased=False).mean()

    model = Spread()
    found = search(model, (X,))
    assert {s.group for s in found} >= {"S_6"}
    assert found.flat_dim == flat_directions(model, (X,)).flat


@pytest.mark.parametrize("offset", [1.0, -0.5])
@pytest.mark.parametrize("norm", [root_mean_square, literal_eps])
def test_a_gain_stored_as_a_difference(norm: Callable[[Tensor], Tensor], offset: float) -> None:
    plain, model = search(Stream(norm), (X,)), Stream(norm, offset=offset)
    found = search(model, (X,))
    assert found.flat_dim == plain.flat_dim == flat_directions(model, (X,)).flat
    assert sorted(s.group for s in found) == sorted(s.group for s in plain)
    moved = [s for s in found if "gain" in s.parameters and not s.group.startswith("S_")]
    assert moved
    for s in moved:
        assert isinstance(s, Offset)
        assert not s.isometric
        assert list(s.mirrors()) == []


def test_a_gain_stored_as_a_difference_and_read_twice() -> None:
    model = Stream(root_mean_square, offset=1.0, shared=True)
    assert search(model, (X,)).flat_dim == flat_directions(model, (X,)).flat


def test_a_parameter_that_is_read_with_and_without_the_constant_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * (self.gain + 1.0)) + self.head(x * self.gain)

    model = Both()
    found = search(model, (X,))
    assert not any(isinstance(s, Offset) for s in found)
    assert found.flat_dim <= flat_directions(model, (X,)).flat


@dataclass(frozen=True)
class Fused:
    """How one projection becomes queries, keys and values."""

    name: str
    parts: Callable[[Tensor, int, int], tuple[Tensor, ...]]


def _chunk_in_heads(y: Tensor, heads: int, e: int) -> tuple[Tensor, ...]:
    return y.view(*y.shape[:2], heads, 3 * e).chunk(3, dim=-1)


def _select_in_heads(y: Tensor, heads: int, e: int) -> tuple[Tensor, ...]:
    fused = y.view(*y.shape[:2], heads, 3, e)
    return fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]


def _unbind_in_heads(y: Tensor, heads: int, e: int) -> tuple[Tensor, ...]:
    return y.view(*y.shape[:2], heads, 3, e).unbind(3)


def _whole(y: Tensor, heads: int, e: int) -> tuple[Tensor, ...]:
    return tuple(p.unflatten(-1, (heads, e)) for p in y.chunk(3, dim=-1))


class Attention(nn.Module):
    """Attention with one fused projection and rotary positions on the first ``rotary`` dimensions of every head."""

    def __init__(
        self, parts: Callable[[Tensor, int, int], tuple[Tensor, ...]], *, rotary: int = 0, interleaved: bool = False
    ) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.parts, self.rotary, self.interleaved = parts, rotary, interleaved
        angle = torch.arange(4.0)[:, None] * 0.6 ** torch.arange(rotary // 2)[None]
        angle = angle.repeat_interleave(2, 1) if interleaved else torch.cat([angle, angle], 1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def _turn(self, x: Tensor) -> Tensor:
        first, rest = x[..., : self.rotary], x[..., self.rotary :]
        if self.interleaved:
            turned = torch.stack([-first[..., 1::2], first[..., ::2]], dim=-1).flatten(-2)
        else:
            half = self.rotary // 2
            turned = torch.cat([-first[..., half:], first[..., :half]], dim=-1)
        return torch.cat([first * self.cos + turned * self.sin, rest], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p.transpose(1, 2) for p in self.parts(self.qkv(x), 2, 4))
        if self.rotary:
            q, k = self._turn(q), self._turn(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("parts", [_chunk_in_heads, _select_in_heads, _unbind_in_heads, _whole])
def test_a_projection_fused_inside_every_head(parts: Callable[[Tensor, int, int], tuple[Tensor, ...]]) -> None:
    model = Attention(parts)
    found = search(model, (SEQUENCE,))
    groups = [s.group for s in found]
    assert groups.count("(GL(4))^2") == 2  # queries against keys, values against outputs
    assert "S_2" in groups  # the heads
    assert found.flat_dim == flat_directions(model, (SEQUENCE,)).flat


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("parts", [_chunk_in_heads, _whole])
def test_rotary_positions_on_the_whole_head(
    parts: Callable[[Tensor, int, int], tuple[Tensor, ...]], interleaved: bool
) -> None:
    model = Attention(parts, rotary=4, interleaved=interleaved)  # what is left of the head is empty
    found = search(model, (SEQUENCE,))
    assert "SO(2)^4" in {s.group for s in found}
    assert found.flat_dim == flat_directions(model, (SEQUENCE,)).flat
