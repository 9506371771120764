"""Forecast of classes of units by ghosts and drives: who dies, who stays dead, whether more width would help."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.forecast.network import whole_network_threshold
from gaugefix.forecast.noise import noise_limits
from gaugefix.forecast.numbers import ClassNumbers, gauge, ghost_numbers, probed_numbers
from gaugefix.forecast.results import ClassForecast, CollapseThreshold, Forecast
from gaugefix.measure import Probe, exact_copy, probe_classes, settle
from gaugefix.measure.classes import units_of
from gaugefix.measure.sizes import unit_rows
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
    jump_steps: int = 0,
    undecayed: Sequence[str] = (),
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
        jump_steps: with several hidden layers, full-batch steps for each weight decay that
            `whole_network_threshold` tries; 0 leaves the threshold of the whole network out.
        undecayed: parameters that the optimiser does not decay (a parameter group of its own).
        seed: of the data order and the ascents.
        max_samples: stop after the batch that reaches this number.

    Returns:
        One forecast per class, and the threshold of the whole network. Cost: one pass over the data, and for each
        class an ascent and a few passes for its collapsed state; where a class is not a layer between two Linear
        layers, some tens of Hessian-vector products on up to 1024 samples.

    Raises:
        MeasurementError: if the loss is not finite.

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
    if not np.isfinite(probe.loss):
        raise MeasurementError(f"forecast: the loss of task {task.name!r} is {probe.loss}: the run has diverged.")
    now = {k: p.detach() for k, p in task.model.named_parameters()}  # who is alive is asked of the model as it is
    limits = _optimizer_limits(task)
    numbers = []
    for c in probe.classes:
        if c.reason:
            halt = limits if task.weight_decay else ""
            numbers.append(
                ghost_numbers(copy, probe, c.units, symmetries, classes, now, halt, max_samples=max_samples, seed=seed)
            )
        else:
            numbers.append(probed_numbers(copy, probe, c, classes, now, max_samples=max_samples, seed=seed))
    found = [
        _class_forecast(task, c.units, n, _undecayed(c.units, undecayed) or limits, copy.model)
        for c, n in zip(probe.classes, numbers, strict=True)
    ]
    steps = 0 if limits else jump_steps
    whole = _whole_network(task, copy, symmetries, probe, numbers, steps) if classes else None
    return Forecast(
        tuple(found), task.weight_decay, task.lr, task.batch_size, whole, settled.steps, settled.moved, settled.reason
    )


def _undecayed(units: Units, undecayed: Sequence[str]) -> str:
    """Why the theory does not hold for a class with parameters outside of the weight decay."""
    outside = [p for p in units.parameters if p in set(undecayed)]
    return f"{outside[0]!r} is not decayed: the penalty is not the one of the theory" if outside else ""


def _class_forecast(task: Task, units: Units, found: ClassNumbers, limits: str, model: nn.Module) -> ClassForecast:
    decay = task.weight_decay
    live = found.live
    dying = _dying(found, decay)
    residual = _residual(found, dying, decay)
    reason = found.reason or limits
    verdict = "not applicable" if reason else _judge(found, decay, residual)
    rank = _rank(units, found, decay, residual)
    rate = found.kappa - decay
    spectra = found.spectra
    gauged = bool(gauge(units, model)) and "normalised" not in units.flags and bool(units.gains)
    applies = verdict != "not applicable"
    return ClassForecast(
        name=units.name,
        kind=units.kind,
        size=len(units),
        alive=int(live.sum()),
        kappa=found.kappa,
        kappa_residual=found.residual,
        method=found.method,
        weight_decay=decay,
        headroom=found.kappa / decay if decay > 0 else np.nan,
        drives=np.where(live, found.drive, np.nan) if live.size else found.drive,
        growth=np.where(live, found.growth - decay, np.nan) if live.size else found.growth,
        spectrum=spectra[int(np.nanargmax(spectra[:, 0]))] if np.isfinite(spectra).any() else np.zeros(0),
        fiber_spectra=spectra,
        residual=residual,
        verdict=verdict,
        rate=rate,
        relearning_steps=(1 - task.momentum) / (task.lr * rate) if rate > 0 else np.inf if rate <= 0 else np.nan,
        dying=dying,
        survivors=_survivors(found, rank, dying) if applies else None,
        critical_weight_decay=found.threshold.lambda_c,
        predicted_rank=rank,
        rank=found.rank,
        noise=noise_limits(task, found.curvatures, decay),
        effective_lr=_effective_lr(task, units) if gauged else np.nan,
        equilibrium_rotation=(2 * task.lr * decay) ** 0.5 if gauged else np.nan,
        binding=_binding(units, found),
        valid=verdict not in {"not applicable", "not stationary"},
        reason="; ".join(n for n in (reason, *_notes(task, found, verdict)) if n),
    )


def _judge(found: ClassNumbers, decay: float, residual: float) -> str:
    if not found.live.any():
        return "dead stays dead" if found.kappa < decay else "would be reborn"
    if not residual <= _STATIONARY:
        return "not stationary"
    if found.degree > 1:
        return "small units cannot grow"
    if found.kappa <= decay * (_SATURATED + residual):
        return "saturated: more width cannot help"
    return "wants more width"


def _dying(found: ClassNumbers, decay: float) -> tuple[int, ...]:
    """Live units that shrink faster than the slack explains."""
    if decay == 0 or not found.live.size:
        return ()
    return tuple(int(i) for i in np.flatnonzero(found.live & (found.growth - decay < -_STATIONARY * decay)))


def _residual(found: ClassNumbers, dying: tuple[int, ...], decay: float) -> float:
    """Largest misfit of the units that live and do not die; infinite if every live unit is dying."""
    staying = found.live.copy()
    if decay == 0 or not staying.any() or np.isnan(found.drive[staying]).all():
        return float("nan")
    staying[list(dying)] = False
    misfit = found.misfit(decay)[staying]
    return float(np.nanmax(misfit)) if np.isfinite(misfit).any() else float("inf")


def _rank(units: Units, found: ClassNumbers, decay: float, residual: float) -> int | None:
    """Modes that survive λ: those at λ of a stationary linear class; near λ_c those above λ at the collapsed state."""
    spectra, threshold = found.spectra, found.threshold
    if decay == 0 or not spectra.size or found.method == "ascent":
        return None
    linear = units.activation == "identity" or "linear" in units.flags
    if linear and found.live.any() and residual <= _STATIONARY:
        unrest = max(residual, found.kappa / decay - 1)  # at rest the drives are λ and no σ(G) is above it
        margin = min(max(2 * unrest, _SATURATED - 1), _STATIONARY)
        return predicted_rank(spectra[np.isfinite(spectra)], decay, margin=margin)
    near_collapse = decay > _NEAR_COLLAPSE * threshold.lambda_c
    return predicted_rank(threshold.spectrum, decay) if near_collapse else None


def _survivors(found: ClassNumbers, rank: int | None, dying: tuple[int, ...]) -> int | None:
    """How many units or modes are left in the end."""
    if found.rank is not None and rank is not None:
        return rank
    return int(found.live.sum()) - len(dying)


def _effective_lr(task: Task, units: Units) -> float:
    """Median over the units of lr / ‖w‖²."""
    rows = unit_rows({k: p.detach() for k, p in task.model.named_parameters()}, units, "write")
    squares = np.square(rows).sum(1)
    return float(np.median(task.lr / squares[squares > 0])) if (squares > 0).any() else float("inf")


def _binding(units: Units, found: ClassNumbers) -> str:
    """The unit or mode with the smallest drive: the plane on which it is zero is the next one to be fallen on."""
    drive = np.where(found.live, found.drive, np.nan) if found.live.size else found.drive
    if not np.isfinite(drive).any():
        return ""
    i = int(np.nanargmin(drive))
    if found.by_mode:
        fiber, mode = divmod(i, units.size)
        head = f"[{fiber}]" if units.fibers > 1 else ""
        return f"{units.name}{head}: mode {mode} dropped"
    fiber, unit = divmod(i, units.size)
    return f"{units.name}: {unit} = 0" if units.fibers == 1 else f"{units.name}[{fiber}]: {unit} = 0"


def _optimizer_limits(task: Task) -> str:
    """Why no threshold exists for the optimiser of a task, or ""."""
    if task.weight_decay == 0:
        return "weight decay is 0: there is no threshold, κ is the growth rate of the best ghost"
    if task.optimizer == "adamw":
        return "AdamW decouples the decay from the gradient: its fixed points are not those of the penalised loss"
    if task.optimizer == "adam":
        return "Adam rescales each coordinate: growth near zero does not follow κ − λ"
    return ""


def _notes(task: Task, found: ClassNumbers, verdict: str) -> list[str]:
    notes, threshold = [], found.threshold
    if verdict == "not stationary":
        notes.append("the drives differ from λ: κ, drives and dying units describe this moment only")
    if verdict != "not applicable" and task.momentum:
        notes.append(f"rates are per lr/(1 − momentum) = {task.lr / (1 - task.momentum):.3g}")
    if found.degree > 1 and not found.reason:
        notes.append("units of three factors: a small one feels no pull at any weight decay, only a large one can live")
    if found.note:
        notes.append(found.note)
    if not threshold.reason and not threshold.fitted_bias and found.degree == 1:
        notes.append("no output bias to fit at the collapsed state")
    if not threshold.reason and not threshold.converged:
        notes.append("critical weight decay did not converge")
    return notes


def _whole_network(
    task: Task, copy: Task, symmetries: Symmetries | Sequence[Units], probe: Probe, numbers: Sequence[ClassNumbers],
    steps: int,
) -> CollapseThreshold:  # fmt: skip
    """The threshold of the network: closed form with one hidden layer, continuation with several."""
    if len(probe.classes) == 1:
        found = numbers[0].threshold
        kink = numbers[0].method == "ascent" and not found.reason
        rank = None if kink or found.reason else predicted_rank(found.spectrum, task.weight_decay)
        reason = found.reason or "one hidden layer, output bias at its optimum; local stability of the collapsed state"
        return CollapseThreshold(found.lambda_c, found.spectrum, kink, rank, reason, 0.0, 0 if found.reason else 2)
    about = (
        f"{len(probe.classes)} classes of units: with two or more hidden layers the zero state is stable at every "
        "weight decay, and training dies at a jump, below the critical weight decay of each class"
    )
    if not steps:
        return CollapseThreshold(np.nan, np.zeros(0), False, None, about, np.nan, 1)
    jump = whole_network_threshold(copy, symmetries, max_steps=steps)
    reason = f"{about}; {jump.reason}" if jump.reason else about
    return CollapseThreshold(jump.lambda_c, np.zeros(0), False, None, reason, jump.uncertainty, 1)
