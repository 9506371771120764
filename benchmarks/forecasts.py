"""Forecasts against real runs: does training live below each predicted threshold and die above it, at which rank?

The classes of units of MLPs, a convolution and adapters are trained from their initial weights at a multiple of the
critical weight decay that was forecast before; ``decayed_classes`` does the same for attention and the MLP of a GPT,
one class at a time. ``units_left`` asks early in a run how many units or modes will be left, ``product_modes`` at a
fixed weight decay whether the rank after training is the number of σ(G) at λ; no prediction counts as wrong.

All seeds are in one row; ``value`` is the share of the runs that did what was
foretold. The language model reads ``tinyshakespeare.txt`` in the folder of the environment variable GAUGEFIX_DATA and
is left out without it. Parts that are done are kept in ``build/benchmarks``; delete it to start over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from benchmarks.decayed_classes import DIGITS_CLASSES, GPT_CLASSES, decayed_classes
from benchmarks.forecast_problems import (
    Adapter,
    adapter_task,
    convolution,
    copied,
    digits,
    digits_attention,
    digits_task,
    gpt_task,
    mlp_task,
    seeded,
    shakespeare,
)
from benchmarks.harness import Row, kept_rows
from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.forecast import ClassForecast, forecast, whole_network_threshold

SEEDS = (0, 1, 2)
ACTIVATIONS = ("relu", "tanh", "identity")
PROCESSES = 2


def rows() -> list[Row]:
    """All comparisons, a process for each of two parts at a time; about sixteen minutes of CPU time."""
    attention = "digits, one head of attention"
    parts: dict[str, Callable[[], list[Row]]] = {
        **{
            f"{part.__name__}_{activation}": partial(part, activation)
            for part in (hidden_layer, units_left)
            for activation in ACTIVATIONS
        },
        "deep_network": deep_network,
        "channels": channels,
        "product_modes": partial(product_modes, attention, digits_attention, steps=1000, lr=0.1, decays=(0.01,)),
        "digits_classes": partial(decayed_classes, attention, digits_attention, DIGITS_CLASSES, SEEDS, warm_up=300),
    }
    text = shakespeare()
    if text is not None:
        parts["adapters"] = partial(adapters, text)
        parts["gpt_classes"] = partial(
            decayed_classes, "GPT", partial(gpt_task, text), GPT_CLASSES, SEEDS, warm_up=150
        )  # fmt: skip
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        jobs = [pool.submit(kept_rows, "forecasts", *part) for part in reversed(parts.items())]  # the longest first
        return [row for job in reversed(jobs) for row in job.result()]


# digits: one hidden layer


def hidden_layer(activation: str) -> list[Row]:
    """64-32-10: the layer lives just below its λ_c and dies just above it."""
    alive: dict[float, list[int]] = {0.95: [], 1.05: []}
    limits = []
    for seed in SEEDS:
        task = mlp_task((64, 32, 10), activation, seed)
        limits.append(_forecast(task)[0].critical_weight_decay)
        for factor, counts in alive.items():
            counts.append(_train(task, factor * limits[-1], steps=1500, lr=1.0).alive)
    return _around(f"digits 64-32-10 {activation}", "λ_c", alive, f"λ_c = {_mean(limits)}")


def units_left(activation: str) -> list[Row]:
    """64-32-10: the units, or modes of the linear layer, that a forecast after 300 steps says will be left."""
    found = []
    for factor in (0.95, 0.5, 0.2):
        pairs = []
        for seed in SEEDS:
            task = mlp_task((64, 32, 10), activation, seed)
            decay = factor * _forecast(task)[0].critical_weight_decay
            early = _train(task, decay, steps=300, lr=1.0)
            late = _train(early.task, decay, steps=2700, lr=1.0).classes[0]
            pairs.append((early.classes[0].survivors, late.alive if late.rank is None else late.rank))
        what = "rank" if activation == "identity" else "units"
        note = f"{what} predicted / observed {', '.join(f'{p} / {o}' for p, o in pairs)}"
        name = f"digits 64-32-10 {activation}, {factor} λ_c: {what} left, foretold at a tenth of the run"
        found.append(_row(name, [p == o for p, o in pairs], note))
    return found


def deep_network() -> list[Row]:
    """64-64-64-10 dies at a jump far below the threshold of each layer."""
    alive: dict[float, list[int]] = {0.9: [], 1.1: []}
    jumps, layers = [], []
    for seed in SEEDS:
        task = mlp_task((64, 64, 64, 10), "relu", seed)
        symmetries = find_symmetries(task, verify=False)
        jump = whole_network_threshold(dataclasses.replace(task, weight_decay=0.02), symmetries, fresh=True)
        jumps.append(jump.lambda_c)
        layers.append(min(c.critical_weight_decay for c in forecast(task, symmetries, settle_steps=0).classes))
        for factor, counts in alive.items():
            counts.append(_train(task, factor * jump.lambda_c, steps=1500, lr=0.2).alive)
    note = f"jump at λ = {_mean(jumps)}; smallest λ_c of a layer {_mean(layers)}"
    return _around("digits 64-64-64-10 relu", "of the jump", alive, note)


def channels() -> list[Row]:
    """A convolution with ReLU and global pooling before the output."""
    alive: dict[float, list[int]] = {0.9: [], 1.1: []}
    limits = []
    x, y = digits()
    data = (x.reshape(-1, 1, 8, 8), y)
    for seed in SEEDS:
        task = digits_task(seeded(convolution, seed), data, lr=0.5)
        limits.append(_forecast(task)[0].critical_weight_decay)
        for factor, counts in alive.items():
            counts.append(_train(task, factor * limits[-1], steps=800, lr=0.2, momentum=0.8).alive)
    return _around("digits, 8 channels relu", "λ_c", alive, f"λ_c = {_mean(limits)}")


# product classes: ranks


def product_modes(
    name: str, make: Callable[[int], Task], *, steps: int, lr: float, decays: Sequence[float]
) -> list[Row]:
    """After training: is the rank of every class of modes the number of σ(G) at λ?"""
    out = []
    for decay in decays:
        predicted: dict[str, list[tuple[int | None, int | None, float]]] = {}
        for seed in SEEDS:
            task = dataclasses.replace(make(seed), weight_decay=decay, lr=lr)
            for c in _train(task, decay, steps=steps, lr=lr, momentum=0.9).classes:
                if c.rank is not None and c.name in {"q", "v"}:
                    predicted.setdefault(c.name, []).append((c.predicted_rank, c.rank, c.residual))
        for cls, triples in predicted.items():
            good = [p == r for p, r, _ in triples]
            shown = ", ".join(f"{p} / {r}" for p, r, _ in triples)
            worst = max(residual for _, _, residual in triples)
            note = f"rank predicted / observed {shown}; residual ≤ {worst:.2g}"
            out.append(_row(f"{name}, λ = {decay:g}: rank of {cls}", good, note))
    return out


def adapters(text: Tensor) -> list[Row]:
    """Adapters of rank 8 on a frozen GPT, fine-tuned on shifted text: rank below and above the threshold."""
    out = []
    for factor in (0.4, 1.3):
        runs: list[tuple[str, bool, str]] = []
        for seed in SEEDS:
            task = adapter_task(text, seed)
            start = _forecast(_dead(task))
            limits = {c.name: c.kappa for c in start if c.rank is not None}
            decay = factor * max(limits.values())
            try:
                trained = _train(task, decay, steps=1200, lr=0.1, momentum=0.9).classes
            except MeasurementError:  # the loss is not finite
                runs += [(name, False, "diverged") for name in limits]
                continue
            for c in trained:
                if c.rank is not None:
                    lives = limits[c.name] > decay
                    good = (c.rank > 0) == lives if factor > 1 else c.predicted_rank == c.rank
                    runs.append((c.name, good, f"{c.predicted_rank} / {c.rank}"))
        for cls in dict.fromkeys(name for name, _, _ in runs):
            mine = [r for r in runs if r[0] == cls]
            note = f"rank predicted / observed {', '.join(r[2] for r in mine)}"
            out.append(_row(f"adapter, λ = {factor:g} max κ: {cls}", [r[1] for r in mine], note))
    return out


# training


@dataclasses.dataclass(frozen=True)
class Trained:
    """The task after a run, and the forecast of every class there."""

    task: Task
    classes: tuple[ClassForecast, ...]

    @property
    def alive(self) -> int:
        """Live units of the first class."""
        return self.classes[0].alive


def _train(task: Task, decay: float, *, steps: int, lr: float, momentum: float = 0.0) -> Trained:
    """Full-batch descent from the task's weights on a copy, and what is left."""
    model = copied(task.model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=lr, weight_decay=decay, momentum=momentum)
    batches = list(task.batch_iter())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.cat([task.loss(model, b) for b in batches]).mean().backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    after = dataclasses.replace(task, model=model, weight_decay=decay, lr=lr)
    return Trained(after, tuple(_forecast(after, settle=100)))


def _forecast(task: Task, settle: int = 0) -> Sequence[ClassForecast]:
    return forecast(task, find_symmetries(task, verify=False), settle_steps=settle).classes


def _dead(task: Task) -> Task:
    """The task with all adapters at zero."""
    model = copied(task.model)
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.zeros_(module.a.weight)
            nn.init.zeros_(module.b.weight)
    return dataclasses.replace(task, model=model)


# rows


def _mean(values: Sequence[float]) -> str:
    spread = max(values) - min(values)
    return f"{math.fsum(values) / len(values):.4g} ± {spread / 2:.1g}"


def _around(name: str, unit: str, alive: Mapping[float, Sequence[int]], note: str) -> list[Row]:
    """Alive below a threshold, dead above it; the numbers of live units are in the note."""
    return [
        _row(
            f"{name}: {'alive' if factor < 1 else 'dead'} at {factor} {unit}",
            [(n > 0) == (factor < 1) for n in counts],
            f"{note}; units alive {', '.join(map(str, counts))}",
        )
        for factor, counts in alive.items()
    ]


def _row(name: str, good: Sequence[bool], note: str) -> Row:
    return Row(name, sum(good) / len(good), "of runs as foretold", repeats=len(good), note=note)
