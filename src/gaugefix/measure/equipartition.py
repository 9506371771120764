"""Gradient balance: where the entropic force and weight decay leave the sides of a rescaling symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, first_batches
from gaugefix.measure.classes import exact_copy, rescaling_fails, units_of
from gaugefix.measure.entropy import EntropicLoss, entropic_loss
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task


@dataclass(frozen=True, eq=False)
class Equipartition(Record):
    """Balance of gradients between groups of parameters that a rescaling connects.

    At stationarity z = η E‖ĝ‖² − 2λ(1 − ηλ/2)‖θ‖² is the same on both sides of a unit, and for all layers of a
    homogeneous network. The side with the larger z still shrinks relative to the other, by η times the difference of
    the squared norms per step.

    Attributes:
        name: of the class of units, or "groups".
        groups: names of the groups: units of the class (both sides of each), or the groups asked for.
        squares: ``(groups, sides)`` E‖ĝ‖² of the data gradient of a batch.
        z: ``(groups, sides)``; for units the sides are incoming and outgoing.
        residual: ``(groups,)`` spread (max − min)/(mean |z|) over sides; for "groups" one number over all of them.
        drift: ``(groups,)`` expected change per step of ‖outgoing‖² − ‖incoming‖²; empty for "groups".
        spread: the residual of the whole, from z summed over the class.
        n_batches: how many were used.
    """

    name: str
    groups: tuple[str, ...]
    squares: np.ndarray
    z: np.ndarray
    residual: np.ndarray
    drift: np.ndarray
    spread: float
    n_batches: int


@dataclass(frozen=True, eq=False)
class MatrixEquipartition(Record):
    """Balance of a linear class, where every invertible matrix between its two sides is a symmetry.

    At stationarity Z = η E[ĝĝᵀ] − 2λ(1 − ηλ/2)θθᵀ is the same matrix on both sides.

    Attributes:
        name: of the class.
        drift: ``(fibers, n, n)`` expected change per step of UUᵀ − WWᵀ (units along the rows of both), exact.
        residual: ‖Z_out − Z_in‖ relative to the mean of their norms.
        n_batches: how many were used.
    """

    name: str
    drift: np.ndarray
    residual: float
    n_batches: int


@dataclass(frozen=True, eq=False)
class EntropyReport(Record):
    """What the finite step adds to the loss, and how far its balance is reached.

    Attributes:
        entropic: the entropic loss.
        equipartition: one entry per class with a rescaling symmetry.
        skipped: classes without it, and why.
    """

    entropic: EntropicLoss
    equipartition: tuple[Equipartition, ...]
    skipped: tuple[str, ...]


def equipartition_residual(
    task: Task,
    symmetries: Symmetries | Sequence[Units] | Mapping[str, Sequence[str]],
    *,
    n_batches: int = 64,
    seed: int = 0,
) -> tuple[Equipartition, ...]:
    """Gradient balance of every unit, or of groups of parameters: z = η E‖ĝ‖² − 2λ(1 − ηλ/2)‖θ‖² on each side.

    Exact for plain SGD and for any sampling, because it is a statement about symmetry directions: the charge
    ‖outgoing‖² − ‖incoming‖² moves on average by η(z_out − z_in) per step.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        symmetries: what `find_symmetries` gave, or classes of units; or groups of parameter names, such as the layers
            of a homogeneous network, which have to be in balance with each other.
        n_batches: how many batches the expectation takes.
        seed: of the data order.

    Returns:
        One entry per class that has a rescaling symmetry; one for all groups. Cost: one gradient per batch.

    Raises:
        MeasurementError: if a group names no trainable parameter.

    Source: arXiv 2505.12387 (equipartition), 2402.07193.
    """
    copy = exact_copy(task)
    params = trainable(copy.model)
    groups = symmetries if isinstance(symmetries, Mapping) else None
    classes = () if isinstance(symmetries, Mapping) else _rescaled(symmetries, params)
    for name in (k for members in (groups or {}).values() for k in members):
        if name not in params:
            raise MeasurementError(f"equipartition_residual: {name!r} is no trainable parameter of {task.name!r}.")
    sums: dict[str, np.ndarray] = {}
    n = 0
    for batch in first_batches(copy, n_batches, seed):
        _, gradient = batch_gradient(copy, batch, params)
        for name, value in _sides(gradient, classes, groups).items():
            sums[name] = sums[name] + value if name in sums else value
        n += 1
    sizes = _sides({k: p.detach() for k, p in params.items()}, classes, groups)
    decay = 2 * task.weight_decay * (1 - task.lr * task.weight_decay / 2)
    found = []
    for name, total in sums.items():
        squares = total / n
        z = task.lr * squares - decay * sizes[name]
        drift = task.lr * (z[:, 1] - z[:, 0]) if groups is None else np.zeros(0)
        residual = _spread(z) if groups is None else np.array([_spread(z.T)[0]])
        whole = float(_spread(z.sum(0)[None])[0]) if groups is None else float(residual[0])
        labels = tuple(groups) if groups is not None else tuple(map(str, range(len(z))))
        found.append(Equipartition(name, labels, squares, z, residual, drift, whole, n))
    return tuple(found)


def matrix_equipartition(
    task: Task, symmetries: Symmetries, *, n_batches: int = 64, seed: int = 0
) -> tuple[MatrixEquipartition, ...]:
    """Gradient balance of linear classes as matrices, E[ĝ_U ĝ_Uᵀ] against E[ĝ_W ĝ_Wᵀ].

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        symmetries: what `find_symmetries` gave.
        n_batches: how many batches the expectation takes.
        seed: of the data order.

    Returns:
        One entry per class with a GL(n) symmetry and two trained sides. Cost: one gradient per batch.

    Source: arXiv 2505.12387 (equipartition).
    """
    copy = exact_copy(task)
    params = trainable(copy.model)
    linear = {s.units.name for s in symmetries if s.units is not None and "GL(" in s.group}
    classes = [u for u in _rescaled(symmetries, params) if u.name in linear]
    decay = 2 * task.weight_decay * (1 - task.lr * task.weight_decay / 2)
    sums: dict[str, np.ndarray] = {}
    for batch in first_batches(copy, n_batches, seed):
        _, gradient = batch_gradient(copy, batch, params)
        for u in classes:
            sums[u.name] = sums.get(u.name, 0.0) + _grams(gradient, u)
    found = []
    for u in classes:
        z = task.lr * sums[u.name] / n_batches - decay * _grams(params, u)
        difference, size = z[1] - z[0], float(np.linalg.norm(z[0]) + np.linalg.norm(z[1])) / 2
        residual = float(np.linalg.norm(difference)) / size if size > 0 else 0.0
        found.append(MatrixEquipartition(u.name, task.lr * difference, residual, n_batches))
    return tuple(found)


def entropy_report(
    task: Task, symmetries: Symmetries | Sequence[Units], *, n_batches: int = 64, seed: int = 0
) -> EntropyReport:
    """Entropic loss and gradient balance in one, for an audit.

    Args:
        task: gives model, loss, data and settings.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        n_batches: how many batches the expectations take.
        seed: of the data order.

    Returns:
        Both. Cost: two gradients per batch.
    """
    classes = units_of(symmetries)
    skipped = [f"{u.name}: {reason}" for u in classes if (reason := rescaling_fails(u, symmetries))]
    balance = equipartition_residual(task, symmetries, n_batches=n_batches, seed=seed)
    return EntropyReport(entropic_loss(task, n_batches=n_batches, seed=seed), balance, tuple(skipped))


def _rescaled(symmetries: Symmetries | Sequence[Units], params: Mapping[str, Tensor]) -> tuple[Units, ...]:
    """Classes with a rescaling symmetry of which every slice is trained."""
    return tuple(
        u for u in units_of(symmetries) if not rescaling_fails(u, symmetries) and params.keys() >= set(u.parameters)
    )


def _sides(
    tensors: Mapping[str, Tensor], classes: Sequence[Units], groups: Mapping[str, Sequence[str]] | None
) -> dict[str, np.ndarray]:
    """Squared norms ``(units, 2)`` of every class, or ``(groups, 1)``."""
    if groups is not None:
        rows = [[sum(float(tensors[k].double().square().sum()) for k in members)] for members in groups.values()]
        return {"groups": np.array(rows)}
    return {
        u.name: np.stack(
            [u.rows(tensors, role).detach().double().square().sum(1).cpu().numpy() for role in ("write", "read")],
            axis=1,
        )
        for u in classes
    }


def _spread(z: np.ndarray) -> np.ndarray:
    """(max − min)/mean|·| of every row; 0 for rows of zeros."""
    size = np.abs(z).mean(1)
    return np.asarray((z.max(1) - z.min(1)) / np.where(size > 0, size, 1.0))


def _grams(tensors: Mapping[str, Tensor], units: Units) -> np.ndarray:
    """``(2, fibers, n, n)`` Gram matrices of the units, incoming and outgoing."""
    sides = []
    for role in ("write", "read"):
        rows = units.rows(tensors, role).detach().double().reshape(units.fibers, units.size, -1)
        sides.append((rows @ rows.mT).cpu().numpy())
    return np.stack(sides)
