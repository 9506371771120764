"""Frozen parameters: what the groups of the others leave out."""

from __future__ import annotations

import math

import torch

from gaugefix.symmetry.generic import MAX_ENTRIES, MAX_GENERATORS, generator_span, generic_parameters
from gaugefix.symmetry.symmetries import Symmetries


def combined_directions(whole: Symmetries, kept: Symmetries, frozen: set[str]) -> int | None:
    """Directions that fix the frozen parameters only as combinations of several groups, and are in none of ``kept``.

    A gain may be rescaled and its shift, which is frozen, put back by a bias: neither move alone is allowed. At a
    generic point these are the combinations of generators whose frozen entries vanish, dim G − rank G_frozen.

    Args:
        whole: symmetries that move every parameter.
        kept: those that move no frozen one.
        frozen: names of the frozen parameters.

    Returns:
        How many there are, or None if the model is too large to count.
    """
    count = sum(s.n_generators for s in whole if s.level == "function")
    if count > MAX_GENERATORS or count * sum(math.prod(shape) for shape in whole.shapes.values()) > MAX_ENTRIES:
        return None
    point = generic_parameters(whole.shapes, torch.Generator().manual_seed(0))
    span = generator_span(whole, point)
    moved = torch.cat([torch.full((p.numel(),), n in frozen) for n, p in point.items()]) if point else torch.zeros(0)
    values = torch.linalg.svdvals(span[:, moved.bool()])
    return max(len(span) - int((values > 1e-7).sum()) - kept.flat_dim, 0)


def frozen_notes(whole: Symmetries, kept: Symmetries, frozen: set[str]) -> tuple[str, ...]:
    """What to say about the symmetries that are left out.

    Args:
        whole: symmetries that move every parameter.
        kept: those that move no frozen one.
        frozen: names of the frozen parameters.

    Returns:
        Notes for people; none if nothing is frozen.
    """
    if not frozen:
        return ()
    left_out = sum(not frozen.isdisjoint(s.parameters) for s in whole)
    notes = [f"{left_out} symmetries that move frozen parameters ({len(frozen)} tensors)"] if left_out else []
    more = combined_directions(whole, kept, frozen)
    if more is None:
        notes.append("combinations of symmetries that leave the frozen parameters fixed only together: not counted")
    elif more:
        notes.append(f"{more} directions that leave the frozen parameters fixed only as combinations of symmetries")
    return tuple(notes)
