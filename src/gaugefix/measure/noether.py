"""Noether charges of rescalings and general linear groups, and where gradient noise brings them to rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.charge_forms import ChargeForm, side_rows, symmetry_form
from gaugefix.measure.charge_ledger import run_ledger
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.moments import collect_moments
from gaugefix.measure.perexample import per_sample_gradients, trainable
from gaugefix.measure.records import Record
from gaugefix.measure.settle import first_samples
from gaugefix.symmetry import Symmetries, Symmetry
from gaugefix.symmetry.groups import Diagonal, Rotation
from gaugefix.task import Task
from gaugefix.theory import matrix_equilibrium, rescaling_equilibrium


@dataclass(frozen=True, eq=False)
class NoetherCharge(Record):
    """Charges θᵀAθ of one symmetry, conserved by gradient flow.

    Attributes:
        name: of the symmetry.
        group: the group.
        kind: "scale" or "matrix".
        charge: ``(n,)`` Σ q‖θ_q‖² of n rescalings, or ``(fibers, n, n)`` θ₊θ₊ᵀ − θ₋θ₋ᵀ, for a
            head W_Q W_Qᵀ − W_K W_Kᵀ up to sign.
        size: largest Σ|q|‖θ_q‖² of a unit or fiber.
    """

    name: str
    group: str
    kind: str
    charge: np.ndarray
    size: float


@dataclass(frozen=True, eq=False)
class NoetherLaw(Record):
    """The one-step law of one symmetry's charges, held against real steps.

    Attributes:
        name: of the symmetry.
        steps: number of optimiser steps.
        predicted: charges that the law gives after all the steps, in the shape of `NoetherCharge.charge`.
        measured: charges of the parameters after them.
        error: largest |predicted − measured| relative to `NoetherCharge.size`.
        exact: whether the law is a theorem for this optimiser.
    """

    name: str
    steps: int
    predicted: np.ndarray
    measured: np.ndarray
    error: float
    exact: bool


@dataclass(frozen=True, eq=False)
class NoiseEquilibrium(Record):
    """How far one symmetry's orbit is from the point where gradient noise leaves its charges at rest.

    Attributes:
        name: of the symmetry.
        group: the group.
        kind: "scale" or "matrix".
        shift: ``(n,)`` c by which the log-scale of every unit has to move (slices by e^{qc}), or ``(fibers, n)`` the
            logarithms of the eigenvalues of the map; infinite where no point of the orbit is at rest.
        distance: root mean square of the finite shifts; 0 at the equilibrium; nan if none is finite.
        imbalance: ``(n,)`` or ``(fibers,)`` relative difference of the noise of the two sides now, in [−1, 1].
        maps: ``(fibers, n, n)`` symmetric maps of a general linear group, for `Symmetry.apply`; else None.
        n_samples: number of samples of the noise.
        valid: whether every shift is finite.
        reason: why not, or "".
    """

    name: str
    group: str
    kind: str
    shift: np.ndarray
    distance: float
    imbalance: np.ndarray
    maps: np.ndarray | None = field(repr=False)
    n_samples: int
    valid: bool
    reason: str


def noether_charges(params: Mapping[str, Tensor], symmetries: Symmetries) -> tuple[NoetherCharge, ...]:
    """Charges of all rescalings and general linear groups: units, heads, adapters (arXiv 2402.07193).

    Args:
        params: parameters by name.
        symmetries: what `find_symmetries` gave.

    Returns:
        One entry per symmetry that has charges.

    Example:
        >>> from torch import nn
        >>> from gaugefix import find_symmetries
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
        >>> found = find_symmetries(net, (torch.ones(1, 2),))
        >>> [c.charge.shape for c in noether_charges(dict(net.named_parameters()), found)]
        [(1, 3, 3)]
    """
    return tuple(
        NoetherCharge(f.name, f.group, _kind(f.inner(params, params)), f.inner(params, params), f.size(params))
        for f in _forms(symmetries, params)
    )


def check_noether_law(
    task: Task, symmetries: Symmetries, *, steps: int = 10, lr: Mapping[str, float] | None = None, seed: int = 0
) -> tuple[NoetherLaw, ...]:
    """Hold the exact one-step law of every charge against real minibatch steps on a copy of the model.

    SGD: C' = (1 − ηλ)² C + η² Ĉ with Ĉ the same form of the minibatch gradient (a matrix for a general linear group);
    with momentum the charge of θ − (ημ/(1−μ))m is compared. With ``lr`` the charge is θᵀAΛ⁻¹θ and C' = C + ĝᵀAΛĝ. For
    Adam the prediction is the second-order part alone, and the error is the first-order drift (arXiv 2402.07193).

    Args:
        task: gives model, loss, data and optimiser.
        symmetries: what `find_symmetries` gave.
        steps: number of minibatch steps.
        lr: learning rates by parameter name where they differ from the task's; plain SGD only.
        seed: of the data order.

    Returns:
        One law per symmetry that has charges.

    Raises:
        MeasurementError: if ``steps`` < 1, or ``lr`` is given for another optimiser than plain SGD.
    """
    if steps < 1:
        raise MeasurementError(f"check_noether_law: steps must be at least 1, got {steps!r}.")
    if lr is not None and (task.optimizer != "sgd" or task.momentum or task.weight_decay):
        raise MeasurementError(
            "check_noether_law: lr by parameter needs SGD without momentum and weight decay, got "
            f"{task.optimizer!r}, momentum {task.momentum:g}, weight decay {task.weight_decay:g}."
        )
    forms = _forms(symmetries, dict(task.model.named_parameters()))
    ledger = run_ledger(task, forms, steps=steps, seed=seed, lr=lr)
    return tuple(NoetherLaw(*ledger.law(f.name)) for f in forms)


def noise_equilibrium(
    task: Task, symmetries: Symmetries, *, weight_decay: bool = False, max_samples: int = 2048, seed: int = 0
) -> tuple[NoiseEquilibrium, ...]:
    """The point of every orbit at which gradient noise leaves the charges at rest, and the distance to it.

    Rescaling: e^{4c} = Tr C_u/Tr C_w. General linear group: A² = K^(−½)(K^½PK^½)^½K^(−½) with the covariances P and K
    of the two sides summed over the other axis. SGD goes there from any start (arXiv 2402.07193, 2308.06671).

    Args:
        task: gives model, loss and data, and T = lr/batch_size where weight decay counts.
        symmetries: what `find_symmetries` gave.
        weight_decay: take the task's weight decay into account, which pulls to equal norms (rescalings only).
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        One entry per two-sided rescaling and general linear group whose parameters are trainable. Cost: moments of
        the per-sample gradients; for general linear groups the gradients of their parameters for every sample.
    """
    copy = exact_copy(task)
    params = {k: p.detach() for k, p in trainable(copy.model).items()}
    groups = [s for s in symmetries if symmetry_form(s) is not None and all(p in params for p in s.parameters)]
    moments = collect_moments(copy, max_samples=max_samples, seed=seed, diagonal=True)
    n = moments.count
    trace = {k: (d / n - (moments.total[k] / n).square()).clamp(min=0) for k, d in (moments.diagonal or {}).items()}
    rotations = [s for s in groups if isinstance(s, Rotation) and len(set(s.polarity)) == 2]
    sides = _matrix_sides(copy, rotations, max_samples, seed) if rotations else {}
    decay = task.weight_decay if weight_decay else 0.0
    found = []
    for s in groups:
        if isinstance(s, Diagonal) and len({np.sign(q) for _, q in s.charges}) == 2 and not s.mean_zero:
            noise, norms = _by_charge(s, trace), _by_charge(s, {k: p.square() for k, p in params.items()})
            c = rescaling_equilibrium(noise, norms, temperature=task.lr / task.batch_size, weight_decay=decay)
            found.append(_entry(s, "scale", c, _imbalance(noise), None, n))
        elif s.name in sides:
            plus, minus = sides[s.name]
            maps = np.stack([matrix_equilibrium(p, k) for p, k in zip(plus, minus, strict=True)])
            logs = np.stack([
                np.log(np.linalg.eigvalsh(m)) if np.isfinite(m).all() else 0 * m[0] + np.nan for m in maps
            ])
            both = {1.0: np.trace(plus, axis1=1, axis2=2), -1.0: np.trace(minus, axis1=1, axis2=2)}
            found.append(_entry(s, "matrix", logs, _imbalance(both), maps, n))
    return tuple(found)


def _entry(
    s: Symmetry, kind: str, shift: np.ndarray, imbalance: np.ndarray, maps: np.ndarray | None, n: int
) -> NoiseEquilibrium:
    finite = np.isfinite(shift)
    distance = float(np.sqrt(np.mean(shift[finite] ** 2))) if finite.any() else float("nan")
    reason = "" if finite.all() else f"{int((~finite).sum())} of {shift.size} directions have noise on one side only"
    return NoiseEquilibrium(s.name, s.group, kind, shift, distance, imbalance, maps, n, not reason, reason)


def _imbalance(noise: Mapping[float, np.ndarray]) -> np.ndarray:
    total = sum(abs(q) * v for q, v in noise.items())
    return np.asarray(sum(q * v for q, v in noise.items()) / np.where(total > 0, total, 1.0))


def _by_charge(s: Diagonal, values: Mapping[str, Tensor]) -> dict[float, np.ndarray]:
    """Sum of the values of every unit's entries, by charge, ``(n,)``."""
    out: dict[float, np.ndarray] = {}
    for slice_, q in s.charges:
        part = side_rows(slice_, values).sum(2).reshape(-1).cpu().numpy()
        out[q] = out[q] + part if q in out else part
    return out


