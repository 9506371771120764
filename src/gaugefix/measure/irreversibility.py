"""How irreversible training is: one potential φ = (η/4) E_B‖∇ℓ_B‖² by four independent routes, and the echo test.

The step is Φ_η(θ) = θ − ηg with g = ∇ℓ_B(θ) of the loss with its weight decay. To leading order in η all routes measure
the same φ: two as a number, two through the force −∇φ = −(η/2) E_B[H_B g_B] (arXiv 2605.21933).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, first_batches, gradient_and_product, squared_norm
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Batch, Task

Route = Literal["gradient", "substep", "reversal", "entropy"]

_ROUTES = ("gradient", "substep", "reversal", "entropy")
_AGREE = 0.25

Point = dict[str, Tensor]


@dataclass(frozen=True)
class Irreversibility(Record):
    """φ by one route.

    Attributes:
        route: "gradient" (φ_DE, from the norm of the gradients), "substep" (φ_TR, one step against many small ones),
            "reversal" (φ_TA, a step and its time reversal), "entropy" (φ_ST, entropy produced by smeared steps).
        phi: (η/4) E‖g‖² as this route measures it; nan where it gives the force alone.
        force_norm: ‖E ∇φ‖ as this route measures it; nan where it gives the number alone.
        predicted: φ or ‖E ∇φ‖ by the leading order, whichever the route is held against.
        relative_error: of the number, or of the vector of forces; proportional to η.
        stderr: standard error of ``phi`` over batches; nan for forces.
        n_batches: how many were used.
        valid: whether the relative error is at most 0.25, so that the leading order means something.
        reason: why not, or "".
    """

    route: Route
    phi: float
    force_norm: float
    predicted: float
    relative_error: float
    stderr: float
    n_batches: int
    valid: bool
    reason: str


@dataclass(frozen=True)
class EchoResult(Record):
    """SGD run forwards and then backwards over the same batches.

    Attributes:
        steps: N.
        lr: η.
        echo_norm: ‖θ_echo − θ_0‖.
        predicted_norm: ‖η² Σ H_t g_t‖, that is 2η‖Σ ∇φ‖ along the run.
        rel_error: of the vector, ‖echo − predicted‖/‖predicted‖.
        order: log₂ of the ratio of the errors at η and η/2; 1 where the expansion holds.
        valid: whether the error is at most 0.25 and the order between 0.5 and 1.5.
        reason: why not, or "".
    """

    steps: int
    lr: float
    echo_norm: float
    predicted_norm: float
    rel_error: float
    order: float
    valid: bool
    reason: str


def irreversibility(
    task: Task,
    route: Route = "gradient",
    *,
    n_batches: int = 16,
    substeps: int = 64,
    draws: int = 64,
    seed: int = 0,
) -> Irreversibility:
    """The irreversibility φ = (η/4) E_B‖∇ℓ_B‖² of a point, by one of four routes.

    - "gradient": the norms themselves, the potential of backward error analysis.
    - "substep": ∇φ = −(Φ_η − Φ_{η/n}ⁿ)/(η(1 − 1/n)), one step against n small ones with the same batch.
    - "reversal": ∇φ = −(Φ_{−η}(Φ_η(θ)) − θ)/(2η), a step and the reversed update with the same batch.
    - "entropy": φ = (s²/8η) E log p(θ'|θ)/p(θ|θ') with p(θ'|θ) = N(Φ_η(θ), s²), s = 1e-4·η‖g‖/√P.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        route: see above.
        n_batches: batches in the expectation.
        substeps: n of the second route.
        draws: Gaussian draws per batch of the last route, in pairs of opposite sign.
        seed: of the data order and the draws.

    Returns:
        The measurement, held against the leading order. Cost per batch: 1, n + 3, 5 or ``draws`` gradients.

    Raises:
        MeasurementError: if the route is unknown, the optimizer is not plain SGD, or the loss is not deterministic.

    Source: arXiv 2605.21933.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0], lambda: x.split(1),
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> round(irreversibility(task).phi, 9)  # 0.1/4·mean(1, 4)
        0.0625
    """
    if route not in _ROUTES:
        raise MeasurementError(f"irreversibility: route must be one of {', '.join(_ROUTES)}, got {route!r}.")
    steps = _Steps(task)
    batches = first_batches(steps.task, n_batches, seed)
    steps.check(batches[0])
    start = steps.point()
    squares = [squared_norm(steps.gradient(b)) for b in batches]
    phi = [task.lr / 4 * s for s in squares]
    if route in {"gradient", "entropy"}:
        rng = torch.Generator().manual_seed(seed)
        found = phi if route == "gradient" else [_entropy(steps, b, start, draws, rng) for b in batches]
        value, expected = float(np.mean(found)), float(np.mean(phi))
        stderr = float(np.std(found, ddof=1)) / math.sqrt(n_batches) if n_batches > 1 else math.nan
        error = abs(value - expected) / expected if expected > 0 else 0.0
        return _result(route, value, math.nan, expected, error, stderr, n_batches)
    forces, predicted = _zeros(start), _zeros(start)
    for batch in batches:
        _, product = gradient_and_product(steps.task, batch, steps.params, weight_decay=task.weight_decay)
        predicted = _plus(predicted, product, task.lr / 2 / n_batches)
        forces = _plus(forces, _force(steps, batch, start, route, substeps), 1 / n_batches)
    scale = _norm(predicted)
    error = _norm(_plus(forces, predicted, -1.0)) / scale if scale > 0 else 0.0
    return _result(route, math.nan, _norm(forces), scale, error, math.nan, n_batches)


def echo_test(task: Task, *, steps: int = 20, lr: float | None = None, seed: int = 0) -> EchoResult:
    """Run N steps of SGD, then replay the batches in reverse with learning rate −η: how far from the start?

    A reversible dynamics would come back. To leading order SGD misses by −2η Σ ∇φ_t = −η² Σ H_t g_t. The test is run
    at η and η/2, and the ratio of its errors tells whether the expansion holds: kinks of ReLU, ηλ_max near 1 or a long
    run break it, and ``valid`` says so.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        steps: N.
        lr: η instead of the task's.
        seed: of the data order.

    Returns:
        The echo. Cost: 10 N gradients.

    Raises:
        MeasurementError: if ``steps`` < 1 or ``lr`` ≤ 0, the optimizer is not plain SGD, or the loss is not
            deterministic.

    Source: arXiv 2605.21933.
    """
    rate = task.lr if lr is None else lr
    if steps < 1 or not rate > 0:
        raise MeasurementError(f"echo_test: steps must be >= 1 and lr > 0, got {steps!r} and {rate!r}.")
    run = _Steps(task)
    batches = first_batches(run.task, steps, seed)
    run.check(batches[0])
    echo, predicted, error = _echo(run, batches, rate)
    *_, finer = _echo(run, batches, rate / 2)
    order = math.log2(error / finer) if error > 0 and finer > 0 and math.isfinite(error) else math.nan
    reason = ""
    if predicted == 0:
        reason = "no irreversibility is predicted: the gradient is zero or the loss is linear along the run"
    elif not error <= _AGREE:
        reason = f"the leading order is off by {error:.2g}: lower lr or steps, or the activation has kinks"
    elif not 0.5 <= order <= 1.5 and error > 1e-6:
        reason = f"the error falls with order {order:.2g} in lr, not 1: kinks or rounding"
    return EchoResult(steps, rate, echo, predicted, error, order, not reason, reason)


class _Steps:
    """Gradient steps of a copy of the model, forwards and backwards, at points that are given."""

    def __init__(self, task: Task) -> None:
        plain_sgd_only(task, "Irreversibility")
        self.task = exact_copy(task)
        self.params = trainable(self.task.model)
        self.decay = task.weight_decay

    def point(self) -> Point:
        return {k: p.detach().clone() for k, p in self.params.items()}

    def go(self, point: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(point[k])

    def gradient(self, batch: Batch) -> Point:
        """Of the penalised loss at the present point."""
        _, found = batch_gradient(self.task, batch, self.params)
        return {k: g + self.decay * self.params[k].detach() for k, g in found.items()}

    def step(self, batch: Batch, lr: float) -> None:
        found = self.gradient(batch)
        with torch.no_grad():
            for k, p in self.params.items():
                p.sub_(found[k], alpha=lr)

    def check(self, batch: Batch) -> None:
        """Refuse a loss that differs from itself."""
        with torch.no_grad():
            first, second = (self.task.loss(self.task.model, batch) for _ in range(2))
        if not torch.equal(first, second):
            raise MeasurementError(
                f"Task {self.task.name!r}: two evaluations of the loss on one batch differ by up to "
                f"{float((first - second).abs().max()):.1e}. Fix the random state inside the loss."
            )


def _force(steps: _Steps, batch: Batch, start: Point, route: str, n: int) -> Point:
    lr = steps.task.lr
    if route == "reversal":
        steps.step(batch, lr)
        steps.step(batch, -lr)
        moved = _plus(steps.point(), start, -1.0)
        steps.go(start)
        return {k: -m / (2 * lr) for k, m in moved.items()}
    steps.step(batch, lr)
    once = steps.point()
    steps.go(start)
    for _ in range(n):
        steps.step(batch, lr / n)
    moved = _plus(once, steps.point(), -1.0)
    steps.go(start)
    return {k: -m / (lr * (1 - 1 / n)) for k, m in moved.items()}


def _entropy(steps: _Steps, batch: Batch, start: Point, draws: int, rng: torch.Generator) -> float:
    """(s²/8η) E σ with σ = (‖θ − θ' + ηg(θ')‖² − ‖θ' − θ + ηg(θ)‖²)/2s²."""
    lr, g = steps.task.lr, steps.gradient(batch)
    size = _norm(g)
    if size == 0:
        return 0.0
    total = sum(p.numel() for p in start.values())
    s = 1e-4 * lr * size / math.sqrt(total)
    found = []
    for _ in range(max(1, draws // 2)):
        noise = {k: torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p) for k, p in start.items()}
        for sign in (1, -1):
            after = {k: p - lr * g[k] + sign * s * noise[k] for k, p in start.items()}
            steps.go(after)
            back = steps.gradient(batch)
            there = squared_norm({k: after[k] - p + lr * g[k] for k, p in start.items()})
            here = squared_norm({k: p - after[k] + lr * back[k] for k, p in start.items()})
            found.append((here - there) / (16 * lr))
    steps.go(start)
    return float(np.mean(found))


def _echo(run: _Steps, batches: list[Batch], lr: float) -> tuple[float, float, float]:
    """Norm of the echo, of its prediction, relative error of the vector."""
    start = run.point()
    predicted = _zeros(start)
    for batch in batches:
        _, product = gradient_and_product(run.task, batch, run.params, weight_decay=run.decay)
        predicted = _plus(predicted, product, -(lr**2))
        run.step(batch, lr)
    for batch in reversed(batches):
        run.step(batch, -lr)
    echo = _plus(run.point(), start, -1.0)
    run.go(start)
    scale = _norm(predicted)
    error = _norm(_plus(echo, predicted, -1.0)) / scale if scale > 0 else math.nan
    return _norm(echo), scale, error


def _result(
    route: Route, phi: float, force: float, predicted: float, error: float, stderr: float, n: int
) -> Irreversibility:
    reason = "" if error <= _AGREE else f"the leading order is off by {error:.2g}: lr·curvature is not small"
    return Irreversibility(route, phi, force, predicted, error, stderr, n, not reason, reason)


def _zeros(point: Mapping[str, Tensor]) -> Point:
    return {k: torch.zeros_like(p) for k, p in point.items()}


def _plus(a: Mapping[str, Tensor], b: Mapping[str, Tensor], factor: float) -> Point:
    return {k: v + factor * b[k] for k, v in a.items()}


def _norm(point: Mapping[str, Tensor]) -> float:
    return math.sqrt(squared_norm(point))
