"""What a forecast says: one frozen record per class of units, per network and per mirror."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gaugefix.measure import Record


@dataclass(frozen=True, eq=False)
class ClassForecast(Record):
    """What training will do with one class of units (n = fibers * size).

    Attributes:
        name: of the class.
        size: number of units n.
        alive: live units, those that `gaugefix.measure.collapse_report` does not call dead.
        kappa: birth threshold κ, the growth rate of the best possible ghost.
        weight_decay: λ.
        headroom: κ/λ; nan if λ = 0.
        drives: ``(n,)`` pull d_i on every unit; nan for dead ones.
        growth: ``(n,)`` half the growth rate of log(‖w_i‖‖u_i‖) per unit of lr × steps, d_i − λ for a balanced
            homogeneous unit; nan for dead ones.
        spectrum: ``(min(d_in, d_out),)`` singular values of the signal matrix of the class, descending.
        residual: how far the live units that are not dying are from stationarity; 0 is stationary.
        verdict: "dead stays dead", "would be reborn", "saturated: more width cannot help", "wants more width",
            "not applicable" or "not stationary".
        rate: κ − λ, growth rate of the best ghost per unit of lr × steps.
        dying: live units with a drive below λ.
        critical_weight_decay: λ_c: above it the class, once wholly dead, stays dead while the rest of the network is as
            it is. With one hidden layer it is the weight decay at which training dies; with several it is an upper
            bound, because the layers weaken each other and die together, at a jump, well below it.
        predicted_rank: rank that λ leaves: of a linear class at a stationary point, or of a linear or smooth class near
            its collapse (λ > λ_c/2); None elsewhere.
        valid: whether the verdict is inside the range of the theory.
        reason: what limits it, or why there is no verdict.
    """

    name: str
    size: int
    alive: int
    kappa: float
    weight_decay: float
    headroom: float
    drives: np.ndarray
    growth: np.ndarray
    spectrum: np.ndarray
    residual: float
    verdict: str
    rate: float
    dying: tuple[int, ...]
    critical_weight_decay: float
    predicted_rank: int | None
    valid: bool
    reason: str


@dataclass(frozen=True, eq=False)
class CollapseThreshold(Record):
    """Weight decay above which a whole network with one hidden layer learns nothing.

    Attributes:
        lambda_c: critical weight decay, nan where the theory does not apply.
        singular_values: of the signal matrix at the collapsed state, descending.
        homogeneous: whether the threshold is the one of a homogeneous activation.
        rank: predicted number of live directions at the task's weight decay (linear and smooth, good near λ_c), else
            None.
        reason: why ``lambda_c`` is nan, or what it assumes.
    """

    lambda_c: float
    singular_values: np.ndarray
    homogeneous: bool
    rank: int | None
    reason: str


@dataclass(frozen=True, eq=False)
class Forecast(Record):
    """Forecast of every class of a model.

    Attributes:
        classes: one entry per class.
        weight_decay: λ.
        lr: learning rate.
        batch_size: samples per step.
        collapse: threshold of the whole network, None if it has no class of units.
        settled: full-batch steps taken on a copy before measuring, so that minibatch noise does not count as drive.
        moved: relative change of the parameters in those steps.
        note: why it was not settled as asked, or "".
    """

    classes: tuple[ClassForecast, ...]
    weight_decay: float
    lr: float
    batch_size: int
    collapse: CollapseThreshold | None
    settled: int
    moved: float
    note: str


@dataclass(frozen=True, eq=False)
class Certificate(Record):
    """Whether a wider network would do better.

    Attributes:
        kappa: largest birth threshold over the classes the certificate covers.
        weight_decay: λ.
        residual: largest residual over them.
        saturated: whether every one is stationary with κ = λ: no wider layer would lower the objective.
        binding: the class with the largest κ, "" if none is covered.
        uncovered: classes it says nothing about.
        reason: why it is not saturated, or what it assumes.
    """

    kappa: float
    weight_decay: float
    residual: float
    saturated: bool
    binding: str
    uncovered: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class MirrorForecast(Record):
    """Whether weight decay makes one mirror plane attract.

    Attributes:
        name: of the mirror.
        weight_decay: critical weight decay λ_c in PyTorch's convention, (λ/2)‖θ‖².
        gamma: the same in the convention γ‖θ‖² of arXiv 2309.16932, γ_c = λ_c/2.
        lambda_min: lowest eigenvalue of the O-block of the data-loss Hessian on the plane.
        rates: ``(k,)`` growth of log|z_i| per step of gradient descent at the task's lr and λ, slowest decay first.
        collapses: whether the plane attracts at the task's weight decay.
        distance: relative distance of the model to the plane.
        stationarity: ‖∇L + λθ‖/‖λθ‖ along the plane, 0 at the stationary point the theorem is about.
        residual: of the spectrum.
        valid: whether optimiser and stationarity are inside the theorem.
        reason: what limits it, or "".
    """

    name: str
    weight_decay: float
    gamma: float
    lambda_min: float
    rates: np.ndarray
    collapses: bool
    distance: float
    stationarity: float
    residual: float
    valid: bool
    reason: str
