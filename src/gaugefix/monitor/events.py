"""Events: what changed at which step, with hysteresis so that a value at a threshold does not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gaugefix.measure.records import Record

Kind = Literal[
    "unit died",
    "unit revived",
    "mirror restored",
    "mirror broken",
    "rank fell",
    "rank rose",
    "balance reached",
    "balance lost",
    "charge law violated",
    "charge law restored",
    "not finite",
    "finite again",
    "parameters changed",
]

#: events that are bad news; the others are neutral or good
BAD: frozenset[Kind] = frozenset({"unit died", "rank fell", "charge law violated", "not finite"})


@dataclass(frozen=True)
class Event(Record):
    """Something that changed.

    Attributes:
        step: the logging step at which it was seen.
        kind: see `Kind`.
        where: the class of units, or "network".
        value: the number that crossed its threshold: a relative size, a distance, a rank, an imbalance, an error.
        message: one sentence for people.
        units: positions of the units concerned, in the order of `Units.rows`; empty if it is about the whole class.
    """

    step: int
    kind: Kind
    where: str
    value: float
    message: str
    units: tuple[int, ...] = ()


def switch(
    on: bool | None, value: float, *, low: float, high: float, step: int, where: str,
    kinds: tuple[Kind, Kind], say: Callable[[bool], str],
) -> tuple[bool | None, list[Event]]:  # fmt: skip
    """A state that turns on below ``low`` and off above ``high``; the first value sets it without an event.

    Args:
        on: the state before, None if unknown.
        value: nan leaves everything as it is.
        low: turns on below.
        high: turns off above.
        step: of the event.
        where: of the event.
        kinds: of the event when it turns on, and off.
        say: message, given the new state.

    Returns:
        The new state, and at most one event.
    """
    if np.isnan(value):
        return on, []
    now = bool(value < low if not on else value <= high)
    if on is None or now == on:
        return now, []
    return now, [Event(step, kinds[0 if now else 1], where, value, say(now))]


def changed_units(
    step: int, where: str, relative: np.ndarray, before: np.ndarray | None, tolerance: float
) -> tuple[np.ndarray, list[Event]]:
    """Live units, and those that died or came back.

    Args:
        step: of the events.
        where: the class.
        relative: ``(n,)`` size of every unit relative to the reference of its class.
        before: mask of the live units at the last look, None at the first.
        tolerance: a unit dies below it and comes back above twice it.

    Returns:
        The new mask, and at most two events (all units that died at one step are one event).
    """
    if before is None or before.shape != relative.shape:
        return relative >= tolerance, []
    live = np.where(before, relative >= tolerance, relative >= 2 * tolerance)
    events = []
    for kind, units in (("unit died", before & ~live), ("unit revived", live & ~before)):
        if units.any():
            which = tuple(int(i) for i in np.flatnonzero(units))
            value = float(relative[units].max() if kind == "unit died" else relative[units].min())
            verb = "died" if kind == "unit died" else "came back"
            text = f"{_units(which)} of {where} {verb}; {int(live.sum())} of {len(live)} are alive."
            events.append(Event(step, kind, where, value, text, which))  # type: ignore[arg-type]
    return live, events


def changed_partners(
    step: int, where: str, partner: np.ndarray, distance: np.ndarray, before: np.ndarray | None, tolerance: float
) -> tuple[np.ndarray, list[Event]]:
    """Units that fell onto the mirror of another one, or left it.

    Args:
        step: of the events.
        where: the class.
        partner: ``(n,)`` nearest unit of every unit, −1 if it has none.
        distance: ``(n,)`` distance to the mirror of the two.
        before: mask of the units that were on a mirror at the last look, None at the first.
        tolerance: on a mirror below it, off above twice it.

    Returns:
        The new mask, and one event per pair.
    """
    near = (partner >= 0) & (distance < tolerance)
    if before is None or before.shape != near.shape:
        return near, []
    now = np.where(before, (partner >= 0) & (distance < 2 * tolerance), near)
    return now, [
        *_pairs(step, where, "mirror restored", now & ~before, partner, distance, tolerance),
        *_pairs(step, where, "mirror broken", before & ~now, partner, distance, tolerance),
    ]


#: more pairs than this at one step are one event
_MOST_PAIRS = 8


def _pairs(
    step: int, where: str, kind: Kind, units: np.ndarray, partner: np.ndarray, distance: np.ndarray, tolerance: float
) -> Iterator[Event]:
    pairs = {tuple(sorted((int(i), int(partner[i])))): float(distance[i]) for i in np.flatnonzero(units)}
    if kind == "mirror broken" and units.any():
        which = tuple(int(i) for i in np.flatnonzero(units))
        value = float(distance[units].min())
        text = f"{_units(which)} of {where} differ{'s' if len(which) == 1 else ''} from every other unit again"
        yield Event(step, kind, where, value, f"{text} (distance {value:.2g}).", which)
    elif len(pairs) > _MOST_PAIRS:
        which = tuple(sorted({i for pair in pairs for i in pair}))
        text = f"{_units(which)} of {where} became copies of others."
        yield Event(step, kind, where, max(pairs.values()), text, which)
    else:
        for pair, value in pairs.items():
            text = f"units {pair[0]} and {pair[1]} of {where} became equal (mirror distance {value:.2g})."
            yield Event(step, kind, where, value, text, pair)


def changed_ranks(
    step: int, where: str, what: str, ranks: Sequence[int], most: int, before: Sequence[int] | None
) -> list[Event]:
    """Ranks that fell or rose since the last look.

    Args:
        step: of the events.
        where: the class.
        what: how to call it in the message, "QK of blocks.0.attn".
        ranks: one per fiber.
        most: what the shapes allow.
        before: at the last look, None at the first.

    Returns:
        One event per fiber whose rank changed.
    """
    if before is None or len(before) != len(ranks):
        return []
    events = []
    for fiber, (old, new) in enumerate(zip(before, ranks, strict=True)):
        if old != new:
            part = f" in copy {fiber}" if len(ranks) > 1 else ""
            verb = "fell" if new < old else "rose"
            kind: Kind = "rank fell" if new < old else "rank rose"
            text = f"rank of {what}{part} {verb} from {old} to {new} of {most}."
            events.append(Event(step, kind, where, float(new), text, (fiber,) if len(ranks) > 1 else ()))
    return events


def _units(which: tuple[int, ...], most: int = 6) -> str:
    shown = ", ".join(str(i) for i in which[:most])
    more = f" and {len(which) - most} more" if len(which) > most else ""
    return f"unit{'s' if len(which) > 1 else ''} {shown}{more}"
