"""The model zoo: small modules with what a search must find in each, written down by hand.

`flat_dim` is a formula wherever there is one, so that the number says where it comes from. Widths are distinct where
two axes must not be confused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """One architecture and its symmetries.

    Attributes:
        name: test id.
        make: builds the module.
        args: example arguments.
        flat_dim: continuous directions at a generic point.
        groups: each group with the number of symmetries that must carry it; groups not named here are not checked.
        opaque: names of the operations that cannot be seen through.
        seeds: points at which flat directions are counted; the smallest count is the architecture's, because units
            that are dead or always on add directions at some points (piecewise linear activations).
    """

    name: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    flat_dim: int
    groups: dict[str, int]
    opaque: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)

    def __str__(self) -> str:
        return self.name


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian example input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int, vocabulary: int) -> Tensor:
    """Token ids that contain the first and the last word, so that redrawing covers the whole vocabulary."""
    return torch.arange(batch * length).reshape(batch, length) * (vocabulary - 1) // (batch * length - 1)


def mlp(widths: tuple[int, ...], activation: Callable[[], nn.Module], *, bias: bool = True) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


# Modules with a forward of their own


class Functional(nn.Module):
    """Activations and reshapes written as calls: x (n, 2, 2) -> log-probabilities (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.leaky_relu(self.first(x.reshape(len(x), -1))))
        x = F.dropout(F.leaky_relu(self.second(x)), training=self.training)
        return F.log_softmax(self.third(x), dim=-1)


class Residual(nn.Module):
    """x + W₂ φ(W₁ norm(x)) repeated, with an input and an output layer."""

    def __init__(
        self, d: int, hidden: int, depth: int, norm: Callable[[int], nn.Module], act: Callable[[], nn.Module],
        *, final: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(3, d)
        self.norms = nn.ModuleList(norm(d) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(d, hidden) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(hidden, d) for _ in range(depth))
        self.act = act()
        self.final = norm(d) if final else nn.Identity()
        self.head = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(self.act(up(norm(x))))
        return self.head(self.final(x))


class Bilinear(nn.Module):
    """f(x) = x A B with bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(5, 2))
        self.B = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A @ self.B


class LoRA(nn.Module):
    """A layer with weight W + B A."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.base = nn.Linear(5, 4)
        self.base.requires_grad_(not frozen)
        self.A = nn.Parameter(torch.randn(2, 5))
        self.B = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + 0.5 * self.B @ self.A, self.base.bias)


class Einsum(nn.Module):
    """Two layers written with einsum, the hidden axis split into blocks of units that share nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 2, 3))
        self.second = nn.Parameter(torch.randn(2, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("ni,ihk->nhk", x, self.first))
        return torch.einsum("nhk,hko->no", hidden, self.second)


class Dense(nn.Module):
    """DenseNet-style: every layer reads the concatenation of the input and all earlier layers."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(9, 6), nn.Linear(15, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.act(self.first(x))], dim=1)
        x = torch.cat([x, self.act(self.second(x))], dim=1)
        return self.third(x)


class SwiGLU(nn.Module):
    """Down(silu(gate(x)) * up(x)) without biases."""

    def __init__(self, d: int = 4, hidden: int = 7) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Autoencoder(nn.Module):
    """An encoder, a linear code and a decoder; the code is returned too if ``expose``."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.enter, self.code = nn.Linear(5, 6), nn.Linear(6, 2)
        self.open, self.leave = nn.Linear(2, 6), nn.Linear(6, 5)
        self.tied = tied
        if tied:
            self.leave.weight = nn.Parameter(torch.zeros(5, 6))
            self.enter.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(torch.tanh(self.enter(x)))
        return self.leave(torch.tanh(self.open(code)))


class TiedAutoencoder(nn.Module):
    """W ᵀ tanh(W x + b) + c: the decoder is the transpose of the encoder."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(6, 4))
        self.b, self.c = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act(F.linear(x, self.W, self.b)), self.W.t(), self.c)


class SharedLayer(nn.Module):
    """One square layer applied three times, as in a weight-tied or equilibrium network."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.step, self.leave = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.enter(x))
        for _ in range(3):
            x = self.act(self.step(x))
        return self.leave(x)


class Mixture(nn.Module):
    """A dense mixture of experts: Σ_e softmax(router(x))_e expert_e(x), experts stacked in one tensor or in a list."""

    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.router = nn.Linear(3, 4)
        self.stacked = stacked
        if stacked:
            self.up = nn.Parameter(torch.randn(4, 3, 5))
            self.down = nn.Parameter(torch.randn(4, 5, 2))
        else:
            self.ups = nn.ModuleList(nn.Linear(3, 5, bias=False) for _ in range(4))
            self.downs = nn.ModuleList(nn.Linear(5, 2, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.stacked:
            hidden = F.gelu(torch.einsum("ni,eih->neh", x, self.up))
            return torch.einsum("neh,eho,ne->no", hidden, self.down, weights)
        outs = [down(F.gelu(up(x))) for up, down in zip(self.ups, self.downs, strict=True)]
        return sum((w[:, None] * o for w, o in zip(weights.unbind(1), outs, strict=True)), torch.zeros(()))


class Attention(nn.Module):
    """Self-attention by hand: how the fused projection is taken apart and how the product is written are options."""

    def __init__(self, d: int = 6, heads: int = 2, *, split: str = "chunk", product: str = "matmul",
                 bias: bool = False, causal: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias)
        self.heads, self.split, self.product, self.causal = heads, split, product, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        e = d // self.heads
        if self.split == "chunk":
            q, k, v = (p.view(b, t, self.heads, e).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        elif self.split == "select":
            fused = self.qkv(x).view(b, t, 3, self.heads, e).permute(2, 0, 3, 1, 4)
            q, k, v = fused[0], fused[1], fused[2]
        else:  # unbind
            q, k, v = self.qkv(x).view(b, t, 3, self.heads, e).permute(2, 0, 3, 1, 4).unbind(0)
        if self.product == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        elif self.product == "einsum":
            scores = torch.einsum("bhte,bhse->bhts", q, k) / math.sqrt(e)
            y = torch.einsum("bhts,bhse->bhte", scores.softmax(-1), v)
        else:
            scores = q @ k.transpose(-2, -1) * e**-0.5
            if self.causal:
                mask = torch.ones(t, t, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(mask, float("-inf"))
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence on itself."""

    def __init__(self, d: int = 6, heads: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """A GPT-2 block: pre-norm attention and MLP."""

    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads, bias=True, causal=True)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT2(nn.Module):
    """A small GPT-2: token and position embeddings, blocks, final norm, head without bias, tied or not."""

    def __init__(self, d: int = 4, heads: int = 2, hidden: int = 5, layers: int = 1, vocabulary: int = 9,
                 length: int = 4, *, tied: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads, hidden) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def gpt2_flat(d: int, h: int, ff: int, vocabulary: int, length: int, layers: int) -> int:
    """Rescalings, GL of the heads, rotations, mean shifts, null directions, dead key biases and affine gauges."""
    e, n = d // h, layers
    scales = 2 * d * n + d + 1
    heads = n * 2 * h * e * e
    rotations = (d - 1) * (d - 2) // 2
    means = vocabulary + length + n * (d + ff + 2)
    nulls = n * (3 * d + ff) + d
    biases = n * d + n * 3 * d + (d - 1)
    return scales + heads + rotations + means + nulls + biases


class ViaMean(nn.Module):
    """Tokens are embedded, normalised, averaged over positions and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.norm(self.table(idx)).mean(1))


class RMS(nn.Module):
    """RMSNorm written out."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


X = numbers(8, 4)
