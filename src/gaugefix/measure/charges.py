"""Noether charges of the rescaling symmetries, and the exact law by which SGD moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.charge_forms import unit_form
from gaugefix.measure.charge_ledger import run_ledger
from gaugefix.measure.classes import rescaling_fails, units_of
from gaugefix.measure.records import Record
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task


@dataclass(frozen=True, eq=False)
class UnitBalance(Record):
    """Balance of one class of units (n = fibers * size).

    Attributes:
        name: of the class.
        incoming: ``(n,)`` ‖w‖², bias included.
        outgoing: ``(n,)`` ‖u‖².
        charge: ``(n,)`` Q = ‖u‖² − ‖w‖², conserved by gradient flow where `applies`.
        imbalance: ``(n,)`` Q / (‖u‖² + ‖w‖²) in [−1, 1]; 0 for a unit of zero size.
        applies: whether rescaling is a symmetry of the class, so that the charge has a law.
        reason: why not, or "".
    """

    name: str
    incoming: np.ndarray
    outgoing: np.ndarray
    charge: np.ndarray
    imbalance: np.ndarray
    applies: bool
    reason: str


@dataclass(frozen=True, eq=False)
class ChargeLaw(Record):
    """The one-step law of one class, held against real steps.

    Attributes:
        name: of the class.
        steps: number of optimiser steps.
        predicted: ``(n,)`` charges that the law gives after all the steps.
        measured: ``(n,)`` charges of the parameters after them.
        error: largest |predicted − measured| over the class, relative to the largest ‖u‖² + ‖w‖².
        exact: whether the law is a theorem for this optimiser (SGD, with or without momentum); for Adam the
            prediction leaves out the first-order term and the error says how large it is.
    """

    name: str
    steps: int
    predicted: np.ndarray
    measured: np.ndarray
    error: float
    exact: bool


@dataclass(frozen=True, eq=False)
class ChargeReport(Record):
    """Balance now, and the law that moves it.

    Attributes:
        units: one entry per class.
        law: one entry per class for which the law applies.
    """

    units: tuple[UnitBalance, ...]
    law: tuple[ChargeLaw, ...]


def balance(params: Mapping[str, Tensor], symmetries: Symmetries | Sequence[Units]) -> tuple[UnitBalance, ...]:
    """Norms of the two sides of every unit and the charge Q = ‖u‖² − ‖w‖² (arXiv 2308.06671).

    Args:
        params: parameters by name.
        symmetries: what `find_symmetries` gave, or the classes themselves (then the activation decides).

    Returns:
        One entry per class that has parameters; classes without the symmetry say why.

    Example:
        >>> from gaugefix.symmetry import Slice
        >>> import torch
        >>> index = np.arange(2).reshape(1, 2, 1)
        >>> hidden = Units("0", 2, 1, (Slice("w", 0, index, "write"), Slice("u", 1, index, "read")), "relu")
        >>> balance({"w": torch.eye(2), "u": 2 * torch.eye(2)}, [hidden])[0].charge
        array([3., 3.])
    """
    return tuple(_balance(params, u, rescaling_fails(u, symmetries)) for u in units_of(symmetries) if u.slices)


def charge_decomposition(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], units: Units
) -> tuple[np.ndarray, np.ndarray]:
    """Split the change of the charge in one step: Q' − Q = 2(⟨u, Δu⟩ − ⟨w, Δw⟩) + (‖Δu‖² − ‖Δw‖²).

    Under SGD without weight decay the first bracket is zero by the symmetry; under Adam it is what moves the charge.

    Args:
        before: parameters before the step.
        after: parameters after it.
        units: the class.

    Returns:
        The first-order and the second-order part, ``(n,)`` each.
    """
    form = unit_form(units)
    change = {k: after[k].detach() - before[k].detach() for k in units.parameters}
    return 2 * form.inner(before, change), form.inner(change, change)


def check_charge_law(
    task: Task, symmetries: Symmetries | Sequence[Units], *, steps: int = 10, seed: int = 0
) -> ChargeReport:
    """Hold the exact one-step law against real minibatch steps on a copy of the model.

    Plain SGD: Q' = (1 − ηλ)² Q + η²(‖ĝ_u‖² − ‖ĝ_w‖²); with momentum the charge of the shifted parameters
    θ − (ημ/(1−μ))m is compared. In float64 the error is rounding, ~1e-15; more means that the class lacks the
    symmetry or that something else moves the parameters (arXiv 2308.06671, exact discrete law).

    For Adam and AdamW there is no such law: the prediction is the second-order part alone, Q + Σ(‖Δu‖² − ‖Δw‖²),
    and the error is the first-order drift that it lacks.

    Args:
        task: gives model, loss, data and optimiser.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        steps: number of minibatch steps.
        seed: of the data order.

    Returns:
        The balance at the start, and one law per class where rescaling is a symmetry.

    Raises:
        MeasurementError: if ``steps`` < 1.

    Example:
        >>> from gaugefix import load_task
        >>> from gaugefix.symmetry import Slice
        >>> index = np.arange(64).reshape(1, 64, 1)
        >>> slices = (Slice("0.weight", 0, index, "write"), Slice("0.bias", 0, index, "write"),
        ...           Slice("2.weight", 1, index, "read"))
        >>> report = check_charge_law(load_task("digits-mlp"), [Units("0", 64, 1, slices, "relu")])
        >>> report.law[0].error < 1e-12
        True
    """
    if steps < 1:
        raise MeasurementError(f"check_charge_law: steps must be at least 1, got {steps!r}.")
    start = balance(dict(task.model.named_parameters()), symmetries)
    applies = {b.name for b in start if b.applies}
    classes = [u for u in units_of(symmetries) if u.name in applies]
    if not classes:
        return ChargeReport(start, ())
    ledger = run_ledger(task, [unit_form(u) for u in classes], steps=steps, seed=seed)
    return ChargeReport(start, tuple(ChargeLaw(*ledger.law(form.name)) for form in ledger.forms))


def _balance(params: Mapping[str, Tensor], units: Units, reason: str) -> UnitBalance:
    outgoing, incoming = _norms_sq(params, units)
    charge, total = outgoing - incoming, outgoing + incoming
    imbalance = charge / np.where(total > 0, total, 1.0)
    return UnitBalance(units.name, incoming, outgoing, charge, imbalance, not reason, reason)


def _norms_sq(params: Mapping[str, Tensor], units: Units) -> tuple[np.ndarray, np.ndarray]:
    """‖u‖² and ‖w‖² of every unit."""
    u, w = (units.rows(params, role).detach().double() for role in ("read", "write"))
    return u.square().sum(1).cpu().numpy(), w.square().sum(1).cpu().numpy()
