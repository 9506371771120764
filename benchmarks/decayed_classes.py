"""One class of units decayed alone: it should live at 0.8 of its predicted λ_c and die at 1.25 of it.

Three settings, because λ_c is of a class "with the rest of the network as it is":

* *without it*: the rest learnt with the class at zero and stays fixed; the class starts at a twentieth of its initial
  weights, so below the threshold it must be born;
* *with it*: everything learnt together, then the rest stays fixed; the class starts from its trained weights, so above
  the threshold it must die from a large size;
* *moving*: as the first, but from the initial weights and with the rest trained along, undecayed. This is outside of
  what λ_c says; the row shows what that costs.

A class lives if a unit or mode is alive and not fading, and is dead if none is alive. Each step is on all the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.forecast_problems import copied
from benchmarks.harness import Row
from gaugefix import Task, find_symmetries
from gaugefix.forecast import ClassForecast, forecast
from gaugefix.symmetry import Symmetries

GPT_CLASSES = {
    "query-key": ("attention.q.weight", "attention.k.weight"),
    "value-output": ("attention.v.weight", "attention.out.weight"),
    "MLP": ("up.weight", "up.bias", "down.weight"),
}
DIGITS_CLASSES = {"query-key": ("q.weight", "k.weight"), "value-output": ("v.weight", "out.weight")}
FACTORS = (0.8, 1.25)
SETTINGS = ("without it", "with it", "moving")
STEPS = 300


@dataclasses.dataclass(frozen=True)
class Run:
    """Prediction and outcome of one run.

    Attributes:
        limit: λ_c.
        foretold: modes above λ at the collapsed state.
        end: forecast of the class after the run, None if it diverged.
    """

    limit: float
    foretold: int
    end: ClassForecast | None

    @property
    def lives(self) -> bool:
        """Whether a unit or mode is alive and not fading."""
        return self.end is not None and self.end.alive > len(self.end.dying)

    @property
    def dead(self) -> bool:
        """Whether none is alive."""
        return self.end is not None and self.end.alive == 0

    @property
    def outcome(self) -> str:
        """For the note."""
        if self.end is None:
            return "diverged"
        fading = f", {len(self.end.dying)} of them fading" if self.end.dying else ""
        rest = "" if self.dead else f", residual {self.end.residual:.1g}"
        return f"{self.end.alive} alive{fading}{rest}, κ/λ {self.end.headroom:.2f}"


def decayed_classes(
    name: str, make: Callable[[int], Task], classes: Mapping[str, Sequence[str]], seeds: Sequence[int], *, warm_up: int
) -> list[Row]:
    """Rows of every class and setting of a problem.

    Args:
        name: of the problem.
        make: the task at its initial weights, by seed.
        classes: parameters of each class.
        seeds: one run each.
        warm_up: steps of Adam in which the rest of the network learns.

    Returns:
        The rows.
    """
    found: list[Row] = []
    runs: dict[tuple[str, str], list[tuple[Run, ...]]] = {}
    for seed in seeds:
        start = make(seed)
        together = _learn(start, (), warm_up)
        for cls, names in classes.items():
            apart = _learn(start, names, warm_up)
            for setting in SETTINGS:
                rest = together if setting == "with it" else apart
                weights = {k: p.detach() for k, p in (rest if setting == "with it" else start).model.named_parameters()}
                size = 0.05 if setting == "without it" else 1.0
                initial = {k: size * weights[k] for k in names}
                runs.setdefault((cls, setting), []).append(
                    tuple(_runs(rest, names, initial, moving=setting == "moving"))
                )
    for (cls, setting), pairs in runs.items():
        found += _rows(f"{name}: {cls}, rest {_WORDS[setting]}", pairs)
    return found


_WORDS = {
    "without it": "learnt without it and fixed",
    "with it": "learnt with it and fixed",
    "moving": "learning along undecayed",
}


def _runs(rest: Task, names: Sequence[str], initial: Mapping[str, torch.Tensor], *, moving: bool) -> Iterator[Run]:
    """Below and above, from the same start."""
    dead = _only(rest, {k: torch.zeros_like(p) for k, p in initial.items()})
    symmetries = find_symmetries(dead, verify=False)
    before = _forecast(dead, symmetries, names, 0.01)
    limit = before.critical_weight_decay
    modes = before.fiber_spectra[np.isfinite(before.fiber_spectra)]
    for factor in FACTORS:
        decay = factor * limit
        task = _only(rest, initial)
        # the class alone feels forces of the order λ_c, so this step is small for it; the rest sets its own limit
        lr = (0.03 if before.rank is not None else 0.015) / limit
        _train(task, names, decay, min(lr, 0.05) if moving else lr, moving=moving)
        finite = all(bool(torch.isfinite(p).all()) for p in task.model.parameters())
        end = _forecast(task, symmetries, names, decay) if finite else None
        yield Run(limit, int((modes > decay).sum()), end)


def _rows(name: str, pairs: Sequence[tuple[Run, ...]]) -> list[Row]:
    below, above = ([pair[i] for pair in pairs] for i in range(2))
    limits = [run.limit for run in below]
    note = f"λ_c = {', '.join(f'{x:.3g}' for x in limits)}; "
    out = [
        _row(f"{name}: lives at {FACTORS[0]} λ_c", [r.lives for r in below], note + _outcomes(below)),
        _row(f"{name}: dead at {FACTORS[1]} λ_c", [r.dead for r in above], note + _outcomes(above)),
    ]
    ends = [(r.foretold, r.end) for r in below if r.end is not None]
    if any(end.rank is None for _, end in ends):
        return out
    first = [(foretold, end.rank) for foretold, end in ends]
    last = [(end.predicted_rank, end.rank) for _, end in ends]
    for pairs_of_ranks, what in ((first, "modes above λ at the dead state"), (last, "σ(G) at λ after the run")):
        shown = ", ".join(f"{p} / {r}" for p, r in pairs_of_ranks)
        good = [p == r for p, r in pairs_of_ranks] + [False] * (len(below) - len(ends))
        out.append(_row(f"{name}: rank at {FACTORS[0]} λ_c = {what}", good, f"predicted / observed {shown}"))
    return out


def _outcomes(runs: Sequence[Run]) -> str:
    return "; ".join(run.outcome for run in runs)


def _row(name: str, good: Sequence[bool], note: str) -> Row:
    return Row(name, math.fsum(good) / len(good), "of runs as foretold", repeats=len(good), note=note)


def _learn(task: Task, without: Sequence[str], steps: int) -> Task:
    """Adam without decay on a copy, with some parameters held at zero."""
    model = copied(task.model)
    for k, p in model.named_parameters():
        if k in without:
            nn.init.zeros_(p)
            p.requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    return _steps(dataclasses.replace(task, model=model), optimizer, steps)


def _only(task: Task, weights: Mapping[str, torch.Tensor]) -> Task:
    """A copy with the weights of a class set, and nothing else trainable."""
    model = copied(task.model)
    for k, p in model.named_parameters():
        p.requires_grad_(requires_grad=k in weights)
        if k in weights:
            p.detach().copy_(weights[k])
    return dataclasses.replace(task, model=model)


def _train(task: Task, names: Sequence[str], decay: float, lr: float, *, moving: bool) -> None:
    """Gradient descent with momentum, in place; only the class is decayed."""
    params = dict(task.model.named_parameters())
    groups: list[dict[str, object]] = [{"params": [params[k] for k in names], "weight_decay": decay}]
    if moving:
        for p in params.values():
            p.requires_grad_(requires_grad=True)
        groups.append({"params": [p for k, p in params.items() if k not in names], "weight_decay": 0.0})
    _steps(task, torch.optim.SGD(groups, lr=lr, momentum=0.9), STEPS)
    for k, p in params.items():
        p.requires_grad_(requires_grad=k in names)


def _steps(task: Task, optimizer: torch.optim.Optimizer, steps: int) -> Task:
    batches = list(task.batch_iter())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.cat([task.loss(task.model, b) for b in batches]).mean().backward()
        optimizer.step()
    task.model.zero_grad(set_to_none=True)
    return task


def _forecast(task: Task, symmetries: Symmetries, names: Sequence[str], decay: float) -> ClassForecast:
    """Of the one class that is not frozen."""
    others = [k for k, _ in task.model.named_parameters() if k not in names]
    here = dataclasses.replace(task, weight_decay=decay)
    found = forecast(here, symmetries, settle_steps=0, undecayed=others).classes
    (only,) = (c for c in found if c.verdict != "not applicable")
    return only
