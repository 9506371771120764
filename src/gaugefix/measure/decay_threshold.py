"""The weight decay at which SGD with its noise starts to fall onto a plane, by common random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gaugefix.errors import MeasurementError
from gaugefix.measure.records import Record
from gaugefix.measure.stability import MirrorExponent, Mode, lyapunov_exponent
from gaugefix.measure.tangent_path import Directions, as_mirror
from gaugefix.task import Task

_MAX_EVALUATIONS = 24


@dataclass(frozen=True)
class DecayThreshold(Record):
    """Weight decay at which the exponent of a plane is zero.

    Attributes:
        name: of the mirror.
        mode: "path" or "frozen".
        value: λ_c in PyTorch's convention; 0 if the plane attracts without any.
        stderr: standard error, that of the exponent over its slope in λ.
        residual: Λ at ``value``.
        evaluations: runs that were made.
        converged: whether the root is known to the tolerance that was asked for.
    """

    name: str
    mode: Mode
    value: float
    stderr: float
    residual: float
    evaluations: int
    converged: bool


def weight_decay_threshold(
    task: Task,
    directions: Directions,
    *,
    mode: Mode = "path",
    steps: int = 1000,
    burn_in: int = 200,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> DecayThreshold:
    """Weight decay λ_c above which SGD with its noise falls onto a plane, Λ(λ_c) = 0.

    Every λ is tried on the same sequence of minibatches (common random numbers), so that Λ is a function of λ whose
    root is much sharper than Λ itself. Without noise λ_c = −λ_min(OᵀHO), see `gaugefix.theory.critical_decay`.

    Args:
        task: gives model, loss, data and settings of SGD; its weight decay is where the search begins.
        directions: as for `lyapunov_exponent`.
        mode: "path", where the run relaxes on the plane anew at every λ, or "frozen". A frozen point is kept for all λ
            whatever its force there.
        steps: that are counted in each run.
        burn_in: steps before; in path mode long enough to relax at a new λ.
        tolerance: relative accuracy of the root.
        seed: of the data order.

    Returns:
        The threshold. Cost: about ten runs.

    Raises:
        MeasurementError: as `lyapunov_exponent`; or if no λ < 1/lr makes the plane attract.

    Source: arXiv 2303.13093, 2309.16932.
    """
    from scipy.optimize import brentq  # late: slow to import

    mirror = as_mirror(directions, task)
    runs: dict[float, MirrorExponent] = {}

    def exponent(decay: float) -> float:
        if decay not in runs:
            runs[decay] = lyapunov_exponent(
                task, mirror, mode=mode, steps=steps, burn_in=burn_in, weight_decay=decay, tolerance=math.inf, seed=seed
            )
        return max(runs[decay].value, -1e300)  # −inf, too, is a sign

    if mode == "frozen":  # the one check, at the task's own weight decay
        lyapunov_exponent(task, mirror, mode=mode, steps=40, burn_in=0, seed=seed)
    low, first = 0.0, exponent(0.0)
    if first <= 0:
        return DecayThreshold(mirror.name, mode, 0.0, 0.0, first, len(runs), True)
    high = max(1.5 * first / task.lr, 1e-12)  # dΛ/dλ is about −lr
    while exponent(high) > 0:
        low, high = high, 2 * high
        if high * task.lr >= 1 or len(runs) > _MAX_EVALUATIONS:
            raise MeasurementError(
                f"weight_decay_threshold: {mirror.name!r} still repels at weight_decay = {low:.3g}, and a larger one "
                f"would overshoot at lr = {task.lr:g}."
            )
    root, outcome = brentq(
        exponent, low, high, rtol=max(tolerance, 1e-12), maxiter=_MAX_EVALUATIONS, full_output=True, disp=False
    )
    residual = exponent(float(root))
    near = min((d for d in runs if d != root), key=lambda d: abs(d - root))
    slope = (runs[near].value - residual) / (near - root)
    stderr = runs[float(root)].stderr / abs(slope) if math.isfinite(slope) and slope else math.nan
    return DecayThreshold(mirror.name, mode, float(root), stderr, residual, len(runs), bool(outcome.converged))
