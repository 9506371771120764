"""Forecast of classes of units by ghosts and drives: who dies, who stays dead, whether more width would help."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gaugefix.forecast.results import Certificate, ClassForecast, CollapseThreshold, Forecast
from gaugefix.measure import (
    Birth,
    ClassProbe,
    CollapsedClass,
    Drives,
    Probe,
    birth_threshold,
    collapse_threshold,
    drives,
    exact_copy,
    live_units,
    probe_classes,
    settle,
)
from gaugefix.measure.classes import units_of
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task
from gaugefix.theory import predicted_rank

#: largest residual at which a point counts as stationary, and slack of a drive before a unit counts as dying
_STATIONARY = 0.1
#: κ/λ up to here is saturated at an exactly stationary point
_SATURATED = 1.01
#: fraction of λ_c above which the spectrum of the collapsed state still counts the live modes
_NEAR_COLLAPSE = 0.5


def forecast(
    task: Task,
    symmetries: Symmetries | Sequence[Units],
    *,
    settle_steps: int = 100,
    seed: int = 0,
    max_samples: int = 4096,
) -> Forecast:
    """Forecast every class of units: who dies, who stays dead, whether more width would help.

    Widen a class by a **ghost**, a unit of zero size: nothing changes. It grows at rate κ − λ, so dead units are
    reborn if κ > λ and stay dead if κ < λ. A live unit i is pulled by its **drive** d_i; at a stationary point of
    the penalised loss d_i = λ for homogeneous units, and κ = λ then certifies that no wider layer would do better
    given the rest of the network. The threshold κ is the one of arXiv 2205.12510 taken at the present point; λ is
    PyTorch's weight decay.

    The iterate of SGD scatters, and at one instant the scatter hides the drives; so a copy takes a few full-batch
    steps first. On the digits network with batches of 32 that raises the correlation between the forecast growth of a
    unit after 150 epochs and its growth over the next 100 from below 0.5 to above 0.9.

    Verdicts hold for gradient descent and SGD with small noise on the penalised loss. Minibatch noise makes collapse
    happen slightly earlier. Classes outside the theory get the verdict "not applicable" and a reason.

    Args:
        task: gives model, loss, data and optimiser; nothing of it is changed. Evaluated in evaluation mode.
        symmetries: what `find_symmetries` gave, or the classes of units themselves.
        settle_steps: full-batch steps on a copy before anything is measured, see `gaugefix.measure.settle`.
        seed: of the data order and the ascents.
        max_samples: stop after the batch that reaches this number.

    Returns:
        One forecast per class, and the threshold of the whole network. Cost: one pass over the data, and for each
        class an ascent and a few passes for its collapsed state.

    Example:
        >>> from gaugefix import load_task
        >>> from gaugefix.symmetry import Slice
        >>> index = np.arange(64).reshape(1, 64, 1)
        >>> slices = (Slice("0.weight", 0, index, "write"), Slice("0.bias", 0, index, "write"),
        ...           Slice("2.weight", 1, index, "read"))
        >>> found = forecast(load_task("digits-mlp"), [Units("0", 64, 1, slices, "relu")])
        >>> found.classes[0].alive, found.classes[0].verdict
        (64, 'not stationary')
    """
    settled = settle(exact_copy(task), steps=settle_steps, max_samples=max_samples, seed=seed)
    copy = settled.task
    classes = [u for u in units_of(symmetries) if u.slices]
    probe = probe_classes(copy, classes, max_samples=max_samples, seed=seed)
    now = {k: p.detach() for k, p in task.model.named_parameters()}  # who is alive is asked of the model as it is
    limits = _optimizer_limits(task)
    found, thresholds = [], []
    for c in probe.classes:
        threshold = _no_threshold(c.reason)
        if not c.reason:
            threshold = collapse_threshold(copy, c.units, classes, max_samples=max_samples, seed=seed)
        thresholds.append(threshold)
        found.append(_class_forecast(task, probe, c, live_units(now, c.units), threshold, limits, seed))
    whole = _whole_network(task, probe, thresholds) if classes else None
    return Forecast(
        tuple(found), task.weight_decay, task.lr, task.batch_size, whole, settled.steps, settled.moved, settled.reason
    )


def certificate(
    task: Task,
    symmetries: Symmetries | Sequence[Units],
    *,
    settle_steps: int = 100,
    seed: int = 0,
    max_samples: int = 4096,
) -> Certificate:
    """Whether the network is wide enough: at a stationary point with κ = λ no ghost of any class would grow.

    Args:
        task: gives model, loss, data and optimiser.
        symmetries: what `find_symmetries` gave, or the classes of units themselves.
        settle_steps: full-batch steps on a copy before anything is measured, see `gaugefix.measure.settle`.
        seed: of the data order and the ascents.
        max_samples: stop after the batch that reaches this number.

    Returns:
        The certificate over all classes to which the theory applies. It is local in the rest of the network.
    """
    return certify(forecast(task, symmetries, settle_steps=settle_steps, seed=seed, max_samples=max_samples))


def certify(found: Forecast) -> Certificate:
    """`certificate` from a forecast that is there already; costs nothing.

    Args:
        found: from `forecast`.

    Returns:
        The certificate.
    """
    covered = [c for c in found.classes if c.verdict != "not applicable"]
    uncovered = tuple(c.name for c in found.classes if c.verdict == "not applicable")
    if not covered:
        return Certificate(np.nan, found.weight_decay, np.nan, False, "", uncovered, "no class is covered")
    binding = max(covered, key=lambda c: c.kappa)
    closed = all(c.verdict in {"saturated: more width cannot help", "dead stays dead"} for c in covered)
    open_ones = ", ".join(f"{c.name}: {c.verdict}" for c in covered if c.verdict.startswith(("not", "wants", "would")))
    residuals = [c.residual for c in covered if c.alive]
    return Certificate(
        binding.kappa,
        found.weight_decay,
        max(residuals, default=0.0),
        closed and not uncovered,
        binding.name,
        uncovered,
        open_ones or ("uncovered: " + ", ".join(uncovered) if uncovered else ""),
    )


def _class_forecast(
    task: Task, probe: Probe, c: ClassProbe, live: np.ndarray, threshold: CollapsedClass, limits: str, seed: int
) -> ClassForecast:
    units, decay = c.units, task.weight_decay
    birth = birth_threshold(c, probe.params, seed=seed)
    pull = drives(probe.params, _with_zeros(probe), units) if not c.reason else None
    values = np.full(len(units), np.nan) if pull is None else np.where(live, pull.drive, np.nan)
    dying = _dying(pull, live, decay)
    residual = _residual(pull, live, dying, decay)
    reason = c.reason or birth.reason or limits
    verdict = "not applicable" if reason else _judge(birth.kappa, decay, live, residual)
    notes = [reason, *_notes(task, birth, threshold, verdict)]
    return ClassForecast(
        name=units.name,
        size=len(units),
        alive=int(live.sum()),
        kappa=birth.kappa,
        weight_decay=decay,
        headroom=birth.kappa / decay if decay > 0 else np.nan,
        drives=values,
        growth=np.full(len(units), np.nan) if pull is None else np.where(live, pull.growth(decay), np.nan),
        spectrum=birth.spectrum,
        residual=residual,
        verdict=verdict,
        rate=birth.kappa - decay,
        dying=dying,
        critical_weight_decay=threshold.lambda_c,
        predicted_rank=_rank(c, birth, threshold, decay, residual, live),
        valid=verdict not in {"not applicable", "not stationary"},
        reason="; ".join(n for n in notes if n),
    )


def _judge(kappa: float, decay: float, live: np.ndarray, residual: float) -> str:
    if not live.any():
        return "dead stays dead" if kappa < decay else "would be reborn"
    if not residual <= _STATIONARY:
        return "not stationary"
    if kappa <= decay * (_SATURATED + residual):
        return "saturated: more width cannot help"
    return "wants more width"


def _dying(pull: Drives | None, live: np.ndarray, decay: float) -> tuple[int, ...]:
    """Live units that shrink faster than the slack explains."""
    if pull is None or decay == 0:
        return ()
    return tuple(int(i) for i in np.flatnonzero(live & (pull.growth(decay) < -_STATIONARY * decay)))


def _residual(pull: Drives | None, live: np.ndarray, dying: tuple[int, ...], decay: float) -> float:
    """Largest misfit of the units that live and do not die; infinite if every live unit is dying."""
    if pull is None or decay == 0 or not live.any():
        return float("nan")
    staying = live.copy()
    staying[list(dying)] = False
    return float(np.nanmax(pull.misfit(decay)[staying])) if staying.any() else float("inf")


def _rank(
    c: ClassProbe, birth: Birth, threshold: CollapsedClass, decay: float, residual: float, live: np.ndarray
) -> int | None:
    """Modes that survive λ: those at λ of a stationary linear class; near λ_c those above λ at the collapsed state."""
    if c.activation is None or np.isnan(c.activation.slope) or decay == 0:
        return None
    if c.units.activation == "identity" and live.any() and residual <= _STATIONARY:
        return predicted_rank(birth.spectrum, decay, margin=_STATIONARY)
    near_collapse = decay > _NEAR_COLLAPSE * threshold.lambda_c
    return predicted_rank(threshold.spectrum, decay) if near_collapse else None


def _optimizer_limits(task: Task) -> str:
    """Why no threshold exists for the optimiser of a task, or ""."""
    if task.weight_decay == 0:
        return "weight decay is 0: there is no threshold, κ is the growth rate of the best ghost"
    if task.optimizer == "adamw":
        return "AdamW decouples the decay from the gradient: its fixed points are not those of the penalised loss"
    if task.optimizer == "adam":
        return "Adam rescales each coordinate: growth near zero does not follow κ − λ"
    return ""


def _notes(task: Task, birth: Birth, threshold: CollapsedClass, verdict: str) -> list[str]:
    notes = []
    if verdict == "not stationary":
        notes.append("the drives differ from λ: κ, drives and dying units describe this moment only")
    if verdict != "not applicable" and task.momentum:
        notes.append(f"rates are per lr/(1 − momentum) = {task.lr / (1 - task.momentum):.3g}")
    if not birth.converged:
        notes.append("κ is a lower bound, the ascent did not converge")
    if not threshold.reason and not threshold.fitted_bias:
        notes.append("no output bias to fit at the collapsed state")
    if not threshold.reason and not threshold.converged:
        notes.append("critical weight decay did not converge")
    return notes


def _whole_network(task: Task, probe: Probe, thresholds: Sequence[CollapsedClass]) -> CollapseThreshold:
    """The threshold of the network if it has exactly one hidden layer."""
    if len(probe.classes) != 1:
        reason = (
            f"{len(probe.classes)} classes of units: with two or more hidden layers the zero state is stable at every "
            "weight decay, and training dies at a jump, below the critical weight decay of each class"
        )
        return CollapseThreshold(np.nan, np.zeros(0), False, None, reason)
    c, found = probe.classes[0], thresholds[0]
    homogeneous = c.activation is not None and bool(np.isnan(c.activation.slope)) and not found.reason
    rank = None if homogeneous or found.reason else predicted_rank(found.spectrum, task.weight_decay)
    reason = found.reason or "one hidden layer, output bias at its optimum; local stability of the collapsed state"
    return CollapseThreshold(found.lambda_c, found.spectrum, homogeneous, rank, reason)


def _no_threshold(reason: str) -> CollapsedClass:
    return CollapsedClass(np.nan, np.zeros(0), False, False, reason)


def _with_zeros(probe: Probe) -> dict[str, Tensor]:
    """Gradients with zeros for frozen parameters."""
    return {k: probe.gradients.get(k, p.new_zeros(p.shape)) for k, p in probe.params.items()}
