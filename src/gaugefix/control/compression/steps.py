"""The steps of a compression around the training: the optimizer, the threshold, the fold."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from gaugefix.control.compression.plan import Plan
from gaugefix.control.folding import FoldResult, fold
from gaugefix.control.impose import factors, parameter_groups
from gaugefix.control.impose.collapse import sizes_of
from gaugefix.control.impose.factors import imposed
from gaugefix.control.impose.parts import PartFactors, unit_scales
from gaugefix.errors import ControlError
from gaugefix.task import Task


def penalised(task: Task, factor_lr: float | None) -> tuple[torch.optim.Optimizer, bool]:
    """The optimizer of a task for a constrained model.

    Args:
        task: with the constrained model.
        factor_lr: learning rate of the factors; None for that of the task.

    Returns:
        The optimizer, and whether its weight decay is the penalty; if not (AdamW), that belongs into the loss.
    """
    if task.optimizer == "adamw":
        mine = {id(p) for _, p in factors(task.model)}
        rest = [p for p in task.model.parameters() if p.requires_grad and id(p) not in mine]
        groups = [
            {"params": rest, "weight_decay": task.weight_decay},
            {"params": [p for _, p in factors(task.model)], "weight_decay": 0.0, "lr": factor_lr or task.lr},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=task.lr), False
    kind: Any = torch.optim.SGD if task.optimizer == "sgd" else torch.optim.Adam
    options = {"momentum": task.momentum} if task.optimizer == "sgd" else {}
    groups = parameter_groups(task.model, weight_decay=task.weight_decay, factor_lr=factor_lr)
    return kind(groups, lr=task.lr, **options), True


def threshold(model: nn.Module, keep: float) -> float:
    """The size that a part of all units, singular values and entries exceeds.

    Args:
        model: constrained.
        keep: the part, in (0, 1].

    Returns:
        A size; 0 if everything is kept.
    """
    tensors = imposed(model)
    sizes = []
    for tensor in tensors:
        scales = unit_scales(tensor.kind) if isinstance(tensor.kind, PartFactors) else None
        if scales is not None and not tensor.kind.owner:
            continue  # units are counted once, not in each of their tensors
        found = sizes_of(tensor, tensors)
        sizes += [] if found is None else [found.detach().double().cpu()]
    if not sizes:
        return 0.0
    every = torch.cat(sizes).sort(descending=True).values
    kept = max(round(keep * len(every)), 1)
    return float(every[kept]) if kept < len(every) else 0.0


def folded(task: Task, plan: Plan) -> tuple[FoldResult, str]:
    """Fold as asked for; if that would change the outputs too much, only what is exactly idle.

    Args:
        task: with a plain model.
        plan: the settings.

    Returns:
        The result, and what a reader should know about it.
    """
    factor = plan.method != "sparse"
    with suppress(ControlError):
        return fold(task, tolerance=plan.tolerance, factor=factor), ""
    exact = fold(task, tolerance=0.0, factor=factor)
    return exact, "Folding to the given tolerance would have changed the outputs too much; only exact zeros were cut."
