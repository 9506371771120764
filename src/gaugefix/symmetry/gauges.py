"""Symmetries that are not local to one axis: biases, mean shifts, rotations of a residual stream."""

from __future__ import annotations

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.classes import Classes
from gaugefix.symmetry.groups import Symmetry


def find_gauges(classes: Classes, names: dict[Axis, str]) -> list[Symmetry]:
    """None yet."""
    return []
