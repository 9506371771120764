"""Sums over samples of their gradients and squared gradients: what every statistic of gradient noise is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gaugefix.measure.classes import checks, sample_shapes, structure
from gaugefix.measure.ghost_norms import add_ghosts, ghost_layouts
from gaugefix.measure.perexample import Moments, per_sample_gradients, trainable
from gaugefix.task import Batch, Task


def collect_moments(copy: Task, *, max_samples: int = 2048, seed: int = 0, diagonal: bool = False) -> Moments:
    """Sums over the samples of their gradients and squared gradients.

    Args:
        copy: from `exact_copy`.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.
        diagonal: also of the squares of every entry.

    Returns:
        The sums.
    """
    moments = Moments(diagonal={} if diagonal else None)
    params = trainable(copy.model)
    known, here = checks(copy), ("ghost layouts", *structure(copy.model))
    with torch.random.fork_rng(devices=[]):
        for batch in copy.batch_iter(seed):
            key = (*here, sample_shapes(batch))
            if key not in known:
                known[key] = ghost_layouts(copy, batch)
            _add(copy, batch, params, moments, known[key])
            if moments.count >= max_samples:
                break
    return moments


def _add(
    task: Task, batch: Batch, params: Mapping[str, Tensor], moments: Moments, layouts: Mapping[str, tuple[int, ...]]
) -> None:
    """Add a batch: by ghost norms where `ghost_layouts` found that they hold, the other parameters in full."""
    rest = [k for k in params if k not in layouts]
    if layouts:
        rest += add_ghosts(task, batch, params, moments, layouts)
    if rest:
        _full(task, batch, moments, rest)


def _full(task: Task, batch: Batch, moments: Moments, names: Sequence[str]) -> None:
    for method, each in per_sample_gradients(task, batch, names):
        moments.used(method)
        for name, rows in each.items():
            flat = rows.flatten(1)
            entries = flat.square().sum(0) if moments.diagonal is not None else None
            moments.add(name, rows.sum(0), flat.square().sum(1), entries)
