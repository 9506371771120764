"""The weight decay at which a deep network dies at a jump, by following its live branch on a copy.

With two or more hidden layers the zero state is locally stable at every λ > 0 (arXiv 2205.12510, 2202.04777), so no
local number at zero tells when training dies: it dies where the live branch ends, at the spinodal, and all layers at
once. That point is found by descent on a copy at a sequence of weight decays.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.measure import Record
from gaugefix.measure.classes import single_precision_copy, units_of
from gaugefix.measure.settle import first_samples
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task

_MOMENTUM = 0.9
_CHECK = 25  # steps between two looks
_DEAD = 1e-2  # of the squared norm at the start
_STILL = 1e-3  # relative change of the squared norm between two looks below which a live state has arrived


@dataclass(frozen=True)
class NetworkThreshold(Record):
    """Weight decay above which no live state is left.

    Attributes:
        lambda_c: middle of the bracket, geometric; nan if none was found.
        alive_at: largest weight decay at which the network stayed alive.
        dead_at: smallest at which it died.
        uncertainty: half the width of the bracket.
        norms: ``(k, 2)`` every weight decay tried, with the squared norm left there relative to the start.
        steps: full-batch gradient steps taken in all.
        converged: whether the bracket is as narrow as was asked for and every run was decided.
        reason: what limits it, or why there is none.
    """

    lambda_c: float
    alive_at: float
    dead_at: float
    uncertainty: float
    norms: np.ndarray
    steps: int
    converged: bool
    reason: str


def whole_network_threshold(
    task: Task,
    symmetries: Symmetries | Sequence[Units],
    *,
    tolerance: float = 0.05,
    max_steps: int = 2000,
    fresh: bool = False,
    upper: float | None = None,
    max_samples: int = 2048,
    seed: int = 0,
) -> NetworkThreshold:
    """Weight decay at which the whole network dies, by full-batch descent with bisection.

    Every run is gradient descent with momentum 0.9 on a copy, at the task's learning rate. It is over when the squared
    norm of the units has fallen below 1 % of the start (dead) or stands still (alive). A run starts from the last live
    state, so that it follows the live branch up to its end; the present weights have to lie on that branch. Gradient
    noise, which is not in these runs, lets a network die somewhat earlier.

    Args:
        task: gives model, loss, data and learning rate; nothing of it is changed.
        symmetries: what `find_symmetries` gave, or the classes of units themselves.
        tolerance: relative width of the bracket to stop at.
        max_steps: full-batch steps for each weight decay.
        fresh: start every run from the present weights instead, with the momentum of the task: for an untrained model
            that is the weight decay above which training does not start, which is lower (hysteresis) and depends on
            the initial scale.
        upper: a weight decay at which the network is known to die, to save the search for one.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The threshold with its bracket. Cost: about log₂(width/tolerance) runs of up to ``max_steps`` gradients.

    Example:
        >>> import torch
        >>> w = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for p in w.parameters():
        ...     _ = nn.init.ones_(p)
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> chain = Task(w, lambda m, b: (m(b[0]) - b[0]).square().sum(1) / 2, lambda: [(x,)],
        ...              lr=0.1, weight_decay=0.01, batch_size=2)
        >>> import numpy as np
        >>> from gaugefix.symmetry import Slice
        >>> slices = (Slice("0.weight", 0, np.zeros((1, 1, 1), int), "write"),)
        >>> found = whole_network_threshold(chain, [Units("0", 1, 1, slices)], tolerance=0.02)
        >>> bool(abs(found.lambda_c - 0.4725) < 0.01)  # s(1 − s³) is at most 3/4^(4/3)
        True
    """
    reason = _limits(task, symmetries)
    if reason:
        return NetworkThreshold(np.nan, np.nan, np.nan, np.nan, np.zeros((0, 2)), 0, False, reason)
    copy = single_precision_copy(task)
    names = {s.param for u in units_of(symmetries) for s in u.slices}
    run = _Runs(copy, names, list(first_samples(copy, max_samples, seed)), max_steps,
                task.momentum if fresh else _MOMENTUM)  # fmt: skip
    start = copy.model
    reference = max(_squared_norm(start, names), 1e-30)
    low, high, undecided, tried = 0.0, upper or np.inf, False, []
    state, decay = start, task.weight_decay or 1e-4
    while high > low * (1 + tolerance):
        end, size, decided = run(state if not fresh else start, decay, reference)
        tried.append((decay, size))
        undecided |= not decided
        if size > _DEAD:
            low, state = decay, end
        else:
            high = decay
        if high < 1e-7 or low > 1e4:
            break
        decay = 2 * low if np.isinf(high) else high / 4 if low == 0 else float(np.sqrt(low * high))
    found = low > 0 and np.isfinite(high)
    notes = [] if found else ["no live state" if low == 0 else "no weight decay kills it"]
    notes += ["a run near the threshold was not decided: its bracket leans on the trend"] if undecided else []
    centre = float(np.sqrt(low * high)) if found else np.nan
    return NetworkThreshold(
        centre, low, high, (high - low) / 2 if found else np.nan, np.array(tried), run.steps, found and not undecided,
        "; ".join(notes),
    )  # fmt: skip


class _Runs:
    """Full-batch descent on copies, and how many steps it took in all."""

    def __init__(self, task: Task, names: set[str], batches: list[object], max_steps: int, momentum: float) -> None:
        self.task, self.names, self.batches = task, names, batches
        self.max_steps, self.momentum = max_steps, momentum
        self.steps = 0

    def __call__(self, start: nn.Module, decay: float, reference: float) -> tuple[nn.Module, float, bool]:
        """Final state, its squared norm relative to the reference, and whether it is dead or at rest."""
        model = copying.deepcopy(start)
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.task.lr, momentum=self.momentum, weight_decay=decay,
        )  # fmt: skip
        before = size = _squared_norm(model, self.names) / reference
        for step in range(1, self.max_steps + 1):
            optimizer.zero_grad()
            self._mean_loss(model).backward()
            optimizer.step()
            self.steps += 1
            if step % _CHECK:
                continue
            before, size = size, _squared_norm(model, self.names) / reference
            if not np.isfinite(size) or size < _DEAD:
                return model, 0.0 if not np.isfinite(size) else size, True
            if step > 2 * _CHECK and abs(size - before) < _STILL * size:
                return model, size, True
        return model, size if size >= before * (1 - 10 * _STILL) else 0.0, False

    def _mean_loss(self, model: nn.Module) -> Tensor:
        parts = [self.task.loss(model, b) for b in self.batches]
        return torch.cat(parts).mean()


def _squared_norm(model: nn.Module, names: set[str]) -> float:
    return sum(float(p.detach().square().sum()) for k, p in model.named_parameters() if k in names)


def _limits(task: Task, symmetries: Symmetries | Sequence[Units]) -> str:
    if task.optimizer != "sgd":
        return f"{task.optimizer} does not follow the gradient of the penalised loss"
    classes = units_of(symmetries)
    if not classes:
        return "no class of units"
    normalised = [u.name for u in classes if u.gains or "normalised" in u.flags]
    if normalised:
        return f"decay is a gauge in {normalised[0]!r}: a normalised network does not die of it as a whole"
    return ""