def _matrix_sides(
    copy: Task, groups: list[Rotation], max_samples: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Covariances of the two sides of general linear groups, summed over the other axis, ``(fibers, n, n)`` each."""
    names = list(dict.fromkeys(p for s in groups for p in s.parameters))
    second: dict[tuple[str, int], Tensor] = {}
    total: dict[str, Tensor] = {}
    count = 0
    with torch.random.fork_rng(devices=[]):
        for batch in first_samples(copy, max_samples, seed):
            for _, each in per_sample_gradients(copy, batch, names):
                count += len(each[names[0]])
                for k, rows in each.items():
                    total[k] = total[k] + rows.sum(0) if k in total else rows.sum(0)
                for s in groups:
                    for sign in (1, -1):
                        part = torch.stack([_moment(s, sign, g) for g in _samples(each)]).sum(0)
                        key = (s.name, sign)
                        second[key] = second[key] + part if key in second else part
    mean = {k: t / count for k, t in total.items()}
    out = {}
    for s in groups:
        plus, minus = (second[s.name, sign] / count - _moment(s, sign, mean) for sign in (1, -1))
        out[s.name] = (plus.cpu().numpy(), minus.cpu().numpy())
    return out


def _samples(each: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    n = len(next(iter(each.values())))
    return [{k: rows[i] for k, rows in each.items()} for i in range(n)]


def _moment(s: Rotation, sign: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """Σ over the slices of one side of rows times rowsᵀ."""
    assert s.units is not None
    rows = [side_rows(x, tensors) for x, p in zip(s.units.slices, s.polarity, strict=True) if p == sign]
    return torch.stack([r @ r.mT for r in rows]).sum(0)


def _forms(symmetries: Symmetries, params: Mapping[str, Tensor]) -> list[ChargeForm]:
    found = [symmetry_form(s) for s in symmetries]
    return [f for f in found if f is not None and all(p in params for p in f.parameters)]


def _kind(charge: np.ndarray) -> str:
    return "matrix" if charge.ndim == 3 else "scale"
