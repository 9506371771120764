"""Noise against weight decay in a linear layer: an exact balance over any window of SGD, and how stationary it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, first_batches
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Task


@dataclass(frozen=True)
class LayerBalance(Record):
    """The balance of one weight matrix over a window of SGD.

    Attributes:
        name: of the parameter.
        steps: length of the window.
        residual: stationarity, ‖W_TW_Tᵀ − W_0W_0ᵀ‖/(ηT·2λ‖⟨WWᵀ⟩‖). Alignment and exponents are predictions for a
            stationary state: distrust them where it is not small. inf without weight decay.
        identity_error: relative violation of the exact identity; rounding.
        work: ⟨tr ĜWᵀ⟩/(λ⟨‖W‖²⟩), 1 at stationarity to first order in η; inf without weight decay.
    """

    name: str
    steps: int
    residual: float
    identity_error: float
    work: float


def stationarity_residual(
    task: Task, layers: Sequence[str] | None = None, *, steps: int = 200, seed: int = 0
) -> tuple[LayerBalance, ...]:
    """Run SGD on a copy and balance what noise feeds into every weight matrix against what weight decay takes out.

    With Ĝ = −∂ℓ_B/∂W, over any window of T steps and exactly,

        2λ⟨WWᵀ⟩ = ⟨ĜWᵀ + WĜᵀ⟩ + η⟨(Ĝ − λW)(Ĝ − λW)ᵀ⟩ − (W_TW_Tᵀ − W_0W_0ᵀ)/(ηT).

    The last term vanishes at stationarity.

    Args:
        task: gives model, loss, data and settings; its optimizer must be SGD without momentum.
        layers: names of `nn.Linear` modules; default all trainable ones.
        steps: T.
        seed: of the data order.

    Returns:
        One entry per layer. Cost: one gradient per step, and n³ per layer and step for n features.

    Raises:
        MeasurementError: if ``steps`` < 1, a name is no trainable `nn.Linear`, or the optimizer is not plain SGD.

    Source: arXiv 2410.03006, result 4.
    """
    plain_sgd_only(task, "The balance of a layer")
    if steps < 1:
        raise MeasurementError(f"stationarity_residual: steps must be at least 1, got {steps!r}.")
    copy = exact_copy(task)
    params = trainable(copy.model)
    known = {k: f"{k}.weight".lstrip(".") for k, m in copy.model.named_modules() if isinstance(m, nn.Linear)}
    names = [known.get(k, k) for k in (layers if layers is not None else known)]
    names = [n for n in names if n in params] if layers is None else names
    if not names or (missing := [n for n in names if n not in params]):
        wrong = missing[0] if names else "none"
        raise MeasurementError(f"stationarity_residual: no trainable nn.Linear of that name in the model: {wrong!r}.")
    sums = {n: _Window(params[n].detach()) for n in names}
    for batch in first_batches(copy, steps, seed):
        _, gradient = batch_gradient(copy, batch, params)
        for n, window in sums.items():
            window.add(params[n].detach(), -gradient[n], task.weight_decay)
        with torch.no_grad():
            for k, p in params.items():
                p.sub_(gradient[k] + task.weight_decay * p, alpha=task.lr)
    return tuple(sums[n].result(n, params[n].detach(), steps, task.lr, task.weight_decay) for n in names)


class _Window:
    """Sums of the terms of the identity."""

    def __init__(self, start: Tensor) -> None:
        self.start = start @ start.T
        self.size, self.work, self.noise = (torch.zeros_like(self.start) for _ in range(3))

    def add(self, w: Tensor, pull: Tensor, decay: float) -> None:
        change = pull - decay * w
        self.size += w @ w.T
        self.work += pull @ w.T
        self.noise += change @ change.T

    def result(self, name: str, end: Tensor, steps: int, lr: float, decay: float) -> LayerBalance:
        size, work, noise = (t / steps for t in (self.size, self.work, self.noise))
        drift = (end @ end.T - self.start) / (lr * steps)
        terms = (2 * decay * size, work + work.T, lr * noise, drift)
        scale = max(float(t.norm()) for t in terms)
        error = float((terms[0] - terms[1] - terms[2] + terms[3]).norm()) / scale if scale > 0 else 0.0
        taken = float(terms[0].norm())
        residual = float(drift.norm()) / taken if taken > 0 else math.inf
        fed = float(work.trace()) / (decay * float(size.trace())) if taken > 0 else math.inf
        return LayerBalance(name, steps, residual, error, fed)
