"""The numbers of one class: threshold, modes, drives, curvature of its best ghost, by the method that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaugefix.errors import MeasurementError
from gaugefix.measure import (
    Birth,
    ClassProbe,
    CollapsedClass,
    Drives,
    GhostBlock,
    Probe,
    ProductModes,
    birth_threshold,
    collapse_threshold,
    drives,
    ghost_block,
    live_units,
    product_modes,
    two_sides,
)
from gaugefix.measure.ghosts import collapsed_task
from gaugefix.measure.modes import Sides, dead_mode_block
from gaugefix.measure.widening import residual_stream, unsuitable
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task
from gaugefix.theory import signal_matrix

_SINGLE_PRECISION_SAMPLES = 1024  # of a ghost's Hessian; the noise of the estimate is well below the slack of a verdict
_ROUNDS = 4  # of the fixed point of λ_c


@dataclass(frozen=True, eq=False)
class ClassNumbers:
    """What was measured of one class (n = fibers * size).

    Attributes:
        kappa: birth threshold, nan if there is none.
        spectra: ``(fibers, modes)`` growth rates of the modes of a ghost, descending.
        residual: of κ.
        converged: whether κ is.
        method: how it was found.
        degree: 2 if a ghost enters with three factors.
        live: ``(n,)`` mask of live units, or of live modes of a product class.
        drive: ``(n,)`` pull on each of them.
        growth: ``(n,)`` half the growth rate of log size before weight decay.
        misfit: function of λ, ``(n,)`` distance from stationarity.
        rank: number of live modes of a product class whose sides are known, else None.
        by_mode: whether the entries of ``live`` and ``drive`` are modes and not units.
        threshold: of the collapsed class.
        curvatures: of every sample along the best ghost.
        reason: why there is no κ, or "".
        note: what limits it.
    """

    kappa: float
    spectra: np.ndarray
    residual: float
    converged: bool
    method: str
    degree: int
    live: np.ndarray
    drive: np.ndarray
    growth: np.ndarray
    sides: tuple[np.ndarray, ...]
    rank: int | None
    by_mode: bool
    threshold: CollapsedClass
    curvatures: np.ndarray
    reason: str
    note: str = ""

    def misfit(self, weight_decay: float) -> np.ndarray:
        """Distance of every unit or mode from stationarity, the largest |pull/λ − 1|."""
        return np.asarray(np.max([np.abs(side / weight_decay - 1) for side in self.sides], axis=0))


def probed_numbers(copy: Task, probe: Probe, c: ClassProbe, classes: Sequence[Units], now: dict[str, Tensor],
                   *, max_samples: int, seed: int) -> ClassNumbers:  # fmt: skip
    """A class between two Linear layers: everything follows from its input and the pull on its output.

    Args:
        copy: the settled task.
        probe: of all classes.
        c: of this one, without a reason against it.
        classes: all classes.
        now: parameters of the model as it is, which decide who is alive.
        max_samples: stop after the batch that reaches this number.
        seed: of the ascents.

    Returns:
        The numbers.
    """
    birth = birth_threshold(c, probe.params, seed=seed)
    threshold = collapse_threshold(copy, c.units, classes, max_samples=max_samples, seed=seed)
    live = live_units(now, c.units)
    pull = drives(probe.params, _with_zeros(probe), c.units)
    note = "" if birth.converged else "κ is a lower bound, the ascent did not converge"
    return ClassNumbers(
        birth.kappa, birth.spectrum[None], 0.0, birth.converged,
        "ascent" if birth.direction is not None else "signal matrix", 1, live, np.where(live, pull.drive, np.nan),
        np.where(live, pull.growth(0.0), np.nan), _sides(pull), _rank(now, c.units), False, threshold,
        _captured(c, birth, probe.n_samples), birth.reason, note,
    )  # fmt: skip


def ghost_numbers(
    copy: Task, probe: Probe, units: Units, symmetries: Symmetries | Sequence[Units], classes: Sequence[Units],
    now: dict[str, Tensor], limits: str, *, max_samples: int, seed: int,
) -> ClassNumbers:  # fmt: skip
    """Any other class: ghosts in a widened copy of the model, or in the place of its dead modes.

    Args:
        copy: the settled task.
        probe: of all classes.
        units: the class.
        symmetries: what was given to `forecast`.
        classes: all classes.
        now: parameters of the model as it is, which decide who is alive.
        limits: why there is no threshold for this optimiser, or "".
        max_samples: stop after the batch that reaches this number.
        seed: of the ascents and checks.

    Returns:
        The numbers, with a reason if there is no κ.
    """
    params = dict(copy.model.named_parameters())
    known = all(s.param in params for s in units.slices)
    reason = gauge(units, copy.model) or unsuitable(units, dict(params)) or limits
    modes, live, pull, sides = None, live_units(now, units) if known else np.zeros(0, bool), None, None
    if known and not unsuitable(units, dict(params)):
        sides = two_sides(units, symmetries)
        if sides is not None:
            modes = product_modes(probe.params, _with_zeros(probe), units, sides)
            live = product_modes(now, _with_zeros(probe), units, sides).live.reshape(-1)
        elif units.outgoing:
            pull = drives(probe.params, _with_zeros(probe), units)
    block, threshold = None, CollapsedClass(np.nan, np.zeros(0), False, False, reason)
    if not reason:
        samples = min(max_samples, _SINGLE_PRECISION_SAMPLES)
        try:
            block = _block(copy, units, sides, samples, seed)
            reason = block.reason
            if not reason:
                threshold = _collapsed(copy, units, sides, classes, samples, seed, block)
        except MeasurementError as error:
            reason = str(error)
    drive, growth, around = _pulls(units, live, modes, pull)
    return ClassNumbers(
        np.nan if block is None else block.kappa,
        np.zeros((units.fibers, 0)) if block is None else block.spectra,
        np.nan if block is None else block.residual,
        block is not None and block.converged,
        "" if block is None else block.method,
        1 if block is None else block.degree,
        live, drive, growth, around, None if modes is None else int(live.sum()), modes is not None, threshold,
        np.zeros(0) if block is None or reason else block.curvatures(),
        reason,
        "" if block is None or block.converged or reason else f"κ has a residual of {block.residual:.1e}",
    )  # fmt: skip


def gauge(units: Units, model: nn.Module) -> str:
    """Why weight decay is a gauge in a class: its units are normalised, so the size of their weights does not count.

    Args:
        units: the class.
        model: it belongs to.

    Returns:
        The reason, or "".
    """
    if residual_stream(units):
        return "residual stream: it is read through normalisations, where decay is a gauge, and cannot be widened"
    if not units.gains:
        return ""
    param = units.gains[0].param
    owner = model.get_submodule(param.rpartition(".")[0])
    kind = "batch normalisation" if isinstance(owner, _BatchNorm) else "normalisation or gain"
    return f"{kind} {param!r} in the class: decay is a gauge there, it sets the effective learning rate"


def _block(copy: Task, units: Units, sides: Sides | None, samples: int, seed: int) -> GhostBlock:
    try:
        return ghost_block(copy, units, max_samples=samples, seed=seed)
    except MeasurementError as error:
        found = None if sides is None else dead_mode_block(copy, units, sides, max_samples=samples, seed=seed)
        if found is None:
            full = "" if sides is None else "; every mode is alive, so none can stand for a ghost"
            raise MeasurementError(f"{error}{full}") from error
        return found


def _collapsed(
    copy: Task, units: Units, sides: Sides | None, classes: Sequence[Units], samples: int, seed: int, here: GhostBlock
) -> CollapsedClass:
    """Κ of the class when it is wholly dead: the fixed point λ_c(λ) = λ, as `gaugefix.measure.collapse_threshold`."""
    if here.degree > 1:
        return CollapsedClass(0.0, np.zeros(0), True, True, "")
    decay, found, fitted, settled, near = copy.weight_decay, here, False, False, None
    for _ in range(_ROUNDS):
        dead, fitted = collapsed_task(copy, units, classes, weight_decay=decay, max_samples=samples, seed=seed)
        if near is None:
            found = _block(dead, units, sides, samples, seed)
        else:
            found = ghost_block(dead, units, max_samples=samples, seed=seed, near=near)
        near = found.incoming
        settled = not fitted or bool(abs(found.kappa - decay) <= 1e-4 * max(decay, 1e-12))
        if settled or not np.isfinite(found.kappa):
            break
        decay = found.kappa
    spectrum = np.sort(found.spectra[np.isfinite(found.spectra)])[::-1]
    return CollapsedClass(found.kappa, spectrum, fitted, settled and found.converged, found.reason)


def _rank(now: dict[str, Tensor], units: Units) -> int | None:
    """Number of live modes of a class between two linear maps."""
    sides = two_sides(units, ())
    return None if sides is None else product_modes(now, now, units, sides).rank


def _pulls(
    units: Units, live: np.ndarray, modes: ProductModes | None, pull: Drives | None
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Drive, growth and sides of the units or modes."""
    if modes is not None:
        values = modes.drives.reshape(-1)
        return values, values, (values,)
    if pull is None:
        nothing = np.full(len(units), np.nan)
        return nothing, nothing, (nothing,)
    return np.where(live, pull.drive, np.nan), np.where(live, pull.growth(0.0), np.nan), _sides(pull)


