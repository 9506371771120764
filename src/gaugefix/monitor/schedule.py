"""When what is measured: a price level, and two intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gaugefix.errors import MeasurementError

Level = Literal["cheap", "standard", "full"]

#: what every level adds to the one before it, and what it costs
LEVELS: dict[Level, str] = {
    "cheap": "norms, live units, balance and its law: three passes over weights and gradients at each logging step",
    "standard": "ranks, duplicates, mirror distances: two Gram matrices per class at each dear step",
    "full": "spectra of every class and the state of Adam: one eigendecomposition per class at each dear step",
}


@dataclass(frozen=True)
class Schedule:
    """Intervals of a monitor, in optimizer steps counted from 0.

    Attributes:
        every: cheap numbers at steps 0, every, 2·every, …
        dear: at every ``dear``-th of those the dear numbers too.
        level: see `LEVELS`.

    Raises:
        MeasurementError: if an interval is not a positive integer or the level is unknown.

    Example:
        >>> plan = Schedule(every=50, dear=10)
        >>> plan.logs(100), plan.logs(101), plan.is_dear(100), plan.is_dear(500)
        (True, False, False, True)
    """

    every: int = 50
    dear: int = 10
    level: Level = "standard"

    def __post_init__(self) -> None:
        """Validate once."""
        for name in ("every", "dear"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MeasurementError(f"Monitor: {name} must be an integer >= 1, got {value!r}.")
        if self.level not in get_args(Level):
            raise MeasurementError(f"Monitor: level must be one of {', '.join(LEVELS)}, got {self.level!r}.")

    def logs(self, step: int) -> bool:
        """Whether anything is measured at a step."""
        return step % self.every == 0

    def is_dear(self, step: int) -> bool:
        """Whether the dear numbers are measured at a step."""
        return self.level != "cheap" and step % (self.every * self.dear) == 0
