"""A few steps that bring a folded model back to the outputs of the original."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.folding.records import Refit
from gaugefix.errors import ControlError
from gaugefix.symmetry.capture import named_outputs
from gaugefix.task import Task


def refit_model(
    model: nn.Module, original: nn.Module, data: Task | Iterable[Any], *, steps: int, lr: float = 1e-3
) -> tuple[nn.Module, Refit]:
    """Fit the outputs of one model to those of another with Adam; labels are not needed.

    Args:
        model: the folded model; left as it is.
        original: the teacher.
        data: a task, or batches of arguments.
        steps: number of steps, the batches taken in turn.
        lr: step size at the start, relative to the root mean square of each parameter; it falls to zero.

    Returns:
        The better of the two models, and both errors.

    Raises:
        ControlError: if there is no batch, or ``steps`` < 1.
    """
    if steps < 1:
        raise ControlError(f"fold: refit_steps must be at least 1, got {steps!r}.")
    if isinstance(data, Task):
        batches = [data.inputs(b) for b in data.batch_iter(0)]
    else:
        batches = [b if isinstance(b, tuple) else (b,) for b in data]
    if not batches:
        raise ControlError("fold: refit has no batch; pass a Task or a list of arguments.")
    with torch.no_grad():
        wanted = [_outputs(original, b) for b in batches]
    student = copy.deepcopy(model).eval().requires_grad_(True)
    groups = [
        {"params": [p], "lr": lr * max(float(p.detach().square().mean().sqrt()), 1e-3)} for p in student.parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(1 - k / steps, 0.0))
    before = _error(student, batches, wanted)
    for k in range(steps):
        outs, goal = _outputs(student, batches[k % len(batches)]), wanted[k % len(batches)]
        loss = torch.stack([(a - b).square().mean() / b.square().mean() for a, b in zip(outs, goal, strict=True)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    after = _error(student, batches, wanted)
    if not after < before:
        return model, Refit(steps, before, before)
    trainable = {n: p.requires_grad for n, p in model.named_parameters()}
    for name, p in student.named_parameters():
        p.grad = None
        p.requires_grad_(trainable[name])
    return student, Refit(steps, before, after)


def _outputs(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    return list(named_outputs(model(*args)).values())


@torch.no_grad()
def _error(model: nn.Module, batches: list[tuple[Any, ...]], wanted: list[list[Tensor]]) -> float:
    """‖f' − f‖/‖f‖ over all batches."""
    gap = scale = 0.0
    for b, goal in zip(batches, wanted, strict=True):
        for a, t in zip(_outputs(model, b), goal, strict=True):
            gap, scale = gap + float((a - t).double().square().sum()), scale + float(t.double().square().sum())
    return float((gap / scale) ** 0.5 if scale > 0 else gap**0.5)
