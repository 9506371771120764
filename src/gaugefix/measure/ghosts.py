"""Ghosts and drives: what an added unit of zero size would gain, and the pull on each unit that is there."""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.capture import ClassProbe, probe_classes
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.settle import first_samples
from gaugefix.symmetry import Units
from gaugefix.task import Task
from gaugefix.theory import homogeneous_pull, homogeneous_threshold, signal_matrix, smooth_threshold

_N_STARTS = 8
#: relative gain per step below which an ascent has arrived; its value is then good to about 1e-5
_GAIN = 1e-8


@dataclass(frozen=True, eq=False)
class Birth(Record):
    """The best ghost of a class.

    Attributes:
        kappa: its growth rate κ per unit of lr × steps, before weight decay; nan if there is no formula.
        spectrum: singular values of |slope|·E[g hᵀ], descending (slope 1 where φ has none).
        converged: whether the ascent of a homogeneous class stopped by itself; True for the others.
        reason: why κ is nan, or "".
        direction: ``(d,)`` incoming weights of the best ghost of a homogeneous class, else None.
    """

    kappa: float
    spectrum: np.ndarray
    converged: bool
    reason: str
    direction: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Drives(Record):
    """The pull on every unit (n = fibers * size); entries of units of zero size are nan.

    Attributes:
        drive: ``(n,)`` d_i = −⟨u_i, ∂L/∂u_i⟩ / (‖w_i‖‖u_i‖).
        outgoing: ``(n,)`` −⟨u_i, ∂L/∂u_i⟩ / ‖u_i‖², equal to λ at a stationary point of the penalised loss.
        incoming: ``(n,)`` −⟨w_i, ∂L/∂w_i⟩ / ‖w_i‖², likewise.
        homogeneous: whether the unit is homogeneous, so that the drive itself is λ at stationarity.
    """

    drive: np.ndarray
    outgoing: np.ndarray
    incoming: np.ndarray
    homogeneous: bool

    def growth(self, weight_decay: float) -> np.ndarray:
        """Half the growth rate of log(‖w_i‖‖u_i‖) per unit of lr × steps, d_i − λ for a balanced homogeneous unit.

        Args:
            weight_decay: λ.

        Returns:
            ``(n,)``.
        """
        return np.asarray((self.outgoing + self.incoming) / 2 - weight_decay)

    def misfit(self, weight_decay: float) -> np.ndarray:
        """Distance of every unit from stationarity: |d_i/λ − 1|, or the larger of the two sides if not homogeneous.

        Args:
            weight_decay: λ > 0.

        Returns:
            ``(n,)``.
        """
        sides = (self.drive,) if self.homogeneous else (self.outgoing, self.incoming)
        return np.asarray(np.max([np.abs(side / weight_decay - 1) for side in sides], axis=0))


def birth_threshold(
    probe: ClassProbe, params: Mapping[str, Tensor], *, seed: int = 0, near: np.ndarray | None = None
) -> Birth:
    """Birth threshold κ: a ghost of the class grows if and only if κ > λ.

    ReLU and LeakyReLU: max over ‖w‖ = 1 of ‖E[g φ(w·h)]‖₂, by ascent from 20 random directions and the strongest
    present units. Linear and smooth: |φ'(0)| σ_max(E[g hᵀ]) (arXiv 2205.12510, at any point instead of the
    collapsed one).

    Args:
        probe: of the class, without a reason against it.
        params: parameters, for the directions of the present units.
        seed: of the random directions.
        near: a direction known to be nearly the best: the ascent then starts there alone.

    Returns:
        The threshold with the spectrum of the signal matrix.
    """
    activation = probe.activation
    if activation is None or probe.reason:
        return Birth(np.nan, np.zeros(0), True, probe.reason or "no activation")
    spectrum = np.linalg.svd(signal_matrix(probe.g, probe.h), compute_uv=False)
    if not np.isnan(activation.slope):
        return Birth(smooth_threshold(probe.g, probe.h, activation.slope), abs(activation.slope) * spectrum, True, "")
    if not activation.homogeneous:
        return Birth(np.nan, spectrum, True, f"{activation.name} has no slope at zero or does not vanish there")
    negative_slope = -float(activation.function(torch.tensor(-1.0, dtype=torch.float64)))
    if near is None:
        present = probe.units.rows(params, "write").double().cpu().numpy()
        starts = present[np.argsort(-homogeneous_pull(probe.g, probe.h, present, negative_slope))[:_N_STARTS]]
    else:
        starts = near[None]
    best = homogeneous_threshold(
        probe.g,
        probe.h,
        negative_slope=negative_slope,
        starts=starts,
        n_random=20 if near is None else 0,
        tolerance=_GAIN,
        seed=seed,
    )
    return Birth(best.value, spectrum, best.converged, "", best.direction)


def drives(params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], units: Units) -> Drives:
    """The pull on every unit of a class from the gradients of the data loss.

    For a unit that is homogeneous of degree one in w and in u, d log(‖w‖‖u‖)/dt = 2(d_i − λ) at balance: it grows
    if d_i > λ, and d_i = λ exactly at a stationary point.

    Args:
        params: parameters by name.
        gradients: of the mean data loss, without weight decay.
        units: a class with incoming and outgoing slices.

    Returns:
        The drives.
    """
    u, w = (units.rows(params, role).double() for role in ("read", "write"))
    gu, gw = (units.rows(gradients, role).double() for role in ("read", "write"))
    pull_u, pull_w = (-(u * gu).sum(1).cpu().numpy(), -(w * gw).sum(1).cpu().numpy())
    norm_u, norm_w = u.norm(dim=1).cpu().numpy(), w.norm(dim=1).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (pull_u / (norm_u * norm_w), pull_u / norm_u**2, pull_w / norm_w**2)
    drive, outgoing, incoming = (np.where(np.isfinite(r), r, np.nan) for r in ratios)
    return Drives(drive, outgoing, incoming, units.homogeneous)


