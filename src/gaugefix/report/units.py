"""The state of every unit, as the pictures show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["alive", "copy", "fading", "dead"]

#: In the order in which pictures and legends show them.
STATES: tuple[State, ...] = ("alive", "fading", "copy", "dead")

#: What the states mean, for legends.
MEANING: dict[State, str] = {
    "alive": "does something no other unit does",
    "fading": "alive, but weight decay is winning",
    "copy": "a duplicate of another unit: can be merged away",
    "dead": "zero: can be removed",
}


@dataclass(frozen=True)
class UnitState:
    """One unit in a picture.

    Attributes:
        index: number of the unit in its class.
        state: what became of it.
        text: one line about it.
    """

    index: int
    state: State
    text: str


def unit_states(collapse: Mapping[str, Any], forecast: Mapping[str, Any] | None) -> tuple[UnitState, ...]:
    """The units of one class, grouped by state, the largest first.

    In a cluster of duplicates the largest unit counts as alive and the others as its copies.

    Args:
        collapse: the class's entry under ``collapse.units``.
        forecast: its entry under ``forecast.classes``, if there is one.

    Returns:
        One entry per unit.
    """
    norms = [n or 0.0 for n in collapse["norms"]]
    dead = set(collapse["dead"])
    original = {}
    for cluster in collapse["duplicates"]:
        first = max(cluster, key=lambda i: norms[i])
        original.update({i: first for i in cluster if i != first})
    by_unit = forecast and forecast["valid"] and forecast["rank"] is None  # else the entries are modes
    fading = set(forecast["dying"]) if forecast and by_unit else set()

    def one(i: int) -> UnitState:
        size = f"unit {i}, size {norms[i]:.3g}"
        if i in dead:
            return UnitState(i, "dead", f"{size}: dead")
        if i in original:
            return UnitState(i, "copy", f"{size}: copy of unit {original[i]}")
        if i in fading:
            return UnitState(i, "fading", f"{size}: fading")
        return UnitState(i, "alive", f"{size}: alive")

    return tuple(sorted(map(one, range(len(norms))), key=lambda u: (STATES.index(u.state), -norms[u.index])))
