"""A model of a given size: the smallest units are silenced until what `fold` leaves has so few parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gaugefix.control.folding.propose import part_sizes
from gaugefix.control.state import check_model, state_of, write_state
from gaugefix.errors import ControlError
from gaugefix.measure import Record
from gaugefix.symmetry import Symmetries, Units

_CUT = {"hidden", "channel", "head"}


@dataclass(frozen=True)
class Silenced(Record):
    """What a budget left of one class.

    Attributes:
        name: of the class.
        kind: of the class.
        before: units.
        after: units that are still read.
    """

    name: str
    kind: str
    before: int
    after: int


def silence_(
    model: nn.Module, symmetries: Symmetries, *, parameters: int, classes: Sequence[str] | None = None
) -> tuple[Silenced, ...]:
    """Set what reads the smallest units to zero, until the model without them has at most so many parameters.

    Units of all classes are ranked together by their size √(‖w‖‖u‖) over the root mean square of their class, which no
    rescaling changes (behind batch normalisation the gain stands for w). The function changes: start from a network
    in which `impose.prune_units` or weight decay has made small what goes, and train on. `fold` takes the units out.

    Args:
        model: without constraints (see `impose.collapse_`); changed in place.
        symmetries: what `find_symmetries` gave for it.
        parameters: largest number that is left.
        classes: names of classes; by default all hidden units, channels and attention heads. At least one unit of each
            stays.

    Returns:
        One entry for each class.

    Raises:
        ControlError: if a class is unknown, the units cannot be counted, or even one unit of each is too much.

    Example:
        >>> from gaugefix import find_symmetries
        >>> from gaugefix.control import fold, silence_
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
        >>> silence_(net, find_symmetries(net, (x,)), parameters=30)[0].after
        4
        >>> fold(net, tolerance=0, example_inputs=x).parameters
        (58, 30)
    """
    check_model(model, symmetries, "silence_")
    chosen = _chosen(symmetries.units, classes)
    state = state_of(model)
    sizes = [part_sizes(state, units) for units in chosen]
    owners = np.concatenate([np.full(len(s), k) for k, s in enumerate(sizes)])
    members = np.concatenate([np.arange(len(s)) for s in sizes])
    relative = np.concatenate([s / max(float(np.sqrt((s**2).mean())), 1e-300) for s in sizes])
    spared = np.array([units_sizes.argmax() for units_sizes in sizes])  # one of each stays
    order = np.array([i for i in np.argsort(relative, kind="stable") if members[i] != spared[owners[i]]], dtype=int)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def gone(n: int) -> list[np.ndarray]:
        first = order[:n]
        return [np.sort(members[first[owners[first] == k]]) for k in range(len(chosen))]

    if _left(shapes, chosen, gone(len(order))) > parameters:
        raise ControlError(
            f"parameters = {parameters} cannot be reached: with one unit of each class "
            f"{_left(shapes, chosen, gone(len(order)))} are left. Allow more, or name more classes."
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _left(shapes, chosen, gone(middle)) <= parameters else (middle + 1, high)
    lost = gone(low)
    for units, which in zip(chosen, lost, strict=True):
        for s in units.outgoing if len(which) else ():
            block = s.take(state[s.param])
            block[:, torch.from_numpy(which)] = 0.0
            state[s.param] = s.put(state[s.param], block)
    write_state(model, state)
    return tuple(Silenced(u.name, u.kind, u.size, u.size - len(w)) for u, w in zip(chosen, lost, strict=True))


def _chosen(units: Iterable[Units], classes: Sequence[str] | None) -> list[Units]:
    known = {u.name: u for u in units}
    wanted = [u.name for u in known.values() if u.kind in _CUT] if classes is None else list(classes)
    if unknown := [name for name in wanted if name not in known]:
        raise ControlError(f"silence_: there is no class {unknown[0]!r}; there are {', '.join(map(repr, known))}.")
    found = [known[name] for name in wanted]
    found = [u for u in found if classes is not None or (u.fibers == 1 and u.outgoing and not _idle_in_norm(u))]
    for u in found:
        if u.fibers > 1 or not u.outgoing or _idle_in_norm(u):
            raise ControlError(
                f"silence_: {u.name!r} ({u.kind}) has units that cannot go one by one: copies in {u.fibers} fibers, "
                "nothing that reads them, or a normalisation over them. Leave it out."
            )
    if not found:
        raise ControlError(f"silence_: no class of units to cut; there are {', '.join(map(repr, known)) or 'none'}.")
    return found


def _idle_in_norm(units: Units) -> bool:
    return "normalised" in units.flags


def _left(shapes: dict[str, tuple[int, ...]], chosen: Sequence[Units], gone: Sequence[np.ndarray]) -> int:
    """Number of parameters without some units: every tensor loses positions along its dimensions."""
    lost: dict[tuple[str, int], set[int]] = {}
    for units, which in zip(chosen, gone, strict=True):
        for s in units.slices:
            lost.setdefault((s.param, s.dim), set()).update(s.index[:, which].ravel().tolist())
    return sum(
        int(np.prod([n - len(lost.get((name, d), ())) for d, n in enumerate(shape)])) for name, shape in shapes.items()
    )
