"""Matching units by what they compute: correlations of what their readers see, over the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaugefix.control.alignment.matching import Matcher, assign
from gaugefix.control.folding.readers import readers_of, seen_values
from gaugefix.control.state import Function, State
from gaugefix.symmetry.verify import to_double


def activation_start(
    a: Function, b: Function, batches: Sequence[tuple[Any, ...]], state: State, matcher: Matcher
) -> tuple[State, frozenset[str]]:
    """Permute every class whose readers can be watched to the assignment of largest correlation.

    Args:
        a: the model whose coordinates are wanted.
        b: the other one.
        batches: arguments.
        state: of b, in the balanced gauge.
        matcher: its permutations and signs.

    Returns:
        The permuted state and the names of the permutations that were settled.
    """
    inputs = [to_double(batch) for batch in batches]
    settled = []
    for p in matcher.permutations:
        readers = readers_of(p._class(), b.model)
        if readers is None:
            continue
        seen = []
        for f in (a, b):
            calls = [x for calls in seen_values(f, f.state, readers, inputs) for x in calls]
            seen.append(torch.cat([x.flatten(2) for x in calls], dim=2))
        correlation = _normalised(seen[0]) @ _normalised(seen[1]).transpose(1, 2)
        signed = any(s.units is not None and s.units.name == p._class().name for s in matcher.signs)
        state = p.apply(state, assign(-(correlation.abs() if signed else correlation)))
        settled.append(p.name)
    return state, frozenset(settled)


def _normalised(values: Tensor) -> Tensor:
    """Rows centred and of norm 1; constant rows are zero."""
    centred = values - values.mean(2, keepdim=True)
    rows: Tensor = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return rows
