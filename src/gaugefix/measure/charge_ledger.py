"""Keeping the books of Noether charges over real optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.charge_forms import ChargeForm
from gaugefix.measure.classes import exact_copy
from gaugefix.task import Batch, Task
from gaugefix.theory import predict_charge_step, predict_momentum_charge_step
from gaugefix.training import make_optimizer


class Ledger:
    """Real optimiser steps next to the charges that the law books for them.

    Args:
        task: on a copy of the model; it is trained.
        forms: the charges to book.
        lr: learning rates by parameter name instead of the task's; the charges are then θᵀAΛ⁻¹θ.

    Raises:
        MeasurementError: if learning rates are given with momentum, weight decay or another optimizer than SGD.
    """

    def __init__(self, task: Task, forms: Sequence[ChargeForm], lr: Mapping[str, float] | None = None) -> None:
        self.task, self.forms = task, tuple(forms)
        self.params = dict(task.model.named_parameters())
        self.exact = task.optimizer == "sgd"
        self.steps = 0
        self.rates = None if lr is None else {k: lr.get(k, task.lr) for k in self.params}
        if self.rates is None:
            self.optimizer = make_optimizer(task)
        elif not self.exact or task.momentum or task.weight_decay:
            raise MeasurementError(
                "The charge law with a learning rate per parameter is that of SGD without momentum and weight decay, "
                f"got {task.optimizer!r} with momentum {task.momentum:g} and weight decay {task.weight_decay:g}."
            )
        else:
            groups = [{"params": [p], "lr": self.rates[k]} for k, p in self.params.items()]
            self.optimizer = torch.optim.SGD(groups, lr=task.lr)
        self.predicted = {f.name: self._charge(f) for f in self.forms}

    def step(self, batch: Batch) -> None:
        """One optimiser step and its entry.

        Args:
            batch: one batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.task.loss(self.task.model, batch).mean().backward()
        before = {k: p.detach().clone() for k, p in self.params.items()}
        gradients = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in self.params.items()}
        momenta = self._momenta()
        self.optimizer.step()
        self.steps += 1
        for form in self.forms:
            self.predicted[form.name] = self._book(form, before, gradients, momenta)

    def _book(
        self, form: ChargeForm, before: dict[str, Tensor], gradients: dict[str, Tensor], momenta: dict[str, Tensor]
    ) -> np.ndarray:
        task, charge = self.task, self.predicted[form.name]
        if not self.exact:
            change = {k: self.params[k].detach() - before[k] for k in form.parameters}
            return np.asarray(charge + form.inner(change, change))
        if self.rates is not None:
            scaled = self._weighted(gradients, 0.5)
            return np.asarray(charge + form.inner(scaled, scaled))
        if task.momentum == 0:
            pull = form.inner(gradients, gradients)
            return predict_charge_step(charge, pull, lr=task.lr, weight_decay=task.weight_decay)
        full = {k: g + task.weight_decay * before[k] for k, g in gradients.items()}
        return predict_momentum_charge_step(
            charge,
            form.inner(before, before),
            form.inner(full, full),
            form.inner(momenta, full),
            lr=task.lr,
            momentum=task.momentum,
            weight_decay=task.weight_decay,
        )

    def law(self, name: str) -> tuple[str, int, np.ndarray, np.ndarray, float, bool]:
        """The books of one form.

        Args:
            name: of the form.

        Returns:
            Name, steps, predicted and measured charges, their largest difference relative to `ChargeForm.size`, and
            whether the law is a theorem for the optimizer.
        """
        form = next(f for f in self.forms if f.name == name)
        predicted, measured = self.predicted[name], self._charge(form)
        scale = form.size(self._at_charge()) or 1.0
        error = float(np.max(np.abs(predicted - measured))) / scale
        return name, self.steps, predicted, measured, error, self.exact

    def _charge(self, form: ChargeForm) -> np.ndarray:
        at = self._at_charge()
        return form.inner(at, at)

    def _at_charge(self) -> dict[str, Tensor]:
        """The point whose charge the law is about: shifted against the momentum, or weighted by learning rates."""
        params = {k: p.detach() for k, p in self.params.items()}
        if self.rates is not None:
            return self._weighted(params, -0.5)
        shift = self.task.lr * self.task.momentum / (1 - self.task.momentum) if self.exact else 0.0
        momenta = self._momenta()
        return {k: p - shift * momenta[k] for k, p in params.items()}

    def _weighted(self, tensors: Mapping[str, Tensor], power: float) -> dict[str, Tensor]:
        assert self.rates is not None
        return {k: t * self.rates[k] ** power for k, t in tensors.items()}

    def _momenta(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        buffers = {k: state[p].get("momentum_buffer") if p in state else None for k, p in self.params.items()}
        return {k: torch.zeros_like(self.params[k]) if b is None else b.clone() for k, b in buffers.items()}


def run_ledger(
    task: Task, forms: Sequence[ChargeForm], *, steps: int, seed: int, lr: Mapping[str, float] | None = None
) -> Ledger:
    """Book minibatch steps on a copy of the model.

    Args:
        task: gives model, loss, data and optimiser.
        forms: the charges to book.
        steps: number of minibatch steps.
        seed: of the data order.
        lr: learning rates by parameter name.

    Returns:
        The ledger.
    """
    clone = exact_copy(task)
    clone.model.train(task.model.training)
    ledger = Ledger(clone, forms, lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout in a model left in training mode
        while ledger.steps < steps:
            for batch in clone.batch_iter(seed + ledger.steps):
                ledger.step(batch)
                if ledger.steps == steps:
                    break
    return ledger
