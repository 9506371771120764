"""Charges of a run: balance, the identity of their symmetry, the law of one step, and events from all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gaugefix.monitor.device import Optimizers, Params
from gaugefix.monitor.events import Event, switch
from gaugefix.monitor.law import FROZEN, VIOLATED, Booked, SGDSettings, Sums, book, check, identity_error, sgd_settings
from gaugefix.monitor.quantities import Table, imbalance
from gaugefix.monitor.state import State
from gaugefix.monitor.watched import WatchedCharge

#: a pair counts as balanced below the first and as unbalanced again above the second
_BALANCED = (0.05, 0.1)
#: relative rounding error of a squared norm, in units of the precision of the weights
_ROUNDING = 32

_UNEVEN = (
    "its symmetry does not hold: the pair is not symmetric, or its gradients were changed entry by entry or tensor by "
    "tensor, as clipping by value does"
)
_NOT_SEEN = (
    "the step was not the SGD step of the gradients that the monitor saw: gradients are clipped after it, or something "
    "else moves the weights"
)
_LAW = "the pair is not symmetric, or gradients are clipped"


class ChargeWatch:
    """Watches the charges of one plan.

    Args:
        charges: which.
        ranges: where the slots lie in a table of sums.
    """

    def __init__(self, charges: Sequence[WatchedCharge], ranges: Mapping[str, tuple[int, int]]) -> None:
        self._charges, self._ranges = charges, ranges
        self.reasons: dict[str, str] = {}

    def look(
        self, step: int, table: Table, after: np.ndarray, params: Params, grads: Mapping[str, Tensor | None],
        optimizers: Optimizers, state: State, clipped_later: bool,
    ) -> tuple[dict[str, float], list[Event]]:  # fmt: skip
        """Numbers and events of all charges; books what the next step must do.

        Args:
            step: now.
            table: sums of weights and gradients.
            after: sums of the weights one step after the last logging step, flat; empty if there are none.
            params: parameters by name.
            grads: gradients by name.
            optimizers: about to step.
            state: memory, updated.
            clipped_later: gradients will be changed before the step.

        Returns:
            Numbers by ``"charge/number"``, and events.
        """
        previous = self._previous(step, after, table, state)
        state.booked, state.after, state.booked_at = {}, None, step
        fine = bool(state.flags.get("finite/gradients", True))
        row: dict[str, float] = {}
        events: list[Event] = []
        for charge in self._charges:
            settings = self._settings(charge, params, grads, optimizers, clipped_later)
            known = fine and settings != FROZEN and all(grads[p] is not None for p in charge.params)
            numbers, seen = self._numbers(step, charge, table, previous, state, known)
            if isinstance(settings, SGDSettings) and fine:
                state.booked[charge.name] = book(*table.sides(charge), settings, self._resolution(charge, params))
            row |= {f"{charge.name}/{k}": v for k, v in numbers.items()}
            events += seen
        return row, events

    def _previous(
        self, step: int, after: np.ndarray, table: Table, state: State
    ) -> dict[str, tuple[Booked, Sums, Sums]]:
        """Predictions with the sums of the step after them, which are those of now if every step is logged."""
        if not state.booked:
            return {}
        later = table
        if state.booked_at != step - 1:
            if not len(after):
                return {}
            kinds = sums_after(state.booked)
            later = Table(after.reshape(len(kinds), -1), tuple(a + b for a, b in kinds), self._ranges)
        known = {c.name: c for c in self._charges}
        return {n: (b, *later.sides(known[n])) for n, b in state.booked.items() if n in known}

    def _numbers(
        self, step: int, charge: WatchedCharge, table: Table, previous: Mapping[str, tuple[Booked, Sums, Sums]],
        state: State, known: bool,
    ) -> tuple[dict[str, float], list[Event]]:  # fmt: skip
        """Balance, identity and law of one charge; ``known``: whether all its gradients are."""
        name = charge.name
        numbers = {"imbalance": imbalance(charge, table)}
        events = self._balance(step, charge, numbers["imbalance"], state)
        checks: list[tuple[float, str]] = []
        if known:
            numbers["gradient_imbalance"] = imbalance(charge, table, "gg")
            numbers["identity_error"] = identity_error(*table.sides(charge))
            checks.append((numbers["identity_error"], _UNEVEN))
        if name in previous:
            booked, plus, minus = previous[name]
            numbers["law_error"], sides = check(booked, plus, minus)
            checks += [(sides, _NOT_SEEN), (numbers["law_error"], _LAW)]
        return numbers, events + self._verdict(step, charge, checks, state)

    def _balance(self, step: int, charge: WatchedCharge, value: float, state: State) -> list[Event]:
        def say(on: bool) -> str:
            verb = "are" if on else "are no longer"
            return f"the two sides of {charge.title} {verb} balanced (imbalance {value:.2g})."

        key = f"balanced/{charge.name}"
        state.flags[key], events = switch(
            state.flags.get(key), value, low=_BALANCED[0], high=_BALANCED[1], step=step, where=charge.name,
            kinds=("balance reached", "balance lost"), say=say,
        )  # fmt: skip
        return events

    def _verdict(
        self, step: int, charge: WatchedCharge, checks: Sequence[tuple[float, str]], state: State
    ) -> list[Event]:
        """One state for all checks of a charge; the first one that fails names the cause."""
        value = max((v for v, _ in checks), default=float("nan"))
        reason = next((reason for v, reason in checks if v > VIOLATED), "")

        def say(on: bool) -> str:
            if on:
                return f"the charge law of {charge.title} holds again."
            return f"charge law of {charge.title} violated ({value:.2g} of its terms): {reason}."

        key = f"law/{charge.name}"
        state.flags[key], events = switch(
            state.flags.get(key, True), value, low=VIOLATED / 2, high=VIOLATED, step=step, where=charge.name,
            kinds=("charge law restored", "charge law violated"), say=say,
        )  # fmt: skip
        return events

    def _settings(
        self, charge: WatchedCharge, params: Params, grads: Mapping[str, Tensor | None], optimizers: Optimizers,
        clipped_later: bool,
    ) -> SGDSettings | str:  # fmt: skip
        """Settings of SGD for a charge, or the reason, which is remembered, why there is no law."""
        if clipped_later:
            settings: SGDSettings | str = "gradients are clipped after the monitor has read them"
        elif any(grads[p] is None for p in charge.params):
            settings = FROZEN
        else:
            settings = sgd_settings(optimizers, [params[p] for p in charge.params])
        if isinstance(settings, str):
            self.reasons[charge.name] = settings
        else:
            self.reasons.pop(charge.name, None)
        return settings

    def _resolution(self, charge: WatchedCharge, params: Params) -> float:
        return float(_ROUNDING * max(torch.finfo(params[p].dtype).eps for p in charge.params))


def sums_after(booked: Mapping[str, Booked]) -> tuple[tuple[str, str], ...]:
    """Which sums a check needs after the step: those of the weights, and with momentum those of its buffer.

    Args:
        booked: what will be checked.

    Returns:
        Pairs of sources for `UnitSums`.
    """
    return (("p", "p"), ("p", "m"), ("m", "m")) if any(b.shift for b in booked.values()) else (("p", "p"),)
