"""Random small architectures: a plan is drawn by any chooser (a seed or hypothesis), then built.

A plan is plain data, so a failing one prints as a reproducer and can be shrunk by leaving things out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky": F.leaky_relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}
SMOOTH = ("leaky", "leaky", "relu", "tanh", "gelu", "silu")
NORMS = (*("none", "layer", "rms") * 4, "layer-plain", "layer-gain", "rms-written", "batch", "batch", "group")


@dataclass(frozen=True)
class Block:
    """One step of the network.

    Attributes:
        kind: see `STEPS`.
        width: of the hidden layer, or of the output where the step changes it.
        act: activation.
        norm: normalisation.
        bias: of the linear layers.
        option: a variant, with a meaning for each kind.
        same: reuse the modules of an earlier step with the same shapes, if there is one.
    """

    kind: str
    width: int = 4
    act: str = "leaky"
    norm: str = "none"
    bias: bool = True
    option: int = 0
    same: bool = False


@dataclass(frozen=True)
class Plan:
    """A whole network.

    Attributes:
        source: "vector", "sequence", "tokens" or "image".
        n_in: features, words or channels of the input.
        n_out: features of the output.
        width: of the stream after the first layer (0: no first layer).
        blocks: the steps.
        final: normalisation before the last layer.
        bias: of the first and last layers.
        end: "none", "softmax" or "log_softmax".
        tied: the last layer uses the table of the embedding.
        narrow: some linear maps may be of lower rank than the axis they act on.
    """

    source: str = "vector"
    n_in: int = 6
    n_out: int = 7
    width: int = 4
    blocks: tuple[Block, ...] = ()
    final: str = "none"
    bias: bool = True
    end: str = "none"
    tied: bool = False
    narrow: bool = False


# Choosing

VECTOR_KINDS = ("dense", "dense", "dense", "residual", "residual", "concat", "gate", "repeat", "scale", "low", "post")
SEQUENCE_KINDS = ("attention", "attention", "residual", "dense", "gate", "post", "scale", "concat")
IMAGE_KINDS = ("conv", "conv", "conv-residual", "pool", "conv-concat")


def draw_plan(pick: Pick[Any]) -> Plan:
    """A plan from successive choices.

    One in ten is narrow: linear layers wider than what they read or write, where the null spaces of the weights add
    directions. The others keep every linear map at full rank from the stream's side.

    Args:
        pick: chooses one item of a sequence.

    Returns:
        The plan.
    """
    source = pick(("vector", "vector", "vector", "sequence", "tokens", "image"))
    narrow = pick((False,) * 9 + (True,))
    width = 4 if source in {"sequence", "tokens"} else pick((3, 4))
    raw = source == "vector" and pick((False, False, True))
    blocks = [
        _draw_block(pick, source, narrow, i == 0 and (raw or source == "tokens")) for i in range(pick((1, 2, 2, 3)))
    ]
    return Plan(
        source, pick((2, 3) if narrow else (7, 8)), pick((2, 3) if narrow else (10, 11)), 0 if raw else width,
        tuple(blocks), _draw_norm(pick, source), pick((True, True, False)),
        pick(("none", "none", "none", "softmax", "log_softmax")), pick((False, False, True)), narrow,
    )  # fmt: skip


def _draw_norm(pick: Pick[Any], source: str) -> str:
    norm: str = pick(NORMS)
    return "layer" if norm == "batch" and source in {"sequence", "tokens"} else norm


def _draw_block(pick: Pick[Any], source: str, narrow: bool, first: bool) -> Block:
    kind = pick({"vector": VECTOR_KINDS, "image": IMAGE_KINDS}.get(source, SEQUENCE_KINDS))
    if first and source == "tokens":
        kind = "attention"  # or the network is a table of a few words
    elif first:
        kind = "dense"
    act = pick(("identity", *SMOOTH, *SMOOTH))
    width = pick((3, 4, 5, 6))
    if not narrow:
        width = 6 if kind in {"gate", "low"} else max(width, 5)
        if kind not in {"residual", "post", "scale"} and act == "identity":
            act = "leaky"
    option = pick((0, 1, 2, 3))
    return Block(
        kind, width, act, _draw_norm(pick, source), pick((True, True, False)),
        option if narrow or kind != "low" else 1, pick((False, False, False, True)),
    )  # fmt: skip


def plans() -> st.SearchStrategy[Plan]:
    """The same plans as a hypothesis strategy."""

    @st.composite
    def make(draw: st.DrawFn) -> Plan:
        return draw_plan(lambda items: draw(st.sampled_from(items)))

    return make()


def random_plan(seed: int) -> Plan:
    """A plan from a seed."""
    return draw_plan(random.Random(seed).choice)


def random_architecture(seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module and example arguments from a seed."""
    return build(random_plan(seed))


# Building


