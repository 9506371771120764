"""The model zoo: small modules with what a search must find in each, written down by hand.

`flat_dim` is a formula wherever there is one, so that the number says where it comes from. Widths are distinct where
two axes must not be confused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Case:
    """One architecture and its symmetries.

    Attributes:
        name: test id.
        make: builds the module.
        args: example arguments.
        flat_dim: continuous directions at a generic point.
        groups: each group with the number of symmetries that must carry it; groups not named here are not checked.
        opaque: names of the operations that cannot be seen through.
        missed: measured directions that the search is known not to find.
        seeds: points at which flat directions are counted; the smallest count is the architecture's, because units
            that are dead or always on add directions at some points (piecewise linear activations).
    """

    name: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    flat_dim: int
    groups: dict[str, int]
    opaque: tuple[str, ...] = ()
    missed: int = 0
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
        *, final: bool = True, ends: tuple[int, int] = (3, 3),
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(ends[0], d)
        self.norms = nn.ModuleList(norm(d) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(d, hidden) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(hidden, d) for _ in range(depth))
        self.act = act()
        self.final = norm(d) if final else nn.Identity()
        self.head = nn.Linear(d, ends[1])

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

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 4)
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
    """An encoder, a linear code and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.code = nn.Linear(5, 6), nn.Linear(6, 2)
        self.open, self.leave = nn.Linear(2, 6), nn.Linear(6, 5)

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
        elif self.split == "split":
            q, k, v = (p.view(b, t, self.heads, e).transpose(1, 2) for p in self.qkv(x).split(d, dim=-1))
        elif self.split == "head":  # as in GPT-NeoX: the three parts lie inside each head
            fused = self.qkv(x).view(b, t, self.heads, 3, e).transpose(1, 2)
            q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
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
        elif self.product == "baddbmm":
            q, k, v = (p.reshape(b * self.heads, t, e) for p in (q, k, v))
            mask = x.new_full((t, t), float("-inf")).triu(1)
            scores = torch.baddbmm(mask.expand(b * self.heads, t, t), q, k.transpose(1, 2), alpha=e**-0.5)
            y = torch.bmm(scores.softmax(-1), v).view(b, self.heads, t, e)
        else:
            scores = q @ k.transpose(-2, -1) * e**-0.5
            if self.causal:
                mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(mask, float("-inf"))
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class NormedAttention(nn.Module):
    """QK-norm: queries and keys are normalised along the head's dimensions, with gains that the heads share."""

    def __init__(self, norm: Callable[[int], nn.Module], d: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = norm(d // heads), norm(d // heads)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class RotaryAttention(nn.Module):
    """Attention with rotary positions: pairs (j, j + e/2) of queries and keys turn by angles."""

    def __init__(self, d: int = 4, heads: int = 2, e: int = 4, length: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, heads * e, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * e, d, bias=False)
        angle = torch.arange(length)[:, None] * 0.7 ** torch.arange(e // 2)[None]
        self.register_buffer("cos", torch.cos(torch.cat([angle, angle], 1)))
        self.register_buffer("sin", torch.sin(torch.cat([angle, angle], 1)))
        self.heads = heads

    def _turn(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * self.cos + turned * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self._turn(q), self._turn(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence on itself."""

    def __init__(self, d: int = 6, heads: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """A GPT-2 block: pre-norm attention and MLP."""

    def __init__(self, d: int, heads: int, hidden: int, split: str = "chunk") -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads, bias=True, causal=True, split=split)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT2(nn.Module):
    """A small GPT-2: token and position embeddings, blocks, final norm, head without bias, tied or not."""

    def __init__(self, d: int = 4, heads: int = 2, hidden: int = 5, layers: int = 1, vocabulary: int = 9,
                 length: int = 4, *, tied: bool = False, split: str = "chunk") -> None:  # fmt: skip
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads, hidden, split) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
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


class RMS(nn.Module):
    """RMSNorm written out."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


X = numbers(8, 4)


def _sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def _normalised(norm: Callable[[int], nn.Module], act: Callable[[], nn.Module]) -> nn.Sequential:
    return _sequential(nn.Linear(4, 6), norm(6), act(), nn.Linear(6, 5), norm(5), act(), nn.Linear(5, 3))


def _plain(d: int) -> nn.Module:
    return nn.LayerNorm(d, elementwise_affine=False)


def _mlps() -> list[Case]:
    out = []
    swaps = {"S_6": 1, "S_5": 1}
    for name, act, flat, groups in (
        ("relu", nn.ReLU, 11, {**swaps, "R+^6": 1, "R+^5": 1}),
        ("leaky", nn.LeakyReLU, 11, {**swaps, "R+^6": 1, "R+^5": 1}),
        ("tanh", nn.Tanh, 0, {**swaps, "Z_2^6": 1, "Z_2^5": 1}),
        ("gelu", nn.GELU, 0, swaps),
        ("silu", nn.SiLU, 0, swaps),
    ):
        for bias in (True, False):
            make = partial(mlp, (4, 6, 5, 3), act, bias=bias)
            out.append(Case(f"mlp-{name}{'' if bias else '-nobias'}", make, (X,), flat, groups, seeds=tuple(range(8))))
    linear = {"GL(6)": 1, "GL(5)": 1}
    parameters = 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    out += [
        Case("mlp-linear", partial(mlp, (4, 6, 5, 3), nn.Identity), (X,), parameters - (4 + 1) * 3, linear),
        Case("mlp-linear-nobias", partial(mlp, (4, 6, 5, 3), nn.Identity, bias=False), (X,),
             parameters - 6 - 5 - 3 - 4 * 3, linear),
        Case("mlp-linear-bottleneck", partial(mlp, (6, 2, 5), nn.Identity), (numbers(8, 6),), 2 * 2 + 2, {"GL(2)": 1}),
    ]  # fmt: skip
    tanh = partial(mlp, (4, 6, 3), nn.Tanh)
    shift = 6 + 1  # a multiple of the all-ones vector for every column of the last weight, and for its bias
    out += [
        Case("functional", Functional, (numbers(8, 2, 2),), 11 + 5 + 1, {"R+^6": 1, "R+^5": 1, "S_6": 1, "S_5": 1}),
        Case("softmax", lambda: _sequential(*tanh(), nn.Softmax(-1)), (X,), shift, {"Z_2^6": 1}),
        Case("log-softmax", lambda: _sequential(*tanh(), nn.LogSoftmax(-1)), (X,), shift, {"Z_2^6": 1}),
        Case("dropout-flatten", lambda: _sequential(nn.Flatten(), nn.Dropout(), *tanh()), (numbers(8, 2, 2),), 0,
             {"Z_2^6": 1, "S_6": 1}),
    ]  # fmt: skip
    return out


def _normalised_mlps() -> list[Case]:
    # each normalised layer: scale of its input (1; n with BatchNorm), gains of homogeneous units (n), dead mean
    # directions (inputs + bias; with BatchNorm the bias), as counted on paper for widths 6 and 5
    mean = (4 + 1) + (6 + 1)
    return [
        Case("ln-leaky", partial(_normalised, nn.LayerNorm, nn.LeakyReLU), (X,), 2 + 11 + mean,
             {"R+^6": 1, "R+^5": 1, "R+": 2}),
        Case("ln-gelu", partial(_normalised, nn.LayerNorm, nn.GELU), (X,), 2 + mean, {"S_6": 1, "S_5": 1, "R+": 2}),
        Case("rms-leaky", partial(_normalised, nn.RMSNorm, nn.LeakyReLU), (X,), 2 + 11, {"R+^6": 1, "R+^5": 1}),
        Case("rms-gelu", partial(_normalised, nn.RMSNorm, nn.GELU), (X,), 2, {"Z_2^6": 1, "Z_2^5": 1}),
        Case("rms-written-gelu", partial(_normalised, RMS, nn.GELU), (X,), 2, {"Z_2^6": 1, "Z_2^5": 1}),
        Case("bn-leaky", partial(_normalised, nn.BatchNorm1d, nn.LeakyReLU), (X,), 3 * 11,
             {"R+^6": 2, "R+^5": 2}),
        Case("bn-gelu", partial(_normalised, nn.BatchNorm1d, nn.GELU), (X,), 11 + 11, {"R+^6": 1, "Z_2^6": 1}),
        Case("ln-plain-gelu", partial(_normalised, _plain, nn.GELU), (X,), 2 + mean, {"S_6": 1, "S_5": 1}),
    ]  # fmt: skip


def _residuals() -> list[Case]:
    d, h, n = 4, 5, 2  # stream, hidden, depth; three norms, of which the last is read by the head (3 rows)
    x = (numbers(8, 3),)
    wide = (numbers(8, 6),)
    gains = (n + 1) * d
    rotation = d * (d - 1) // 2
    centred = (d - 1) * (d - 2) // 2
    means = (3 + 1) + n * (h + 1)  # weights and biases of the writers
    nulls = n * h + 3  # rows of the readers
    shifts = gains  # of the norms, taken back by the readers' biases
    layer = gains + 1 + centred + means + nulls + shifts
    rms = gains + 1 + rotation
    batch = gains + shifts + d + (n + 1) * d  # the stream's scale and the writers' biases are divided out
    return [
        Case("residual-ln-gelu", partial(Residual, d, h, n, nn.LayerNorm, nn.GELU), x, layer,
             {f"S_{d}": 1, f"O({d - 1})": 1, f"R+^{d}": n + 1, f"T({h})": 4}),
        Case("residual-ln-leaky", partial(Residual, d, h, n, nn.LayerNorm, nn.LeakyReLU), x, layer + n * h,
             {f"O({d - 1})": 1, f"R+^{h}": n}, seeds=tuple(range(6))),
        Case("residual-rms-gelu", partial(Residual, d, h, n, nn.RMSNorm, nn.GELU), x, rms, {f"O({d})": 1}),
        Case("residual-rms-written", partial(Residual, d, h, n, RMS, nn.GELU), x, rms, {f"O({d})": 1}),
        Case("residual-bn-gelu", partial(Residual, d, h, n, nn.BatchNorm1d, nn.GELU), x, batch, {f"R+^{d}": n + 2}),
        Case("residual-gelu", partial(Residual, d, h, n, lambda _: nn.Identity(), nn.GELU, ends=(6, 7)), wide,
             d * d + (n + 1) * d, {f"GL({d})": 1, f"T({d})": 3}),
        Case("residual-open-rms", partial(Residual, d, h, n, nn.RMSNorm, nn.GELU, final=False, ends=(6, 7)), wide,
             n * d + 1 + rotation + d, {f"O({d})": 1}),
    ]  # fmt: skip


def _by_hand() -> list[Case]:
    five, three = (numbers(8, 5),), (numbers(8, 3),)
    return [
        Case("bilinear", Bilinear, five, 2 * 2, {"GL(2)": 1}),
        # a trainable W absorbs every change of B A, not only those that leave B A alone
        Case("lora", LoRA, five, 2 * (5 + 4), {"GL(2)": 1, "T(18)": 1}),
        Case("einsum", Einsum, (X,), 0, {"(S_2)^3": 1, "(S_3)^2": 1, "Z_2^6": 1}),
        Case("dense-leaky", partial(Dense, F.leaky_relu), (X,), 5 + 6, {"S_5": 1, "S_6": 1, "R+^5": 1, "R+^6": 1}),
        Case("dense-tanh", partial(Dense, torch.tanh), (X,), 0, {"S_5": 1, "S_6": 1, "Z_2^5": 1, "Z_2^6": 1}),
        Case("swiglu", SwiGLU, (X,), 7, {"S_7": 1, "R+^7": 1, "Z_2^7": 1}),
        Case("autoencoder", Autoencoder, five, 2 * 2 + 2, {"GL(2)": 1, "T(2)": 1, "Z_2^6": 2}),
        Case("tied-autoencoder-tanh", partial(TiedAutoencoder, torch.tanh), (X,), 0, {"S_6": 1, "Z_2^6": 1}),
        Case("tied-autoencoder-leaky", partial(TiedAutoencoder, F.leaky_relu), (X,), 0, {"S_6": 1}),
        Case("tied-autoencoder-linear", partial(TiedAutoencoder, lambda x: x), (X,), 20, {"O(6)": 1}),
        Case("shared-leaky", partial(SharedLayer, F.leaky_relu), three, 4, {"S_4": 1, "R+^4": 1}),
        Case("shared-tanh", partial(SharedLayer, torch.tanh), three, 0, {"S_4": 1, "Z_2^4": 1}),
        Case("mixture-list", partial(Mixture, stacked=False), three, 3 + 1, {"S_5": 4}),
        Case("mixture-stacked", partial(Mixture, stacked=True), three, 3 + 1, {"S_4": 1, "(S_5)^4": 1}),
    ]


def _attention() -> list[Case]:
    x = (numbers(3, 4, 6),)
    d, h, e = 6, 2, 3
    heads = {f"S_{h}": 1, f"(GL({e}))^{h}": 2}
    linear = 2 * h * e * e  # queries with keys, values with outputs
    biases = d + d  # key biases are dead, value biases go to the output bias
    out = [
        Case(f"attention-{split}-{kind}{'-bias' if bias else ''}",
             partial(Attention, split=split, product=kind, bias=bias), x, linear + biases * bias, heads)
        for split in ("chunk", "select", "unbind")
        for kind in ("matmul", "sdpa", "einsum")
        for bias in (False, True)
    ]  # fmt: skip
    out += [
        Case("attention-causal", partial(Attention, causal=True), x, linear, heads),
        Case("attention-causal-sdpa", partial(Attention, causal=True, product="sdpa"), x, linear, heads),
        # per head: a complex number for every rotary pair of queries and keys, GL(4) for values and outputs
        Case("attention-rotary", RotaryAttention, (numbers(3, 4, 4),), 2 * 4 + 2 * 4 * 4,
             {"S_2": 1, "(GL(4))^2": 1, "SO(2)^4": 1}),
        Case("attention-split", partial(Attention, split="split"), x, linear, heads),
        Case("attention-head", partial(Attention, split="head", bias=True), x, linear + biases, heads),
        Case("attention-baddbmm", partial(Attention, product="baddbmm", bias=True), x, linear + biases, heads),
        # values and outputs; gains of queries against those of keys; the size of every head's queries and keys
        Case("attention-normed", partial(NormedAttention, nn.RMSNorm), x, h * e * e + e + 2 * h,
             {f"S_{h}": 1, f"(GL({e}))^{h}": 1, f"R+^{e}": 1, f"R+^{h}": 2}),
        Case("multihead", SelfAttention, x, linear + biases, heads),
        Case("multihead-nobias", partial(SelfAttention, bias=False), x, linear, heads),
    ]  # fmt: skip
    return out


def _transformers() -> list[Case]:
    d, h, ff, e = 4, 2, 5, 2
    x = (numbers(3, 5, d),)
    heads = 2 * h * e * e
    biases = d + d
    # before: gains and shifts of two norms against their readers, null directions of the readers, the common part of
    # the output bias; after: mean shifts of both writers, the first norm's shift, the null direction of its reader,
    # the joint scale of what enters the second norm
    before = heads + biases + 2 * d + 2 * d + (3 * d + ff) + 1
    after = heads + biases + (d + 1) + (ff + 1) + d + ff + 1
    out = []
    for first, relu, batch_first in product((True, False), repeat=3):
        name = f"encoder-{'pre' if first else 'post'}-{'relu' if relu else 'gelu'}{'' if batch_first else '-time'}"
        layer = partial(nn.TransformerEncoderLayer, d, h, ff, norm_first=first, batch_first=batch_first)
        groups = {f"S_{h}": 1, f"(GL({e}))^{h}": 2, f"S_{ff}": 1, **({f"R+^{ff}": 1} if relu else {})}
        flat = (before if first else after) + ff * relu
        out.append(Case(name, partial(layer, activation="relu" if relu else "gelu"), x, flat, groups))
    words, length = 9, 4
    idx = (tokens(3, length, words),)
    full = gpt2_flat(d, h, ff, words, length, 1)
    lost = d + (d - 1) * (d - 2) // 2 + words + d + (d - 1)  # gains, rotations, means, nulls and shifts of the table
    out += [
        Case("gpt2", GPT2, idx, full, {f"S_{d}": 1, f"O({d - 1})": 1, f"(GL({e}))^{h}": 2, f"S_{h}": 1}, seeds=(0, 1)),
        Case("gpt2-select", partial(GPT2, split="select"), idx, full,
             {f"S_{d}": 1, f"O({d - 1})": 1, f"(GL({e}))^{h}": 2, f"S_{h}": 1}, seeds=(0, 1)),
        Case("gpt2-select-tied", partial(GPT2, tied=True, split="select"), idx, full - lost,
             {f"S_{d}": 1, f"(GL({e}))^{h}": 2}, seeds=(0, 1)),
        Case("gpt2-deep", partial(GPT2, layers=2), idx, gpt2_flat(d, h, ff, words, length, 2),
             {f"O({d - 1})": 1, f"(GL({e}))^{h}": 4, f"S_{ff}": 2}, seeds=(0,)),
        Case("gpt2-tied", partial(GPT2, tied=True), idx, full - lost, {f"S_{d}": 1, f"(GL({e}))^{h}": 2}, seeds=(0, 1)),
    ]  # fmt: skip
    return out


CASES: tuple[Case, ...] = (
    *_mlps(), *_normalised_mlps(), *_residuals(), *_by_hand(), *_attention(), *_transformers()
)  # fmt: skip
