"""The settings of a compression, checked before anything is trained or written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gaugefix.control.compression.constrain import METHODS, Method
from gaugefix.control.impose.checks import check_strength
from gaugefix.control.state import check_model
from gaugefix.errors import ControlError
from gaugefix.task import Task

_REFIT = 4  # passes of the refit: the constrained ones divided by this


@dataclass(frozen=True)
class Plan:
    """The settings of a run; what a checkpoint must agree with. The fields are the arguments of `compress`."""

    task: str
    method: Method
    strength: float
    epochs: int
    pretrain: int
    refit: int
    keep: float | None
    only: tuple[str, ...] | None
    tolerance: float | None
    factor_lr: float | None
    seed: int


def make_plan(
    task: Task,
    method: Method,
    strength: float,
    epochs: int | None,
    pretrain: int,
    refit: int | None,
    keep: float | None,
    only: Sequence[str] | None,
    tolerance: float | None,
    factor_lr: float | None,
    run: str | None,
    seed: int,
) -> Plan:
    """Fill in what was left out and refuse what is out of range.

    Args:
        task: as the others an argument of `compress`.
        method: as there.
        strength: as there.
        epochs: as there.
        pretrain: as there.
        refit: as there.
        keep: as there.
        only: as there.
        tolerance: as there.
        factor_lr: as there.
        run: as there.
        seed: as there.

    Returns:
        The settings.

    Raises:
        ControlError: if one is out of range.
    """
    if not isinstance(task, Task):
        raise ControlError(f"compress: a gaugefix.Task is needed, with loss and batches, got {type(task).__name__}.")
    if method not in METHODS:
        raise ControlError(f"compress: method must be one of {', '.join(METHODS)}, got {method!r}.")
    passes = task.epochs if epochs is None else epochs
    after = -(-passes // _REFIT) if refit is None else refit
    for name, value, least in (("epochs", passes, 1), ("pretrain", pretrain, 0), ("refit", after, 0)):
        if not isinstance(value, int) or value < least:
            why = f" The task {task.name!r} says {task.epochs}." if name == "epochs" and epochs is None else ""
            raise ControlError(f"compress: {name} must be an integer >= {least}, got {value!r}.{why}")
    check_strength(strength)
    if keep is not None and not 0 < keep <= 1:
        raise ControlError(f"compress: keep must be None or in (0, 1], got {keep!r}.")
    if factor_lr is not None and not (math.isfinite(factor_lr) and factor_lr > 0):
        raise ControlError(f"compress: factor_lr must be a number in (0, inf), got {factor_lr!r}.")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ControlError(f"compress: tolerance must be None or in [0, 1), got {tolerance!r}.")
    check_model(task.model, None, "compress")
    names = None if only is None else tuple(only)
    return Plan(
        run or task.name, method, float(strength), passes, pretrain, after, keep, names, tolerance, factor_lr, seed
    )  # fmt: skip
