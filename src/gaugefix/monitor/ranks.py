"""Ranks of classes, and the state of Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.collapse import rank_sides
from gaugefix.measure.spectra import class_rank, effective_rank, numerical_rank
from gaugefix.monitor.pairs import unit_entries
from gaugefix.monitor.shards import add_up, local_part, whole
from gaugefix.monitor.watched import WatchedClass

#: ranks of larger classes are left out: a decomposition of their matrix takes seconds
MOST_FOR_RANK = 1024
_MOST_ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class Ranks:
    """Rank of a class.

    Attributes:
        ranks: numerical rank, one per fiber for a general linear group, else one.
        most: what the shapes allow.
        effective: exp(entropy of the spectrum), the smallest over fibers.
    """

    ranks: tuple[int, ...]
    most: int
    effective: float


def product_ranks(w: WatchedClass, params: Mapping[str, Tensor], tolerance: float) -> Ranks | None:
    """Ranks of what a general linear group leaves unchanged: the product of both sides, QᵀK or V O of every head.

    Args:
        w: the class.
        params: parameters by name.
        tolerance: as in `gaugefix.measure.collapse_report`.

    Returns:
        One rank per fiber, or None if the class has no such group, lacks a side, or has more than `MOST_FOR_RANK`
        units. Cost: one QR of each side and one SVD of a small square, in float64.
    """
    u = w.units
    if not w.polarity or u.size > MOST_FOR_RANK:
        return None
    sides, widths = [], [u.size]
    for sign in (1, -1):
        slices = [
            s for s, p in zip(u.slices, w.polarity, strict=True) if p == sign and params[s.param].ndim > 1
        ]  # biases would make rank r look like r + 1
        if not slices:
            return None
        rows = torch.cat([unit_entries(s, params) for s in slices], dim=2)
        rows = (rows.cpu() if rows.device.type == "mps" else rows).double()
        widths.append(rows.shape[2])
        sides.append(torch.linalg.qr(rows.transpose(1, 2), mode="r").R)
    most = min(u.size, *(s.shape[1] for s in sides))
    values = torch.linalg.svdvals(sides[0] @ sides[1].transpose(1, 2))[:, :most].cpu().numpy()
    shape = max(widths), most
    eps = max(float(torch.finfo(params[s.param].dtype).eps) for s in u.slices)
    ranks = tuple(numerical_rank(v, shape=shape, eps=eps, gap=tolerance) for v in values)
    return Ranks(ranks, most, min(effective_rank(v) for v in values))


def row_rank(
    w: WatchedClass, params: Mapping[str, Tensor], live: np.ndarray, distinct: int, tolerance: float
) -> Ranks | None:
    """Rank of the incoming rows of a class, exactly as `gaugefix.measure.collapse_report` defines it.

    Args:
        w: the class.
        params: parameters by name.
        live: ``(n,)`` mask.
        distinct: live units after merging duplicates.
        tolerance: as there.

    Returns:
        One rank, or None if the matrix is too large for an SVD. Cost: one SVD in float64 on the processor.
    """
    u = w.units
    rows = sum(params[p].numel() for p in u.parameters)
    if len(u) > 2 * MOST_FOR_RANK or rows > _MOST_ENTRIES:
        return None
    own = {p: whole(params[p].detach()) for p in u.parameters}
    each = [distinct] if u.fibers == 1 else live.reshape(u.fibers, u.size).sum(1).tolist()
    found = class_rank(own, u, live, each, rank_sides(u, [u]), tolerance)
    return Ranks((found.rank,), found.max_rank, effective_rank(found.spectrum))


def adam_state(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, float]:
    """Size of Adam's steps, and how many entries ε freezes.

    Args:
        optimizers: those that are not Adam or AdamW, or have no state yet, are passed over.

    Returns:
        ``adam/step``, the root mean square of m̂/(√v̂ + ε): 1 where every gradient has one sign, about √((1−β₁)/(1+β₁))
        under pure noise; ``adam/frozen``, the share of entries with √v̂ < ε, which barely move. Empty without state.
        Cost: one pass over the state; memory: one parameter.
    """
    sums: dict[Any, Tensor] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) else ():
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                if "exp_avg_sq" not in state:
                    continue
                first, second = local_part(state["exp_avg"]), local_part(state["exp_avg_sq"])
                steps = float(state["step"])
                root = (second.tensor / (1 - group["betas"][1] ** steps)).sqrt()
                step = first.tensor / (1 - group["betas"][0] ** steps) / (root + group["eps"])
                count = torch.full_like(step.sum(), float(step.numel()))
                row = torch.stack([step.square().sum(), (root < group["eps"]).sum().to(step.dtype), count])
                sums[first.spread] = sums[first.spread] + row if first.spread in sums else row
    if not sums:
        return {}
    square, frozen, entries = torch.stack([add_up(v, k).cpu().double() for k, v in sums.items()]).sum(0).tolist()
    return {"adam/step": (square / entries) ** 0.5, "adam/frozen": frozen / entries} if entries else {}
