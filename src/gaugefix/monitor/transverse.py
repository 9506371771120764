"""Watch whether a run is falling onto a plane: the Lyapunov exponent of its normal directions, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gaugefix.errors import MeasurementError
from gaugefix.measure import Record
from gaugefix.measure.tangent_path import Directions, TangentPath, as_mirror
from gaugefix.task import Batch, Task
from gaugefix.theory import LyapunovAccumulator, verdict


@dataclass(frozen=True)
class TransverseExponent(Record):
    """Growth per step of an infinitesimal distance to a plane along a run.

    Attributes:
        value: Λ; negative: the run falls onto the plane.
        stderr: its standard error from blocks of successive steps; nan for a few steps.
        verdict: "collapses", "escapes", or "undecided" below two standard errors.
        steps: that were counted.
        distance: relative distance of the model to the plane at the last step.
        type2_residual: largest normal part of the gradient on the plane; rounding if it is that of a symmetry.
    """

    value: float
    stderr: float
    verdict: str
    steps: int
    distance: float
    type2_residual: float


class TransverseMonitor:
    """Carries a normal vector along a training loop of your own; the model is read and never changed.

    At every step the weights are projected on the plane and v ← v − lr·(H_B v + λv) takes the Hessian of the minibatch
    that trains the model, with the learning rate, weight decay and momentum that the optimiser has at that moment.

    Args:
        task: gives the model that is trained and its per-sample loss.
        invariant_set: a mirror, or `ZeroNeuron`, `TiedNeurons`, `ZeroRank` of `gaugefix.measure`, or a matrix.
        optimizer: ``torch.optim.SGD`` of that model.
        burn_in: steps left out while v turns to the leading direction.
        seed: of the first v.

    Raises:
        MeasurementError: if the optimiser is not SGD, or dampening or Nesterov momentum are used.

    Cost: about three minibatch gradients per step.

    Source: arXiv 2303.13093 (algorithm A).

    Example:
        >>> from torch import nn
        >>> from gaugefix.measure import TiedNeurons
        >>> x = torch.randn(64, 3)
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> task = Task(model, lambda m, b: m(b).square()[:, 0], lambda: iter(x.split(8)),
        ...             lr=0.1, weight_decay=0.1, batch_size=8)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> monitor = TransverseMonitor(task, TiedNeurons("0", "2", 0, 1), sgd, burn_in=10)
        >>> for _ in range(20):
        ...     for batch in x.split(8):
        ...         growth = monitor.step(batch)
        ...         sgd.zero_grad()
        ...         task.loss(model, batch).mean().backward()
        ...         sgd.step()
        >>> monitor.result().verdict
        'collapses'
    """

    def __init__(
        self,
        task: Task,
        invariant_set: Directions,
        optimizer: torch.optim.Optimizer,
        *,
        burn_in: int = 100,
        seed: int = 0,
    ) -> None:
        for group in optimizer.param_groups:
            if not isinstance(optimizer, torch.optim.SGD) or group.get("nesterov") or group.get("dampening"):
                raise MeasurementError(
                    f"TransverseMonitor follows torch.optim.SGD without Nesterov momentum and dampening, got "
                    f"{type(optimizer).__name__}: the step of others is no linear function of the gradient."
                )
        mirror = as_mirror(invariant_set, task)
        params = dict(task.model.named_parameters())
        moved = {id(params[k]) for k in mirror.parameters}
        self._groups = [g for g in optimizer.param_groups if moved.intersection(map(id, g["params"]))]
        self._task = task
        self._path = TangentPath(task, mirror, frozen=True, seed=seed)
        self._total = LyapunovAccumulator(burn_in=burn_in)

    def step(self, batch: Batch) -> float:
        """Count one step; call it with the batch before ``optimizer.step()``.

        Args:
            batch: what the model is about to be trained on.

        Returns:
            Growth of log‖v‖ in this step.

        Raises:
            MeasurementError: if the parameters of the plane are in groups with different settings.
        """
        settings = {(g["lr"], g["weight_decay"], g["momentum"]) for g in self._groups}
        if len(settings) != 1:
            raise MeasurementError(
                f"TransverseMonitor: the parameters of the plane have {len(settings)} different (lr, weight_decay, "
                "momentum); give them one group."
            )
        lr, decay, momentum = map(float, settings.pop())
        live = {k: p.detach() for k, p in self._task.model.named_parameters()}
        with torch.random.fork_rng(devices=[]):
            growth = self._path.follow(live, batch, lr=lr, weight_decay=decay, momentum=momentum)
        self._total.add(growth)
        return growth

    def result(self) -> TransverseExponent:
        """The exponent so far.

        Returns:
            With its error bar and verdict.
        """
        found = self._total.result()
        value, stderr = float(found.value), float(found.stderr)
        return TransverseExponent(
            value, stderr, verdict(value, stderr), found.steps, self._path.distance, self._path.type2_residual
        )
