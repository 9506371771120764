"""One piece of advice, how pieces are ranked, and how numbers read in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gaugefix.measure import Record

Severity = Literal["act", "watch", "info"]
_RANK: dict[str, int] = {"act": 0, "watch": 1, "info": 2}


@dataclass(frozen=True)
class Advice(Record):
    """One thing to know, and what to do about it.

    Attributes:
        severity: "act" (something is lost now), "watch" (it will be, or may be) or "info".
        where: the class of units, or "network".
        finding: the diagnosis in one sentence.
        evidence: the numbers it rests on.
        action: the next step.
    """

    severity: Severity
    where: str
    finding: str
    evidence: str
    action: str


def rank_advice(advice: Iterable[Advice]) -> tuple[Advice, ...]:
    """Advice in order of urgency.

    Args:
        advice: in the order in which equally urgent entries stay.

    Returns:
        The most urgent first.
    """
    return tuple(sorted(advice, key=lambda a: _RANK[a.severity]))


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def span(values: np.ndarray) -> str:
    """Smallest and largest value, or the one there is."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return digits(low) if digits(low) == digits(high) else f"{digits(low)} to {digits(high)}"


def listed(items: tuple[object, ...], most: int = 6) -> str:
    """The first of many, and how many more there are."""
    shown = ", ".join(str(i) for i in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
