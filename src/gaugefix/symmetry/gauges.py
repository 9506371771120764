"""Symmetries that are not local to one axis: biases, mean shifts, rotations of a residual stream, adapters."""

from __future__ import annotations

from math import prod

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.bypass import find_bypasses
from gaugefix.symmetry.classes import Classes
from gaugefix.symmetry.dead import find_dead
from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.shift_search import find_shifts
from gaugefix.symmetry.shifts import ShiftFlow
from gaugefix.symmetry.stream import find_stream_symmetries
from gaugefix.symmetry.stream_groups import FreeParameter
from gaugefix.symmetry.tied import find_tied
from gaugefix.symmetry.virtual_biases import VirtualBiases


def find_gauges(classes: Classes, names: dict[Axis, str]) -> tuple[list[Symmetry], list[str]]:
    """Every gauge of a lowered graph, with notes on what was not solved.

    Args:
        classes: the axis classes.
        names: readable names of the classes.

    Returns:
        The symmetries and the notes.
    """
    flow = Flow(classes)
    virtual = VirtualBiases(flow)
    shifting = ShiftFlow(classes, biased=virtual.weights(), take_up=virtual.take_up, tied=find_tied(flow))
    shifts, notes = find_shifts(shifting, names)
    stream = find_stream_symmetries(flow, names, {value: leaves for (value, _), leaves in shifting.sources.items()})
    return [*shifts, *stream, *find_bypasses(flow), *find_dead(flow), *_unread(flow)], notes


def _unread(flow: Flow) -> list[Symmetry]:
    """Parameters that no operation reads: an unused module, a table that is switched off."""
    lower = flow.classes.cells.lower
    used = {v for op in lower.graph.ops for v in op.values()} | set(lower.graph.outputs)
    return [
        FreeParameter(f"{name}: unread", f"T({n})", n, (f"{name}[0]",), False, length=n, param=name)
        for name, v in lower.graph.params.items()
        if v not in used and (n := prod(v.shape))
    ]
