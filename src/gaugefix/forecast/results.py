"""What a forecast says: one frozen record per class of units, per network and per mirror."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gaugefix.forecast.noise import NoiseLimits
from gaugefix.measure import Record


@dataclass(frozen=True, eq=False)
class ClassForecast(Record):
    """What training will do with one class of units (n = fibers * size).

    Attributes:
        name: of the class.
        kind: "hidden", "channel", "head_dim", … as in `gaugefix.symmetry.Units`.
        size: number of units n.
        alive: live units, those that `gaugefix.measure.collapse_report` does not call dead; live modes of a class
            between two linear maps whose heads or ranks are not single neurons.
        kappa: birth threshold κ, the growth rate of the best possible ghost.
        kappa_residual: of κ: of the eigenproblem, or relative gain of the last step of the ascent.
        method: how κ was found: "signal matrix", "ascent", "block" or "lanczos" (Hessian of a ghost in a widened copy),
            "dead modes" (Hessian of a dead mode), "" if it was not.
        weight_decay: λ.
        headroom: κ/λ; nan if λ = 0.
        drives: ``(n,)`` pull d_i on every unit or mode; nan for dead ones.
        growth: ``(n,)`` half the growth rate of log(‖w_i‖‖u_i‖) per unit of lr × steps, d_i − λ for a balanced
            homogeneous unit; nan for dead ones.
        spectrum: ``(modes,)`` growth rates of the modes of a ghost, the singular values of the signal matrix,
            descending; of the fiber with the largest.
        fiber_spectra: ``(fibers, modes)`` the same for every fiber (attention head); empty for classes with a kink.
        residual: how far the live units that are not dying are from stationarity; 0 is stationary.
        verdict: "dead stays dead", "would be reborn", "saturated: more width cannot help", "wants more width",
            "small units cannot grow" (units of three factors), "not applicable" or "not stationary".
        rate: κ − λ, growth rate of the best ghost per unit of lr × steps.
        relearning_steps: steps in which the best ghost grows by a factor e, 1/(lr(κ − λ)); inf if it does not grow.
        dying: live units (or modes) with a drive below λ.
        survivors: units or modes alive at the end if λ stays: the predicted rank of a class of modes, else live units
            less the dying ones; None without a forecast.
        critical_weight_decay: λ_c: above it the class, once wholly dead, stays dead while the rest of the network is as
            it is. With one hidden layer it is the weight decay at which training dies; with several it is an upper
            bound, because the layers weaken each other and die together, at a jump, well below it. It is where the zero
            state becomes stable: a smooth unit whose slope grows with its size (GELU) can live on above it.
        predicted_rank: rank that λ leaves, all fibers together: of a linear class at a stationary point, or of a linear
            or smooth class near its collapse (λ > λ_c/2); None elsewhere.
        rank: present rank of a class of modes, all fibers together; None for the others.
        noise: critical learning rate and batch size of the best ghost.
        effective_lr: where decay is a gauge: median over units of lr/‖w‖², the learning rate that their direction sees;
            nan elsewhere.
        equilibrium_rotation: there, the angle by which a direction turns per step once norm and decay are in balance,
            √(2·lr·λ); nan elsewhere.
        binding: the plane that the class is closest to falling on: its live unit or mode of the smallest drive.
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
    kind: str = "hidden"
    method: str = ""
    kappa_residual: float = np.nan
    fiber_spectra: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    rank: int | None = None
    survivors: int | None = None
    relearning_steps: float = np.nan
    noise: NoiseLimits = field(default_factory=lambda: NoiseLimits(np.nan, np.nan, np.nan, "not measured"))
    effective_lr: float = np.nan
    equilibrium_rotation: float = np.nan
    binding: str = ""


@dataclass(frozen=True, eq=False)
class CollapseThreshold(Record):
    """Weight decay above which a whole network learns nothing.

    Attributes:
        lambda_c: critical weight decay, nan where the theory does not apply.
        uncertainty: half the width of the bracket that holds ``lambda_c``; 0 for a closed form.
        order: 2 if the network fades continuously (one hidden layer), 1 if it dies at a jump (several), 0 if unknown.
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
    uncertainty: float = 0.0
    order: int = 0


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
