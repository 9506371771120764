"""Rebalance: move along the symmetry orbit to a balanced point, without changing the function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gaugefix.control.gauges.balance import balance_norms, why_not_balanced
from gaugefix.control.gauges.noise import balance_noise
from gaugefix.control.state import (
    PRESERVED,
    Function,
    State,
    exact_symmetries,
    resolve,
    state_of,
    write_state,
)
from gaugefix.errors import ControlError
from gaugefix.measure import Record
from gaugefix.symmetry import Symmetries, Symmetry
from gaugefix.symmetry.groups import Diagonal, Rotation
from gaugefix.task import Task

Target = Literal["norm", "noise", "equal_scale"]


@dataclass(frozen=True, eq=False)
class Rebalanced(Record):
    """What a rebalancing did.

    Attributes:
        to: the gauge asked for.
        groups: names of the symmetries that were used.
        left: why others were not, by name.
        changed: names of the parameters that moved.
        norm: ‖θ‖² before and after.
        error: relative change of the outputs, ‖f' − f‖/‖f‖, in the model's own precision.
        tolerance: what it was held against.
        residual: largest relative difference between the two sides of a class that is left; 0 is balanced. For
            "noise" measured with the gradients at the new point.
        sweeps: passes over the groups, or over the data for "noise".
        converged: whether the residual is below 1e-10 (0.05 for "noise", where it is a statistic).
        unbounded: units with one side (or its noise) at zero, and directions of a general linear class that its product
            lacks (an adapter at B = 0): they have no balanced point and were left alone, because balanced at zero they
            could never be trained again.
    """

    to: str
    groups: tuple[str, ...]
    left: dict[str, str]
    changed: tuple[str, ...]
    norm: tuple[float, float]
    error: float
    tolerance: float
    residual: float
    sweeps: int
    converged: bool
    unbounded: int


def rebalance_(
    model: nn.Module | Task,
    symmetries: Symmetries | None = None,
    *,
    to: Target = "norm",
    data: Task | None = None,
    example_inputs: object = None,
    max_batches: int = 64,
    seed: int = 0,
) -> Rebalanced:
    """Move to the balanced point of the symmetry orbit, in place: other parameters, the same function.

    Rescalings (R+^n) and general linear groups (heads: queries with keys, values with outputs; adapters; linear
    layers) leave the function and change everything that depends on norms: weight decay, sharpness, the size of a
    step. There is one point on each orbit where

    - ``to="norm"``: Σ‖θ‖² is least: both sides of every unit have equal norm, and W₊W₊ᵀ = W₋W₋ᵀ in every head. It is
      where weight decay wants to be, reached at once and for free.
    - ``to="noise"``: E‖ĝ‖² is least: both sides have equal second moments of the minibatch gradient ĝ. It is where
      SGD without weight decay drifts to (the noise equilibrium): u → λu, w → w/λ with λ⁴ = E‖ĝ_u‖²/E‖ĝ_w‖² for a
      unit, and the geometric mean of the two moment matrices for a head. Needs a task.
    - ``to="equal_scale"``: the sum over tensors of their mean-square entry is least, so that two layers have entries
      of equal size rather than equal norms.

    Groups that hold in training only up to ε or up to running statistics are left alone, and so are groups that move
    a frozen parameter and those that have no balanced point (a weight in front of a normalisation); `Rebalanced.left`
    has the reasons. Buffers are not touched. The momentum of an optimiser belongs to the old gauge: reset it.

    Args:
        model: the module, changed in place; or a task.
        symmetries: what `find_symmetries` gave for it; searched for if None.
        to: which point.
        data: the task that gives losses and batches for "noise"; the model itself if that is a task.
        example_inputs: a tensor or tuple of arguments at which the function is compared; a task brings its own.
        max_batches: minibatches per estimate of the gradient moments.
        seed: of the data order.

    Returns:
        What was done. Cost: a few passes over the parameters and one forward pass per symmetry; for "noise" up to 8
        times ``max_batches`` gradients.

    Raises:
        ControlError: if ``to`` is unknown, inputs or data are missing, the symmetries are another model's, a parameter
            is not floating point, or the function would change (the model is then as it was).

    Source: 2308.06671 (scalars), 2402.07193 (matrices, noise equilibrium).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).double()
        >>> done = rebalance_(net, example_inputs=torch.randn(5, 4))
        >>> done.converged, done.error < 1e-12, done.norm[1] <= done.norm[0]
        (True, True, True)
        >>> bool(torch.allclose(net[0].weight.norm(dim=1), net[2].weight.norm(dim=0)))
        True
    """
    if to not in {"norm", "noise", "equal_scale"}:
        raise ControlError(f"rebalance_: to must be 'norm', 'noise' or 'equal_scale', got {to!r}.")
    module, args, found = resolve(model, symmetries, example_inputs, "rebalance_")
    function = Function.of(module, args)
    state = function.state
    groups, left = balanceable(found, function, module)
    if to == "noise":
        balanced = balance_noise(_task(model, data, module), state, groups, max_batches=max_batches, seed=seed)
    else:
        weights = {n: 1.0 / t.numel() for n, t in state.items()} if to == "equal_scale" else None
        balanced = balance_norms(state, groups, weights)
    params = {n for n, _ in module.named_parameters()}
    before = _norm(state_of(module), params)
    new = {n: t for n, t in balanced.state.items() if n in params}
    error, tolerance, changed = write_checked(module, function, new, "rebalance_")
    return Rebalanced(
        to, tuple(g.name for g in groups), left, changed, (before, _norm(state_of(module), params)), error, tolerance,
        balanced.residual, balanced.sweeps, balanced.converged, balanced.unbounded,
    )  # fmt: skip


def balanceable(symmetries: Symmetries, function: Function, module: nn.Module) -> tuple[list[Symmetry], dict[str, str]]:
    """The two-sided groups of a module that hold exactly and move no frozen parameter, and why others do not count.

    Args:
        symmetries: what was found.
        function: of the module.
        module: tells what is frozen.

    Returns:
        Groups and reasons by name.
    """
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    frozen = set() if len(frozen) == sum(1 for _ in module.parameters()) else frozen  # all: a model for inference
    state, left, wanted = function.state, {}, []
    for s in symmetries:
        if s.level != "function":
            continue
        reason = why_not_balanced(s, state)
        held = [n for n in s.parameters if n in frozen]
        if not reason and held:
            reason = f"it moves the frozen parameter {held[0]!r}"
        if reason:
            left[s.name] = reason
        else:
            wanted.append(s.name)
    exact, not_exact = exact_symmetries(symmetries, function, kinds=(Diagonal, Rotation))
    groups = [s for s in exact if s.name in wanted]
    return groups, {**left, **{n: r for n, r in not_exact.items() if n in wanted}}


def _task(model: nn.Module | Task, data: Task | None, module: nn.Module) -> Task:
    task = data if data is not None else model
    if not isinstance(task, Task):
        raise ControlError(
            "rebalance_(to='noise') needs gradients: pass a gaugefix.Task as the model or as data, "
            f"got {type(data).__name__}."
        )
    if task.model is not module:
        raise ControlError("rebalance_(to='noise'): data is the task of another model; its model must be this one.")
    return task


def write_checked(
    module: nn.Module, function: Function, new: State, caller: str
) -> tuple[float, float, tuple[str, ...]]:
    """Write a state into a module and compare its function with what it was; undo and refuse if that changed.

    Args:
        module: changed in place.
        function: what it computed before.
        new: the state to write.
        caller: named in the error.

    Returns:
        Relative change of the outputs at the parameters as they are stored, the tolerance, and what changed.

    Raises:
        ControlError: if the change is above the tolerance; the module is then as it was.
    """
    tolerance = max((PRESERVED[p.dtype] for p in module.parameters() if p.dtype in PRESERVED), default=1e-9)
    original = [(t, t.detach().clone()) for t in _tensors(module)]
    changed = write_state(module, new)
    error = function.change(state_of(module))
    if error > tolerance:
        with torch.no_grad():
            for target, value in original:
                target.copy_(value)
        raise ControlError(
            f"{caller}: the function would change by {error:.1e}, more than {tolerance:.0e} for this precision. "
            "The model is as it was. Use float64, or report the symmetry that did it."
        )
    return error, tolerance, changed


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _norm(state: State, names: set[str]) -> float:
    return sum(float(t.square().sum()) for n, t in state.items() if n in names)
