"""What watching a run costs: CPU time of a training step with and without a monitor, in turns, at the defaults."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, fresh_process
from gaugefix import Monitor, find_symmetries
from gaugefix.monitor import Schedule

PAIRS = 5
DEFAULT = Schedule()


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2, self.heads = nn.LayerNorm(d), nn.LayerNorm(d), heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream in, residual stream out."""
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.n1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class GPT(nn.Module):
    """0.8 million parameters in 4 blocks."""

    def __init__(self, d: int = 128, depth: int = 4, words: int = 128) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(words, d), nn.Sequential(*(Block(d, 4) for _ in range(depth)))
        self.head = nn.Linear(d, words)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, logits of the last token out."""
        return self.head(self.blocks(self.words(x)))[:, -1]


def cnn() -> nn.Module:
    """0.3 million parameters in 5 convolutions with batch norm."""
    layers: list[nn.Module] = []
    for a, b, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def rows() -> list[Row]:
    """Share of a step that the monitor takes, per optimizer step, at each level; memory at the defaults."""
    generator = torch.Generator().manual_seed(0)
    gpt = (torch.randint(128, (16, 64), generator=generator), torch.randint(128, (16,), generator=generator))
    image = (torch.randn(32, 3, 32, 32, generator=generator), torch.randint(10, (32,), generator=generator))
    out = []
    for name, model, batch in (("GPT, 0.8 M parameters", GPT(), gpt), ("CNN, 0.3 M parameters", cnn(), image)):
        out += _shares(name, model, *batch)
    peaks = [float(fresh_process(_MEMORY.format(step=s)).output) for s in ("pass", "monitor.step()")]
    note = "resident memory of a process at its peak, with minus without; the weights are 67 MB"
    return [*out, Row("extra memory, 16.8 M parameters in 4 layers", peaks[1] - peaks[0], "MB", note=note)]


def _shares(name: str, model: nn.Module, x: Tensor, y: Tensor) -> list[Row]:
    out = []
    symmetries = find_symmetries(model, (x[:2],), verify=False)
    for level, target in (("cheap", None), ("standard", 0.01), ("full", None)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        monitor = Monitor(model, symmetries, optimizer=optimizer, level=level)  # type: ignore[arg-type]
        share, cheap, dear = _share(model, optimizer, monitor, x, y)
        note = f"a logging step adds {cheap:.1%} of a step, a dear one {dear:.0%}"
        label = f"{name}, level {level}, every {DEFAULT.every}, dear every {DEFAULT.every * DEFAULT.dear}"
        out.append(Row(label, share, "of a step", target, PAIRS, note))
    return out


def _share(
    model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, x: Tensor, y: Tensor
) -> tuple[float, float, float]:
    """Extra CPU time per optimizer step over one step, from every kind of step taken apart, pairs in turns."""

    def gradients() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()

    def at(count: int) -> Callable[[], object]:
        def look() -> None:
            monitor._state.count = count
            monitor.step()

        return look

    period = DEFAULT.every * DEFAULT.dear
    kinds = {"dear": at(0), "logging": at(DEFAULT.every), "after": at(DEFAULT.every + 1), "silent": at(7)}
    plain: list[float] = []
    extra: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(PAIRS + 2):
        for kind, look in kinds.items():
            start = time.process_time()
            gradients()
            middle = time.process_time()
            look()
            end = time.process_time()
            optimizer.step()
            if i > 1:
                plain.append(middle - start + time.process_time() - end)
                extra[kind].append(end - middle)
    step, cost = median(plain), {kind: median(times) for kind, times in extra.items()}
    logging = DEFAULT.dear - 1
    total = cost["dear"] + logging * cost["logging"] + DEFAULT.dear * cost["after"]
    total += (period - 2 * DEFAULT.dear) * cost["silent"]
    return total / period / step, cost["logging"] / step, cost["dear"] / step


_MEMORY = """
import resource, torch
from torch import nn
from gaugefix import Monitor, find_symmetries
model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(2048, 2048, bias=False), nn.ReLU())))
monitor = Monitor(model, find_symmetries(model, (torch.zeros(2, 2048),), verify=False), every=1, dear=1)
for _ in range(2):
    model(torch.ones(2, 2048)).square().mean().backward()
    {step}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""
