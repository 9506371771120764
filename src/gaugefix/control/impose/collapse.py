"""Take constraints off again: dense tensors, with what died set to exact zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaugefix.control.impose.factors import Factorised, Imposed, imposed
from gaugefix.control.impose.parts import PartFactors, same_scales, unit_scales
from gaugefix.control.impose.products import EntryFactors, GroupFactors, LinearFactors, RankFactors
from gaugefix.errors import ControlError
from gaugefix.measure import Record


@dataclass(frozen=True)
class NoiseFloor(Record):
    """Where the sizes of the dead end and those of the living begin.

    Attributes:
        threshold: geometric middle of the widest gap in the logarithm of the sizes.
        ratio: of the sizes above and below it.
        found: whether the ratio is large enough; if not, ``threshold`` is where rounding begins.
        dead: number of sizes at or below the threshold.
        total: number of sizes.
    """

    threshold: float
    ratio: float
    found: bool
    dead: int
    total: int


def noise_floor(sizes: Tensor | np.ndarray, *, least_ratio: float = 10.0, precision: float = 1e-7) -> NoiseFloor:
    """Find the gap between what has died and what lives in the logarithm of sizes.

    Dying factors shrink by a constant ratio per step, living ones stay: given time, log size has a gap, and any
    threshold inside it keeps the same set. What is below ``precision`` times the largest size is rounding and dead in
    any case.

    Args:
        sizes: |w|, norms of groups, or singular values; all ≥ 0.
        least_ratio: a gap must be at least this wide.
        precision: of the numbers, relative to the largest.

    Returns:
        The threshold and how clear it is.

    Raises:
        ControlError: if there is no size, one is negative or not finite, or ``least_ratio`` is not above 1.

    Example:
        >>> noise_floor(np.array([0.3, 0.2, 1e-6, 2e-6])).dead
        2
    """
    values = np.sort(torch.as_tensor(sizes).detach().cpu().double().numpy().ravel())
    if not len(values) or not np.isfinite(values).all() or values[0] < 0:
        raise ControlError("sizes must be numbers >= 0, one or more.")
    if not least_ratio > 1:
        raise ControlError(f"least_ratio must be above 1, got {least_ratio!r}.")
    floor = precision * float(values[-1])
    above = values[values > floor]
    if not len(above):
        return NoiseFloor(floor, math.inf, True, len(values), len(values))
    below = [max(floor, np.finfo(float).tiny)] if len(above) < len(values) else []
    logs = np.log(np.concatenate([below, above]))
    gaps = np.diff(logs)
    widest = int(gaps.argmax()) if len(gaps) else 0
    ratio = math.exp(float(gaps[widest])) if len(gaps) else 1.0
    found = ratio >= least_ratio
    threshold = math.exp((logs[widest] + logs[widest + 1]) / 2) if found else floor
    return NoiseFloor(threshold, ratio, found, int((values <= threshold).sum()), len(values))


@dataclass(frozen=True)
class CollapsedTensor(Record):
    """What `collapse_` did to one tensor.

    Attributes:
        name: of the tensor.
        kind: "entries", "groups", "singular values", "constraints", "units" or "none" (there is nothing to cut).
        dead: how many were set to zero.
        total: of how many.
        threshold: size at or below which one is dead.
        gap: ratio of the sizes above and below the threshold; NaN if the threshold was given.
        clear: whether the threshold was given or found in a gap. If not, only what is below rounding was set to zero:
            train on until the factors have died (`predict_steps`), or give a threshold.
    """

    name: str
    kind: str
    dead: int
    total: int
    threshold: float
    gap: float
    clear: bool


def collapse_(
    model: nn.Module, threshold: float | None = None, *, keep: float | None = None
) -> tuple[CollapsedTensor, ...]:
    """Replace every constrained tensor by a plain parameter, with what died set to exactly zero.

    The model is made of plain modules afterwards, with the names it had before `sparse` and its relatives. Entries,
    groups, units, constraints or singular values of at most the threshold become zero, the rest stays as it is.

    Args:
        model: with constraints imposed; changed in place. Optimizers hold the old parameters; build a new one.
        threshold: on the size; by default `noise_floor` finds it, for each tensor (for all tensors of the units
            together).
        keep: instead of a threshold, the fraction in (0, 1] that stays: the largest entries of all tensors together,
            the largest groups, units, and so on. For a run that ended before what dies was dead, and for a target.

    Returns:
        One entry for each tensor.

    Raises:
        ControlError: if no constraint is imposed, the threshold is negative, ``keep`` is not in (0, 1], or both are
            given.

    Cost: one SVD for each low-rank tensor.

    Example:
        >>> from gaugefix.control import impose
        >>> layer = impose.sparse(nn.Linear(4, 3), "weight", strength=1e-3)
        >>> done, = impose.collapse_(layer, threshold=0.2)
        >>> int((layer.weight == 0).sum()) == done.dead, sorted(dict(layer.named_parameters()))
        (True, ['bias', 'weight'])
    """
    tensors = imposed(model)
    if not tensors:
        raise ControlError("No constraint is imposed on this model; there is nothing to collapse.")
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise ControlError(f"threshold must be a number in [0, inf), got {threshold!r}.")
    if keep is not None and not (threshold is None and 0 < keep <= 1):
        raise ControlError(f"keep must be in (0, 1], without a threshold, got keep={keep!r}, threshold={threshold!r}.")
    bars = {} if keep is None else _bars(tensors, keep)
    with torch.no_grad():
        results = [_cut(tensor, tensors, bars.get(type(tensor.kind), threshold)) for tensor in tensors]
    for tensor, (value, _) in zip(tensors, results, strict=True):
        parametrize.remove_parametrizations(tensor.module, tensor.tensor_name, leave_parametrized=True)
        with torch.no_grad():
            getattr(tensor.module, tensor.tensor_name).copy_(value)
    return tuple(record for _, record in results)


def _bars(tensors: Sequence[Imposed], keep: float) -> dict[type[Factorised], float]:
    """For each kind of constraint the size up to which nothing stays, if a fraction is to stay."""
    pools: dict[type[Factorised], list[Tensor]] = {}
    counted: list[Imposed] = []
    for tensor in tensors:
        kind = tensor.kind
        twins = [t.kind for t in counted if isinstance(t.kind, PartFactors)]
        if isinstance(kind, PartFactors) and any(same_scales(kind, twin) for twin in twins):
            continue  # the same units, in another tensor
        if (sizes := sizes_of(tensor, tensors)) is not None:
            pools.setdefault(type(kind), []).append(sizes.double())
            counted.append(tensor)
    bars = {}
    for kind_of, sizes_of_kind in pools.items():
        ordered = torch.cat(sizes_of_kind).sort(descending=True).values
        stay = max(round(keep * len(ordered)), 1)
        bars[kind_of] = float(ordered[stay]) if stay < len(ordered) else -1.0
    return bars


def sizes_of(tensor: Imposed, siblings: Sequence[Imposed] = ()) -> Tensor | None:
    """What the penalty of a tensor is the sum of: |entries|, norms, singular values; None for factors on their own.

    Args:
        tensor: with a constraint.
        siblings: the other tensors of the model, for units with entries in several.

    Returns:
        Sizes ≥ 0, flat.
    """
    with torch.no_grad():
        value, kind = tensor.value, tensor.kind
        if isinstance(kind, EntryFactors):
            return value.abs().flatten()
        if isinstance(kind, GroupFactors):
            return kind.norms(value).flatten()
        if isinstance(kind, RankFactors):
            singular: Tensor = torch.linalg.svdvals(
                value.flatten(1).to(torch.promote_types(value.dtype, torch.float32))
            )
            return singular
        if isinstance(kind, LinearFactors):
            return kind.norms(kind.expand(tensor.originals[1]) * tensor.originals[2]).abs().flatten()
        if isinstance(kind, PartFactors) and (scales := unit_scales(kind)) is not None:
            same = [t for t in siblings if isinstance(t.kind, PartFactors) and same_scales(t.kind, kind)] or [tensor]
            parts = [t.kind.sizes(t.value, len(scales)) for t in same if isinstance(t.kind, PartFactors)]
            return torch.stack(parts).sum(0).sqrt()
    return None


def _cut(tensor: Imposed, tensors: Sequence[Imposed], threshold: float | None) -> tuple[Tensor, CollapsedTensor]:
    """The value with its dead parts at zero, and what was cut."""
    sizes, value = sizes_of(tensor, tensors), tensor.value.detach().clone()
    if sizes is None:
        return value, CollapsedTensor(tensor.name, "none", 0, 0, 0.0, math.nan, clear=True)
    if threshold is None:
        floor = noise_floor(sizes, precision=torch.finfo(value.dtype).eps)
        bar, ratio, clear = floor.threshold, floor.ratio, floor.found
    else:
        bar, ratio, clear = threshold, math.nan, True
    alive = sizes > bar
    record = CollapsedTensor(
        tensor.name, _KINDS[type(tensor.kind)], int((~alive).sum()), len(sizes), bar, ratio, clear=clear
    )
    return _masked(tensor, tensor.kind, value, alive), record


_KINDS: dict[type[Factorised], str] = {
    EntryFactors: "entries",
    GroupFactors: "groups",
    RankFactors: "singular values",
    LinearFactors: "constraints",
    PartFactors: "units",
}


def _masked(tensor: Imposed, kind: Factorised, value: Tensor, alive: Tensor) -> Tensor:
    if bool(alive.all()):
        return value
    if isinstance(kind, EntryFactors):
        return value * alive.view_as(value)
    if isinstance(kind, GroupFactors):
        mask = alive.view_as(tensor.originals[0])
        return value * (mask if kind.labels is None else mask[kind.labels])
    if isinstance(kind, RankFactors):
        exact = value.flatten(1).to(torch.promote_types(value.dtype, torch.float32))
        left, sizes, right = torch.linalg.svd(exact, full_matrices=False)
        kept: Tensor = (left * (sizes * alive)) @ right
        return kept.reshape(value.shape).to(value.dtype)
    if isinstance(kind, LinearFactors):
        w, s, v = tensor.originals
        return kind(w, s * alive.view_as(s), v)  # type: ignore[no-any-return]
    if isinstance(kind, PartFactors) and kind.labels is not None:
        flat = value.flatten()
        at = slice(None) if kind.positions is None else kind.positions
        flat[at] = flat[at] * alive[kind.labels]
        return flat.view_as(value)
    return value
