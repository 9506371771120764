"""Noether charges of the rescaling symmetries, and the exact law by which SGD moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy, rescaling_fails, units_of
from gaugefix.measure.records import Record
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task
from gaugefix.theory import predict_charge_step, predict_momentum_charge_step
from gaugefix.training import make_optimizer


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
    change = {k: after[k].detach() - before[k].detach() for k in units.parameters}
    return 2 * _inner(before, change, units), _inner(change, change, units)


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
    clone = exact_copy(task)
    clone.model.train(task.model.training)
    ledger = _Ledger(clone, classes)
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout in a model left in training mode
        while done < steps:
            for batch in clone.batch_iter(seed + done):
                ledger.step(batch)
                done += 1
                if done == steps:
                    break
    return ChargeReport(start, tuple(ledger.law(u, done) for u in classes))


class _Ledger:
    """Real optimiser steps next to the charges that the law books for them."""

    def __init__(self, task: Task, classes: Sequence[Units]) -> None:
        self.task, self.classes = task, classes
        self.params = dict(task.model.named_parameters())
        self.optimizer = make_optimizer(task)
        self.exact = task.optimizer == "sgd"
        self.predicted = {u.name: self._charge(u) for u in classes}

    def step(self, batch: object) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.task.loss(self.task.model, batch).mean().backward()
        before = {k: p.detach().clone() for k, p in self.params.items()}
        gradients = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in self.params.items()}
        momenta = self._momenta()
        self.optimizer.step()
        for u in self.classes:
            self.predicted[u.name] = self._book(u, before, gradients, momenta)

    def _book(
        self, units: Units, before: dict[str, Tensor], gradients: dict[str, Tensor], momenta: dict[str, Tensor]
    ) -> np.ndarray:
        task, charge = self.task, self.predicted[units.name]
        if not self.exact:
            return np.asarray(charge + charge_decomposition(before, self.params, units)[1])
        if task.momentum == 0:
            pull = _inner(gradients, gradients, units)
            return predict_charge_step(charge, pull, lr=task.lr, weight_decay=task.weight_decay)
        full = {k: g + task.weight_decay * before[k] for k, g in gradients.items()}
        return predict_momentum_charge_step(
            charge,
            _inner(before, before, units),
            _inner(full, full, units),
            _inner(momenta, full, units),
            lr=task.lr,
            momentum=task.momentum,
            weight_decay=task.weight_decay,
        )

    def law(self, units: Units, steps: int) -> ChargeLaw:
        predicted, measured = self.predicted[units.name], self._charge(units)
        total = sum(_norms_sq(self.params, units))
        scale = float(np.max(total)) or 1.0
        error = float(np.max(np.abs(predicted - measured))) / scale
        return ChargeLaw(units.name, steps, predicted, measured, error, self.exact)

    def _charge(self, units: Units) -> np.ndarray:
        """Q of the parameters, shifted against the momentum if there is any."""
        shift = self.task.lr * self.task.momentum / (1 - self.task.momentum) if self.exact else 0.0
        momenta = self._momenta()
        shifted = {k: p.detach() - shift * momenta[k] for k, p in self.params.items()}
        return _inner(shifted, shifted, units)

    def _momenta(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        buffers = {k: state[p].get("momentum_buffer") if p in state else None for k, p in self.params.items()}
        return {k: torch.zeros_like(self.params[k]) if b is None else b.clone() for k, b in buffers.items()}


def _balance(params: Mapping[str, Tensor], units: Units, reason: str) -> UnitBalance:
    outgoing, incoming = _norms_sq(params, units)
    charge, total = outgoing - incoming, outgoing + incoming
    imbalance = charge / np.where(total > 0, total, 1.0)
    return UnitBalance(units.name, incoming, outgoing, charge, imbalance, not reason, reason)


def _norms_sq(params: Mapping[str, Tensor], units: Units) -> tuple[np.ndarray, np.ndarray]:
    """‖u‖² and ‖w‖² of every unit."""
    u, w = (units.rows(params, role).detach().double() for role in ("read", "write"))
    return u.square().sum(1).cpu().numpy(), w.square().sum(1).cpu().numpy()


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor], units: Units) -> np.ndarray:
    """⟨a_u, b_u⟩ − ⟨a_w, b_w⟩ of every unit, the indefinite form that the charge is the square of."""
    u = (units.rows(a, "read") * units.rows(b, "read")).detach().double().sum(1)
    w = (units.rows(a, "write") * units.rows(b, "write")).detach().double().sum(1)
    return np.asarray((u - w).cpu().numpy())
