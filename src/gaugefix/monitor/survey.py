"""One look at a model: everything on the device first, one transfer, then numbers and what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gaugefix.monitor.charges import ChargeWatch, sums_after
from gaugefix.monitor.device import Optimizers, Packet, Params, momenta, signature, squares
from gaugefix.monitor.events import Event, changed_partners, changed_ranks, changed_units, switch
from gaugefix.monitor.law import Booked
from gaugefix.monitor.pairs import pairs
from gaugefix.monitor.quantities import Table, class_numbers, relative_sizes
from gaugefix.monitor.ranks import adam_state, product_ranks, row_rank
from gaugefix.monitor.schedule import Schedule
from gaugefix.monitor.shards import whole
from gaugefix.monitor.state import State
from gaugefix.monitor.sums import UnitSums
from gaugefix.monitor.watched import Watched, WatchedClass, watch
from gaugefix.symmetry import DenseMirror, Mirror, Symmetries, Units

_PLAIN = (("p", "p"), ("p", "g"), ("g", "g"))
_MOMENTUM = (("p", "m"), ("m", "g"), ("m", "m"))


class Survey:
    """Measures one model again and again.

    Args:
        params: parameters by name.
        symmetries: what to watch, None for norms alone.
        mirrors: of the user.
        schedule: level and intervals.
        tolerance: relative size that counts as zero.
    """

    def __init__(
        self, params: Params, symmetries: Symmetries | Sequence[Units] | None,
        mirrors: tuple[Mirror | DenseMirror, ...], schedule: Schedule, tolerance: float,
    ) -> None:  # fmt: skip
        self._symmetries, self._mirrors = symmetries, mirrors
        self._schedule, self._tolerance = schedule, tolerance
        self._plan_for(params)

    def _plan_for(self, params: Params) -> None:
        self._signature = signature(params)
        self.watched: Watched = watch(self._symmetries, params)
        self._sums = UnitSums(params, list(self.watched.slots.values()))
        self._charges = ChargeWatch(self.watched.charges, self._sums.ranges)

    @property
    def skipped(self) -> list[str]:
        """What is not watched, and why; equal reasons in one line."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self._charges.reasons.items():
            by_reason.setdefault(reason, []).append(name)
        laws = [
            f"law of the balance of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: "
            + reason
            for reason, names in by_reason.items()
        ]
        return [*self.watched.skipped, *laws]

    def refresh(self, params: Params, step: int, state: State) -> list[Event]:
        """Plan anew if parameters were added, removed, moved or sharded.

        Args:
            params: parameters by name.
            step: now.
            state: loses what was booked for the old parameters.

        Returns:
            An event if it is another set of parameters.
        """
        new = signature(params)
        if new == self._signature:
            return []
        old = {name: shape for name, (shape, *_) in self._signature.items()}
        added = [n for n, (shape, *_) in new.items() if old.get(n) != shape]
        gone = [n for n in old if n not in new]
        self._plan_for(params)
        state.booked, state.after = {}, None
        if not added and not gone:
            return []
        names = ", ".join([*(f"+{n}" for n in added), *(f"−{n}" for n in gone)][:6])
        text = f"the model has other parameters than before ({names}); new ones are watched in the norms only."
        return [Event(step, "parameters changed", "network", float(len(added) + len(gone)), text)]

    def after(self, params: Params, optimizers: Optimizers, booked: Mapping[str, Booked]) -> Tensor | None:
        """Sums of the weights one step after a logging step; they stay on the device.

        Args:
            params: parameters by name.
            optimizers: for the momentum.
            booked: what will be checked.

        Returns:
            ``(sums, units)``, or None if the model has changed.
        """
        if signature(params) != self._signature:
            return None
        wanted = sums_after(booked)
        sources: dict[str, Mapping[str, Tensor | None]] = {"p": params}
        if len(wanted) > 1:
            sources["m"] = momenta(params, optimizers)
        return self._sums(sources, wanted)

    def look(
        self, step: int, params: Params, optimizers: Optimizers, state: State, scale: Tensor | float,
        loss: Tensor | float | None, clipped_later: bool,
    ) -> tuple[dict[str, float], list[Event]]:  # fmt: skip
        """Measure everything that is due.

        Args:
            step: now.
            params: parameters by name.
            optimizers: about to step.
            state: memory, updated.
            scale: by what the gradients are too large.
            loss: to be logged.
            clipped_later: the law cannot be checked at this step.

        Returns:
            The row and the events.
        """
        grads = {n: p.grad for n, p in params.items()}
        heavy = any(type(o) is torch.optim.SGD and g["momentum"] for o in optimizers for g in o.param_groups)
        sources: dict[str, Mapping[str, Tensor | None]] = {"p": params, "g": grads}
        if heavy:
            sources["m"] = momenta(params, optimizers)
        kinds = _PLAIN + _MOMENTUM * heavy
        known = {n: g for n, g in grads.items() if g is not None}
        packet = Packet()
        packet.add("sums", self._sums(sources, kinds))
        packet.add("weights", *squares(params))
        packet.add("gradients", *squares(known))
        packet.add("scale", torch.as_tensor(scale))
        packet.add("loss", *([] if loss is None else [torch.as_tensor(loss).detach()]))
        packet.add("after", *([] if state.after is None else [state.after]))
        got = packet.open()

        table = Table(got["sums"].reshape(len(kinds), -1), tuple(a + b for a, b in kinds), self._sums.ranges)
        factor = float(got["scale"][0])
        table.scale_gradients(factor)
        row, events = self._norms(step, got, list(params), list(known), factor, state)
        weights_fine = state.flags["finite/weights"]
        if loss is not None:
            row["loss"] = float(got["loss"].mean())
        if weights_fine:
            for w in self.watched.classes:
                numbers, seen = self._class(step, w, table, state)
                row |= {f"{w.units.name}/{k}": v for k, v in numbers.items()}
                events += seen
            if self.watched.classes:
                row["units/live"] = sum(row[f"{w.units.name}/live"] for w in self.watched.classes)
                row["units/all"] = float(sum(len(w.units) for w in self.watched.classes))
            numbers, seen = self._charges.look(
                step, table, got["after"], params, grads, optimizers, state, clipped_later
            )
            row |= numbers
            events += seen
        else:
            state.booked, state.after = {}, None
        if weights_fine and self._schedule.is_dear(step):
            numbers, seen = self._dear(step, params, optimizers, table, state)
            row |= numbers
            events += seen
        return row, events

    def _norms(
        self, step: int, got: Mapping[str, np.ndarray], weights: list[str], gradients: list[str], factor: float,
        state: State,
    ) -> tuple[dict[str, float], list[Event]]:  # fmt: skip
        """Norms of the whole model, and whether everything is finite."""
        row, events = {}, []
        for what, names, by in (("weights", weights, 1.0), ("gradients", gradients, factor)):
            squares = got[what] / by**2
            row[f"{what}/norm"] = float(np.sqrt(squares.sum()))
            bad = [n for n, s in zip(names, squares, strict=True) if not np.isfinite(s)]
            text = f"the {what} of {', '.join(bad[:4])}{' and others' if len(bad) > 4 else ''} are not finite."
            key = f"finite/{what}"
            state.flags[key], seen = switch(
                state.flags.get(key, True), float(len(bad)), low=0.5, high=0.5, step=step, where="network",
                kinds=("finite again", "not finite"),
                say=partial(_finite, what, text),
            )  # fmt: skip
            events += seen
        return row, events

    def _class(self, step: int, w: WatchedClass, table: Table, state: State) -> tuple[dict[str, float], list[Event]]:
        name = w.units.name
        sizes = relative_sizes(w, table)
        state.live[name], events = changed_units(step, name, sizes, state.live.get(name), self._tolerance)
        return class_numbers(w, table, self._tolerance), events

    def _dear(
        self, step: int, params: Params, optimizers: Optimizers, table: Table, state: State
    ) -> tuple[dict[str, float], list[Event]]:
        """Duplicates, ranks, mirrors, and the state of Adam, as far as the level says."""
        row: dict[str, float] = {}
        events: list[Event] = []
        full, tol = self._schedule.level == "full", self._tolerance
        for w in self.watched.classes:
            name = w.units.name
            ranks = product_ranks(w, params, tol)
            if not w.polarity:
                live = relative_sizes(w, table) >= tol
                squares = {role: table.square(slot) for role, slot in w.roles.items()}
                close = pairs(w, params, squares, live, tol)
                row[f"{name}/participation"] = close.participation
                row[f"{name}/distinct"] = float(close.distinct)
                row[f"{name}/duplicates"] = float(live.sum() - close.distinct)
                row[f"{name}/mirror_distance"] = float(np.nanmin([*close.distance, np.inf]))
                state.near[name], seen = changed_partners(
                    step, name, close.partner, close.distance, state.near.get(name), tol
                )
                events += seen
                ranks = row_rank(w, params, live, close.distinct, tol) if full else None
            if ranks is not None:
                row[f"{name}/rank"], row[f"{name}/effective_rank"] = float(min(ranks.ranks)), ranks.effective
                events += changed_ranks(step, name, w.title, ranks.ranks, ranks.most, state.ranks.get(name))
                state.ranks[name] = ranks.ranks
        for mirror in self._mirrors:
            own = {n: whole(params[n].detach()) for n in mirror.parameters}
            row[f"mirror/{mirror.name}"] = distance = mirror.distance(own)
            key = f"mirror/{mirror.name}"
            state.flags[key], seen = switch(
                state.flags.get(key), distance, low=tol, high=2 * tol, step=step, where=mirror.name,
                kinds=("mirror restored", "mirror broken"), say=partial(_mirror, mirror.name, distance),
            )  # fmt: skip
            events += seen
        return row | (adam_state(optimizers) if full else {}), events


def _finite(what: str, bad: str, fine: bool) -> str:
    return f"all {what} are finite again." if fine else bad


def _mirror(name: str, distance: float, on: bool) -> str:
    return f"the weights {'fell onto' if on else 'left'} the mirror {name} (distance {distance:.2g})."