def collapsed_probe(
    copy: Task,
    units: Units,
    classes: Sequence[Units],
    *,
    weight_decay: float,
    max_samples: int = 4096,
    seed: int = 0,
) -> tuple[ClassProbe, bool]:
    """Probe a class at its collapsed state: all its weights zero, the free biases at their optimum, the rest as it is.

    Args:
        copy: from `exact_copy`; it is not changed.
        units: the class to collapse.
        classes: all classes of the model.
        weight_decay: λ of the free biases.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The probe, and whether there was a free bias to fit.
    """
    collapsed, fitted = collapsed_task(
        copy, units, classes, weight_decay=weight_decay, max_samples=max_samples, seed=seed
    )
    return probe_classes(collapsed, [units], max_samples=max_samples).classes[0], fitted


def collapsed_task(
    copy: Task,
    units: Units,
    classes: Sequence[Units],
    *,
    weight_decay: float,
    max_samples: int = 4096,
    seed: int = 0,
) -> tuple[Task, bool]:
    """A task whose class is wholly dead, with the free biases at their optimum and the rest as it is.

    Free biases are the trainable vectors that belong to no class: those of the output.

    Args:
        copy: from `exact_copy`; it is not changed.
        units: the class to collapse.
        classes: all classes of the model.
        weight_decay: λ of the free biases.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The task, with its batches in memory, and whether there was a free bias to fit.
    """
    model = copying.deepcopy(copy.model)
    params = dict(model.named_parameters())
    with torch.no_grad():
        for s in units.slices:
            p = params[s.param]
            p.copy_(s.put(p, torch.zeros_like(s.take(p))))
    batches = list(first_samples(copy, max_samples, seed))
    collapsed = dataclasses.replace(copy, model=model, batches=lambda: batches)
    taken = {s.param for c in classes for s in c.slices}
    free = [p for k, p in trainable(model).items() if p.ndim == 1 and k not in taken]
    if free:
        _fit(collapsed, free, weight_decay)
    return collapsed, bool(free)


def _fit(task: Task, free: list[torch.nn.Parameter], weight_decay: float) -> None:
    """Minimise the mean loss plus (λ/2)‖b‖² over a few vectors by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        free, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        total, count = torch.zeros((), dtype=free[0].dtype, device=free[0].device), 0
        for batch in task.batch_iter():
            losses = task.loss(task.model, batch)
            total, count = total + losses.sum(), count + len(losses)
        value = total / count + weight_decay / 2 * torch.stack([p.square().sum() for p in free]).sum()
        for p, g in zip(free, torch.autograd.grad(value, free, allow_unused=True), strict=True):
            p.grad = g
        return value

    optimizer.step(closure)
    for p in free:
        p.grad = None


@dataclass(frozen=True, eq=False)
class CollapsedClass(Record):
    """The critical weight decay of one class, with what it was computed from.

    Attributes:
        lambda_c: λ_c, the fixed point λ_c(λ) = λ where the output biases are decayed too.
        spectrum: singular values of the signal matrix there, times |slope|, descending.
        fitted_bias: whether there was an output bias, which then is at its optimum.
        converged: whether the fixed point and the ascent converged.
        reason: why λ_c is nan, or "".
    """

    lambda_c: float
    spectrum: np.ndarray
    fitted_bias: bool
    converged: bool
    reason: str


def collapse_threshold(
    copy: Task, units: Units, classes: Sequence[Units], *, max_samples: int = 4096, seed: int = 0, max_rounds: int = 8
) -> CollapsedClass:
    """Weight decay above which a class that is wholly dead stays dead: κ at its collapsed state (arXiv 2205.12510).

    The optimum of the output biases depends on λ because they are decayed like everything else, so λ_c solves
    λ_c(λ) = λ; starting from the task's λ the iteration settles in two or three rounds.

    Args:
        copy: from `exact_copy`; it is not changed.
        units: the class.
        classes: all classes of the model.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the ascent.
        max_rounds: of the fixed point.

    Returns:
        The threshold in PyTorch's convention.
    """
    decay, birth, fitted, settled = copy.weight_decay, Birth(np.nan, np.zeros(0), True, ""), False, False
    for _ in range(max_rounds):
        probe, fitted = collapsed_probe(copy, units, classes, weight_decay=decay, max_samples=max_samples, seed=seed)
        birth = birth_threshold(probe, copy_params(copy), seed=seed, near=birth.direction)
        settled = not fitted or bool(abs(birth.kappa - decay) <= 1e-6 * max(decay, 1e-12))
        if settled or not np.isfinite(birth.kappa):
            break
        decay = birth.kappa
    return CollapsedClass(birth.kappa, birth.spectrum, fitted, settled and birth.converged, birth.reason)


def copy_params(task: Task) -> dict[str, Tensor]:
    """Parameters of a task's model, detached.

    Args:
        task: any task.

    Returns:
        Tensors by name that share memory with the model.
    """
    return {k: p.detach() for k, p in task.model.named_parameters()}
