"""Which symmetries of the architecture the weights have along a run, and whether the loss falls when one is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import units_of
from gaugefix.measure.order import OrderParameters, order_parameters
from gaugefix.measure.records import Record
from gaugefix.monitor.events import Event, Kind
from gaugefix.symmetry import Symmetries, Units

#: number of a class, what it is called when it rises, and when it falls
_COUNTS: tuple[tuple[str, Kind, Kind], ...] = (
    ("distinct", "mirror broken", "mirror restored"),
    ("rank", "rank rose", "rank fell"),
    ("dead", "unit died", "unit revived"),
)


@dataclass(frozen=True)
class Coincidence(Record):
    """Drops of the loss and changes of symmetry, side by side.

    Attributes:
        drops: steps at which the loss had fallen by more than a fraction since the look before.
        explained: how many of them have an event at the same look or a neighbouring one.
        expected: how many would by chance, if events were anywhere.
        events: looks with at least one event.
        looks: looks in all.
    """

    drops: tuple[int, ...]
    explained: int
    expected: float
    events: int
    looks: int


class SymmetryTracker:
    """Order parameters of every class of units along a training run.

    A symmetry of the architecture is *broken* where the weights do not have it: units that differ, directions of a
    linear layer that are in use. Learning from a small start breaks symmetries one after the other and the loss falls
    when it does; weight decay and noise restore them.

    Args:
        model: the network; nothing of it is changed.
        symmetries: what `find_symmetries` gave, or classes of units. Without any, nothing is tracked.
        every: calls of `step` from one look to the next.
        threshold: relative distance below which a symmetry counts as restored.

    Attributes:
        history: ``(step, order parameters of every class)`` of every look.
        losses: loss at every look; nan where it was not given.
        events: what changed between two looks.

    Raises:
        MeasurementError: if ``every`` < 1.

    Source: arXiv 2502.05300.

    Example:
        >>> import torch
        >>> from gaugefix import find_symmetries
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> tracker = SymmetryTracker(net, find_symmetries(net, (torch.ones(2, 3),)))
        >>> tracker.step(loss=1.0)[0].stabiliser
        '1'
        >>> with torch.no_grad():  # two units become one
        ...     for weights in (net[0].weight, net[0].bias, net[2].weight.T):
        ...         weights[1] = weights[0]
        >>> tracker.step(loss=0.9)[0].stabiliser, [e.kind for e in tracker.events][0]
        ('S_2', 'mirror restored')
    """

    def __init__(
        self, model: nn.Module, symmetries: Symmetries | Sequence[Units], every: int = 1, *, threshold: float = 0.05
    ) -> None:
        if every < 1:
            raise MeasurementError(f"SymmetryTracker: every must be at least 1, got {every!r}.")
        self._params = dict(model.named_parameters())
        self._symmetries = symmetries
        self._every, self._threshold, self._count = every, threshold, 0
        self._found = bool(units_of(symmetries))
        self.history: list[tuple[int, tuple[OrderParameters, ...]]] = []
        self.losses: list[float] = []
        self.events: list[Event] = []

    def step(self, loss: float = math.nan) -> tuple[OrderParameters, ...]:
        """Look at the weights.

        Args:
            loss: at this step, to compare its drops with the events.

        Returns:
            Order parameters of every class at a look, else nothing.
        """
        number, self._count = self._count, self._count + 1
        if number % self._every or not self._found:
            return ()
        params = {k: p.detach() for k, p in self._params.items()}
        found = order_parameters(params, self._symmetries, threshold=self._threshold)
        if self.history:
            for old, new in zip(self.history[-1][1], found, strict=True):
                self.events += _changes(number, old, new)
        self.history.append((number, found))
        self.losses.append(float(loss))
        return found

    def coincidence(self, drop: float = 0.1) -> Coincidence:
        """Do the drops of the loss come with changes of symmetry?

        Args:
            drop: fraction of the loss by which it must have fallen between two looks.

        Returns:
            The counts, and what chance would give.
        """
        steps = [n for n, _ in self.history]
        seen = {e.step for e in self.events}
        near = [bool(seen.intersection(steps[max(i - 1, 0) : i + 2])) for i in range(len(steps))]
        fell = [i for i in range(1, len(steps)) if self.losses[i] < (1 - drop) * self.losses[i - 1]]
        share = sum(near[1:]) / max(len(near) - 1, 1)
        return Coincidence(
            tuple(steps[i] for i in fell), sum(near[i] for i in fell), share * len(fell), len(seen), len(steps)
        )

    def table(self) -> str:
        """The last look: one line per class.

        Returns:
            Plain text.
        """
        lines = [f"{'class':20} {'distinct':>8} {'dead':>5} {'rank':>9} {'swap':>8} {'sign':>8}  symmetry left"]
        for p in self.history[-1][1] if self.history else ():
            rank = f"{p.rank} of {p.max_rank}"
            lines.append(
                f"{p.name:20} {p.distinct:8d} {p.dead:5d} {rank:>9} {p.swap:8.2g} {p.sign:8.2g}  {p.stabiliser}"
            )
        return "\n".join(lines)


def _changes(step: int, old: OrderParameters, new: OrderParameters) -> list[Event]:
    found = []
    for name, rose, fell in _COUNTS:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            kind = rose if after > before else fell
            text = f"{name} of {new.name} went from {before} to {after}; symmetry left: {new.stabiliser}."
            found.append(Event(step, kind, new.name, float(after), text))
    return found