class RMSWritten(nn.Module):
    """RMSNorm from elementary operations."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def make_norm(kind: str, d: int, *, image: bool = False) -> nn.Module:
    """A normalisation of d features; images know BatchNorm and GroupNorm only."""
    groups = 2 if d % 2 == 0 and (image or d > 4) else 1  # centring two numbers leaves one bit
    if image:
        return {"batch": nn.BatchNorm2d(d), "group": nn.GroupNorm(groups, d)}.get(kind, nn.Identity())
    return {
        "none": nn.Identity(),
        "layer": nn.LayerNorm(d),
        "layer-plain": nn.LayerNorm(d, elementwise_affine=False),
        "layer-gain": nn.LayerNorm(d, bias=False),
        "rms": nn.RMSNorm(d, eps=1e-6),
        "rms-written": RMSWritten(d),
        "batch": nn.BatchNorm1d(d),
        "group": _Rows(nn.GroupNorm(groups, d)),
    }[kind]


class _Rows(nn.Module):
    """GroupNorm on every token of a sequence."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.ndim == 2 else self.norm(x.flatten(0, 1)).view(x.shape)


class Step(nn.Module):
    """A block on features (…, d); `out` is the width it leaves."""

    def __init__(self, b: Block, d: int) -> None:
        super().__init__()
        self.b, self.out = b, d
        self.norm = make_norm(b.norm, d)
        h, bias = b.width, b.bias
        match b.kind:
            case "dense":
                self.lin, self.out = nn.Linear(d, h, bias=bias), h
                self.norm = make_norm(b.norm, h)
            case "residual" | "post":
                self.up, self.down = nn.Linear(d, h, bias=bias), nn.Linear(h, d, bias=bias and b.option != 3)
            case "concat":
                self.lin, self.out = nn.Linear(d, h, bias=bias), d + h
            case "gate":
                self.gate, self.up = nn.Linear(d, h, bias=bias), nn.Linear(d, h, bias=bias)
                self.down = nn.Linear(h, d, bias=bias)
            case "repeat":
                self.lin = nn.Linear(d, d, bias=bias)
            case "scale":
                self.gain = nn.Parameter(torch.ones(d))
                self.shift = nn.Parameter(torch.zeros(d)) if bias else None
            case "low":
                rank = d if b.option else 2
                self.first, self.second = nn.Parameter(torch.randn(d, rank)), nn.Parameter(torch.randn(rank, h))
                self.out = h
                self.norm = make_norm(b.norm, h)
            case "attention":
                self.qkv, self.proj = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias)
            case _:
                raise ValueError(b.kind)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.b.kind}")(x)

    def _act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.b.act](x)

    def _dense(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        return self.norm(self._act(y)) if self.b.option == 1 else self._act(self.norm(y))

    def _residual(self, x: Tensor) -> Tensor:
        return x + self.down(self._act(self.up(self.norm(x))))

    def _post(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self._act(self.up(x))))

    def _concat(self, x: Tensor) -> Tensor:
        return torch.cat([x, self._act(self.lin(self.norm(x)))], dim=-1)

    def _gate(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = self.down(self._act(self.gate(y)) * self.up(y))
        return x + y if self.b.option % 2 else y

    def _repeat(self, x: Tensor) -> Tensor:
        x = self._act(x)
        for _ in range(2):
            y = self._act(self.lin(x))
            x = x + y if self.b.option == 1 else y
        return self.norm(x)

    def _scale(self, x: Tensor) -> Tensor:
        y = self.norm(x) * self.gain
        y = y if self.shift is None else y + self.shift
        return self._act(y)

    def _low(self, x: Tensor) -> Tensor:
        return self._act(self.norm(x @ self.first @ self.second))

    def _attention(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        heads, e = 2, d // 2
        y = self.qkv(self.norm(x))
        if self.b.option == 0:
            q, k, v = (p.view(b, t, heads, e).transpose(1, 2) for p in y.chunk(3, dim=-1))
        elif self.b.option == 1:
            q, k, v = y.view(b, t, 3, heads, e).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            fused = y.view(b, t, 3, heads, e).permute(2, 0, 3, 1, 4)
            q, k, v = fused[0], fused[1], fused[2]
        if self.b.option == 3:
            y = (q @ k.transpose(-1, -2) / e**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + y if self.b.width % 2 else y


class ImageStep(nn.Module):
    """A block on images (n, c, h, w)."""

    def __init__(self, b: Block, c: int) -> None:
        super().__init__()
        self.b, self.out = b, c
        h = b.width
        groups = 2 if b.option == 3 and c % 2 == 0 and h % 2 == 0 else 1
        match b.kind:
            case "conv":
                self.conv = nn.Conv2d(c, h, 1 + 2 * (b.option == 1), padding=int(b.option == 1), groups=groups,
                                      bias=b.bias)  # fmt: skip
                self.norm, self.out = make_norm(b.norm, h, image=True), h
            case "conv-residual":
                self.conv, self.second = nn.Conv2d(c, h, 1, bias=b.bias), nn.Conv2d(h, c, 1, bias=b.bias)
                self.norm, self.norm2 = make_norm(b.norm, h, image=True), make_norm(b.norm, c, image=True)
            case "conv-concat":
                self.conv, self.out = nn.Conv2d(c, h, 1, bias=b.bias), c + h
                self.norm = make_norm(b.norm, h, image=True)
            case "pool":
                pass
            case _:
                raise ValueError(b.kind)

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.b.act]
        match self.b.kind:
            case "conv":
                return act(self.norm(self.conv(x)))
            case "conv-residual":
                y = x + self.norm2(self.second(act(self.norm(self.conv(x)))))
                return act(y) if self.b.option % 2 else y
            case "conv-concat":
                return torch.cat([x, act(self.norm(self.conv(x)))], dim=1)
            case _:
                return F.max_pool2d(x, 2, 1) if self.b.option % 2 else F.avg_pool2d(x, 2, 1)


class Net(nn.Module):
    """A plan as a module."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        d = plan.width or plan.n_in
        image = plan.source == "image"
        self.enter: nn.Module = nn.Identity()
        if plan.source == "tokens":
            self.enter = nn.Embedding(plan.n_in, d)
            self.positions = nn.Parameter(torch.randn(LENGTH, d)) if plan.bias else None
        elif image:
            self.enter = nn.Conv2d(plan.n_in, d, 1, bias=plan.bias)
        elif plan.width:
            self.enter = nn.Linear(plan.n_in, d, bias=plan.bias)
        steps: list[nn.Module] = []
        made: dict[tuple[Block, int], nn.Module] = {}
        for b in plan.blocks:
            if b.kind == "attention" and d % 2:
                b = replace(b, kind="residual")
            key = (replace(b, same=False), d)
            step = made[key] if b.same and key in made else (ImageStep if image else Step)(b, d)
            made[key] = step
            steps.append(step)
            d = step.out
        self.steps = nn.ModuleList(steps)
        self.final = nn.Identity() if image else make_norm(plan.final, d)
        n_out = plan.n_out
        self.head = nn.Linear(d, plan.n_in if self._ties(d) else n_out, bias=plan.bias)
        if self._ties(d):
            assert isinstance(self.enter, nn.Embedding)
            self.head.weight = self.enter.weight

    def _ties(self, d: int) -> bool:
        return self.plan.tied and self.plan.source == "tokens" and d == self.plan.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.plan.source == "tokens" and self.positions is not None:
            x = x + self.positions
        for step in self.steps:
            x = step(x)
        if self.plan.source == "image":
            x = x.mean((2, 3))
        x = self.head(self.final(x))
        if self.plan.end == "none":
            return x
        return x.softmax(-1) if self.plan.end == "softmax" else x.log_softmax(-1)


LENGTH = 4


def build(plan: Plan) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module of a plan and example arguments.

    Args:
        plan: what to build.

    Returns:
        The module (seeded initial values) and its arguments.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(plan)
    match plan.source:
        case "tokens":
            x = torch.arange(6 * LENGTH).reshape(6, LENGTH) * (plan.n_in - 1) // (6 * LENGTH - 1)
        case "sequence":
            x = torch.randn(3, LENGTH, plan.n_in, generator=generator)
        case "image":
            x = torch.randn(4, plan.n_in, 4, 4, generator=generator)
        case _:
            x = torch.randn(8, plan.n_in, generator=generator)
    return model, (x,)


# Shrinking


def simpler(plan: Plan) -> list[Plan]:
    """Plans with one thing left out or made plain."""
    kept = int(plan.source == "tokens")  # the first attention, without which there are few distinct inputs
    out = [replace(plan, blocks=plan.blocks[:i] + plan.blocks[i + 1 :]) for i in range(kept, len(plan.blocks))]
    for name, plain in (("final", "none"), ("end", "none"), ("tied", False), ("bias", False)):
        if getattr(plan, name) != plain:
            out.append(replace(plan, **{name: plain}))
    for i, b in enumerate(plan.blocks):
        for name, plain in (("norm", "none"), ("same", False), ("bias", False), ("option", 0), ("act", "tanh")):
            if getattr(b, name) != plain and b.act != "identity":
                out.append(replace(plan, blocks=(*plan.blocks[:i], replace(b, **{name: plain}), *plan.blocks[i + 1 :])))
    return out


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The simplest plan on the way down that still fails."""
    while True:
        smaller = next((p for p in simpler(plan) if _safe(fails, p)), None)
        if smaller is None:
            return plan
        plan = smaller


def _safe(fails: Callable[[Plan], bool], plan: Plan) -> bool:
    """A plan that cannot be built is not simpler."""
    try:
        build(plan)
    except (ValueError, RuntimeError):
        return False
    return fails(plan)
