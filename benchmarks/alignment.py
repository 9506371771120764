"""Planted permutations, and other planted coordinates: how often a copy comes back, beside rebasin.

rebasin (permutation coordinate descent) is run where it is installed (`make peers`); it knows permutations alone and
changes the model it is given, so that what it does to the function is counted too.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from gaugefix import find_symmetries
from gaugefix.control import align
from gaugefix.control.state import state_of, write_state
from gaugefix.control.statistics import with_statistics

Pair = tuple[nn.Module, nn.Module, Tensor]
Tool = Callable[[nn.Module, nn.Module, Tensor], nn.Module]


class Residual(nn.Module):
    """Width 30, three blocks of 50 units, a stream that all of them share."""

    def __init__(self, d: int = 30, h: int = 50, depth: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(20, d), nn.Linear(d, 10)
        self.up = nn.ModuleList(nn.Linear(d, h) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(h, d) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.leave(x)


class Heads(nn.Module):
    """One layer of attention with four heads around a residual connection."""

    def __init__(self, d: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.leave, self.heads = nn.Linear(d, 10), heads

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        b, t, d = x.shape
        e = d // self.heads
        q, k, v = (m(x).view(b, t, self.heads, e).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) / e**0.5, -1) @ v
        return self.leave(x + self.o(y.transpose(1, 2).reshape(b, t, d)))


def rows() -> list[Row]:
    """Copies that did not come back, functions that changed, and time, for each problem and tool."""
    return [row for problem in PROBLEMS for row in _problem(*problem)]


def _problem(name: str, make: Callable[[int], Pair], trials: int, permutations_only: bool) -> Iterator[Row]:
    tools: dict[str, Tool] = {"gaugefix": lambda a, b, x: align(a, b, example_inputs=x).model}
    if permutations_only and _has_rebasin():
        tools["rebasin"] = _rebasin
    for tool, function in tools.items():
        lost, changed, seconds, note = 0, 0, 0.0, f"of {trials}"
        for seed in range(trials):
            a, b, x = make(seed)
            with torch.no_grad():
                before = b(x)
            start = time.process_time()
            try:
                found = function(a, b, x)
            except Exception as error:  # of another library: it counts as not recovered
                lost, note = lost + 1, f"of {trials}; {type(error).__name__}"
                continue
            seconds += time.process_time() - start
            with torch.no_grad():
                changed += not torch.allclose(found(x), before, atol=1e-5)
            gap = max(
                float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), found.parameters(), strict=True)
            )
            lost += gap > 1e-5
        target = 0.0 if tool == "gaugefix" else None
        yield Row(f"{name}, {tool}: copies that did not come back", lost, "", target, trials, note)
        yield Row(f"{name}, {tool}: functions that changed", changed, "", target, trials, note)
        yield Row(f"{name}, {tool}: time for one", seconds / trials, "s", None, trials)


def _has_rebasin() -> bool:
    try:
        import rebasin  # noqa: F401
    except ImportError:
        return False
    return True


def _rebasin(a: nn.Module, b: nn.Module, x: Tensor) -> nn.Module:
    import rebasin

    b = copy.deepcopy(b)  # it works in place
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        rebasin.PermutationCoordinateDescent(a, b, x).rebasin()
    return b


def _scrambled(build: Callable[[], nn.Module], x: Tensor, seed: int, groups: tuple[str, ...]) -> Pair:
    """A model and a copy to which random elements of the groups of some kinds are applied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a = build().eval()
    b, state, generator = copy.deepcopy(a), state_of(a), torch.Generator().manual_seed(seed)
    for s in find_symmetries(a, (x,), verify=False):
        if type(s).__name__ in groups:
            whole = with_statistics(s, a)
            state = whole.apply(state, whole.sample(generator))
    write_state(b, state)
    return a, b, x


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _residual_pair(seed: int) -> Pair:
    """All blocks and the stream of the residual net permuted, written out: its stream is a general linear class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a = Residual()
        b, stream = copy.deepcopy(a), torch.randperm(30)
        with torch.no_grad():
            for p in (b.enter.weight, b.enter.bias):
                p.copy_(p[stream])
            b.leave.weight.copy_(b.leave.weight[:, stream])
            for up, down in zip(b.up, b.down, strict=True):
                units = torch.randperm(50)
                up.weight.copy_(up.weight[units][:, stream])
                up.bias.copy_(up.bias[units])
                down.weight.copy_(down.weight[stream][:, units])
                down.bias.copy_(down.bias[stream])
        return a, b, torch.randn(4, 20)


def _inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


ALL = ("Permutation", "Diagonal", "Rotation")
PROBLEMS: list[tuple[str, Callable[[int], Pair], int, bool]] = [
    ("MLP 64-128-128-10, units permuted", lambda s: _scrambled(_mlp, _inputs(2, 64), s, ("Permutation",)), 5, True),
    ("residual net 30/50 x 3, stream and units permuted", _residual_pair, 10, True),
    ("attention, heads permuted", lambda s: _scrambled(Heads, _inputs(2, 5, 32), s, ("Permutation",)), 5, True),
    ("MLP, permuted and rescaled", lambda s: _scrambled(_mlp, _inputs(2, 64), s, ALL), 5, False),
    ("residual net, permuted, stream in another basis",
     lambda s: _scrambled(Residual, _inputs(4, 20), s, ALL), 10, False),
    ("attention, heads permuted and in other bases", lambda s: _scrambled(Heads, _inputs(2, 5, 32), s, ALL), 5, False),
]  # fmt: skip
