"""Noether charges of the rescaling symmetries, and the exact law by which SGD moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

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
    """(being built)."""
    raise NotImplementedError


def check_charge_law(
    task: Task, symmetries: Symmetries | Sequence[Units], *, steps: int = 10, seed: int = 0
) -> ChargeReport:
    """(being built)."""
    raise NotImplementedError
