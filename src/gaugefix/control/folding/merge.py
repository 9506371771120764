"""Merging units that compute the same feature, up to scale and sign."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gaugefix.control.folding.thresholds import threshold
from gaugefix.control.state import State
from gaugefix.symmetry import Units
from gaugefix.symmetry.groups import Diagonal


def merge_copies(
    state: State, units: Units, gauges: Sequence[Diagonal], live: np.ndarray, tolerance: float | None, eps: float
) -> tuple[State, np.ndarray]:
    """Bring copies to one gauge and add up what reads them.

    Two units with equal incoming slices and gains have equal values; rescalings and sign flips of the class make them
    equal where they differ by a factor. The outgoing slices are then summed into the first of them.

    Args:
        state: all tensors.
        units: the class.
        gauges: its rescalings and sign flips.
        live: ``(fibers, units)`` mask of the units to compare.
        tolerance: relative distance at which two units are equal; None is rounding.
        eps: rounding unit.

    Returns:
        The state, in which merged units are no longer read, and their mask.
    """
    merged = np.zeros_like(live)
    if not units.incoming or live.sum() < 2:
        return state, merged
    elements = []
    gauged = state
    for g in gauges:
        element = _standard(gauged, g)
        elements.append(element)
        if element is not None:
            gauged = g.apply(gauged, element)
    sizes = _rows(state, units, "all").norm(dim=2).numpy()
    limit = threshold(np.zeros(0), tolerance or 0.0, eps)
    clusters = [
        (a, group)
        for a in range(units.fibers)
        for group in _clusters(_rows(gauged, units, "features")[a].numpy(), live[a], sizes[a], limit)
    ]
    if not clusters:
        return state, merged
    members = torch.zeros(live.shape, dtype=torch.bool)
    for a, group in clusters:
        members[a, group] = True
    for g, element in zip(gauges, elements, strict=True):
        if element is not None:
            idle = torch.ones_like(element) if g.kind == "sign" else torch.zeros_like(element)
            state = g.apply(state, torch.where(members, element, idle))
    for a, group in clusters:
        leader, rest = group[0], group[1:]
        merged[a, rest] = True
        for s in units.outgoing:
            block = s.take(state[s.param]).clone()
            block[a, leader] += block[a, rest].sum(0)
            block[a, rest] = 0.0
            state = {**state, s.param: s.put(state[s.param], block)}
    return state, merged


def _rows(state: State, units: Units, which: str) -> Tensor:
    """Entries of every unit side by side, ``(fibers, units, entries)``; features leave out what reads it."""
    slices = [s for s in units.slices if which == "all" or s.role != "read"]
    parts = [s.take(state[s.param]).reshape(units.fibers, units.size, -1) for s in slices]
    return torch.cat(parts, dim=2)


def _standard(state: State, gauge: Diagonal) -> Tensor | None:
    """The element that gives what writes a unit norm 1, or a positive sum with fixed random weights."""
    inner = [(s, q) for s, q in gauge.charges if s.role != "read"]
    if not inner:
        return None
    if gauge.kind == "sign":
        generator, total = torch.Generator().manual_seed(0), torch.zeros(gauge._fibers_units, dtype=torch.float64)
        for s, q in inner:
            if round(q) % 2:
                block = s.take(state[s.param]).reshape(*gauge._fibers_units, -1)
                weight = torch.randn(block.shape[2], generator=generator, dtype=torch.float64)
                total = total + block @ weight
        return torch.where(total < 0, -1.0, 1.0)
    if len({q for _, q in inner}) != 1:
        return None
    square = torch.zeros(gauge._fibers_units, dtype=torch.float64)
    for s, _ in inner:
        square = square + s.take(state[s.param]).reshape(*gauge._fibers_units, -1).square().sum(2)
    return torch.where(square > 0, -0.5 * torch.log(square.clamp_min(1e-300)) / inner[0][1], 0.0)


def _clusters(rows: np.ndarray, live: np.ndarray, sizes: np.ndarray, limit: float) -> list[list[int]]:
    """Groups of two or more rows within a relative distance of their leader, the largest unit first."""
    members = np.flatnonzero(live)
    if len(members) < 2:
        return []
    norms = np.linalg.norm(rows, axis=1)
    probe = np.random.default_rng(0).standard_normal(rows.shape[1])
    shadow = rows @ (probe / np.linalg.norm(probe))  # close rows have close shadows
    order = members[np.argsort(shadow[members], kind="stable")]
    reach = 2 * limit * float(norms[members].max(initial=0.0))
    groups: list[list[int]] = []
    taken: set[int] = set()
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order) and shadow[order[stop]] - shadow[order[stop - 1]] <= reach:
            continue
        block = sorted(order[start:stop].tolist(), key=lambda i: -sizes[i])
        start = stop
        for i in block if len(block) > 1 else []:
            if i in taken:
                continue
            scale = np.sqrt(2 * (norms[i] ** 2 + norms[block] ** 2))
            near = np.linalg.norm(rows[block] - rows[i], axis=1) <= limit * scale
            group = [i, *(j for j, close in zip(block, near, strict=True) if close and j != i and j not in taken)]
            taken.update(group)
            if len(group) > 1:
                groups.append(group)
    return groups