def _sides(pull: Drives) -> tuple[np.ndarray, ...]:
    return (pull.drive,) if pull.homogeneous else (pull.outgoing, pull.incoming)


def _captured(c: ClassProbe, birth: Birth, n: int) -> np.ndarray:
    """Curvature of every sample along the best ghost, −Σ u·g φ(w·h) over its positions."""
    if c.activation is None or not np.isfinite(birth.kappa) or birth.kappa <= 0 or len(c.h) % n:
        return np.zeros(0)
    if birth.direction is not None:
        values = c.activation.function(_tensor(c.h @ birth.direction)).numpy()
        u = c.g.T @ values / len(c.h)
        per_row = (c.g @ (u / np.linalg.norm(u))) * values
    else:
        left, _, right = np.linalg.svd(signal_matrix(c.g, c.h), full_matrices=False)
        per_row = abs(c.activation.slope) * (c.g @ left[:, 0]) * (c.h @ right[0])
    curvatures: np.ndarray = -per_row.reshape(n, -1).mean(1)  # g carries the factor rows / samples
    return curvatures


def _tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values)


def _with_zeros(probe: Probe) -> dict[str, Tensor]:
    """Gradients with zeros for frozen parameters."""
    return {k: probe.gradients.get(k, p.new_zeros(p.shape)) for k, p in probe.params.items()}
