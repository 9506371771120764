"""align: one network in the coordinates of another, without changing its function."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gaugefix.control.alignment.activations import activation_start
from gaugefix.control.alignment.matching import Matcher, random_start, signature_start
from gaugefix.control.gauges.balance import Balanced, balance_norms, rotate_fibers, why_not_balanced
from gaugefix.control.gauges.rebalance import write_checked
from gaugefix.control.state import Function, State, as_args, check_model, exact_symmetries
from gaugefix.errors import ControlError
from gaugefix.measure import Record
from gaugefix.symmetry import Symmetries, Symmetry, find_symmetries
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation
from gaugefix.task import Task

Method = Literal["weights", "activations"]


@dataclass(frozen=True, eq=False)
class Aligned(Record):
    """A network in the coordinates of another.

    Attributes:
        model: a copy of the second model with the same function, as close to the first as was found.
        method: "weights" or "activations".
        groups: names of the symmetries that were used.
        left: why others were not, by name.
        distance: ‖θ_b − θ_a‖/‖θ_a‖ over the parameters, before and after.
        similarity: cosine of the two parameter vectors in the balanced gauge, before and after.
        error: relative change of the outputs of the second model.
        starts: similarity that each start arrived at, in the order signature or activations, as it is, random.
        sweeps: passes over the classes of the best start.
        moved: number of units that changed their place, by class.
    """

    model: nn.Module
    method: str
    groups: tuple[str, ...]
    left: dict[str, str]
    distance: tuple[float, float]
    similarity: tuple[float, float]
    error: float
    starts: tuple[float, ...]
    sweeps: int
    moved: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the model.

        Returns:
            One key per field.
        """
        return {k: v for k, v in super().to_dict().items() if k != "model"}


def align(
    model_a: nn.Module | Task,
    model_b: nn.Module,
    symmetries: Symmetries | None = None,
    *,
    data: Task | Iterable[Any] | None = None,
    method: Method = "weights",
    starts: int = 4,
    seed: int = 0,
    example_inputs: object = None,
) -> Aligned:
    """Move the second model along its symmetry orbit to where it is closest to the first.

    Two trainings of one architecture end in different coordinates: units, channels, heads and residual streams in
    other orders, signs and scales, heads in another basis. All discovered permutations, sign flips, rescalings and
    general linear groups are used, none has to be named:

    1. both models go to their balanced gauge, on which only permutations, signs and rotations are left;
    2. classes are matched in turn, each by a linear assignment over the inner products of its units with the others
       as they are; a pair of units counts with its best sign, a pair of heads with its best rotation (a nuclear norm),
       rotations by the orthogonal Procrustes solution. Each step is kept only if the inner product of all parameters
       grows. Several starts: the signature of every unit (sorted magnitudes of its entries, which no permutation of
       the others and no sign changes), the order as it is, random ones; the best end is taken;
    3. the result goes to the gauge of the first model.

    A copy of a network in other coordinates comes back exactly; for networks trained apart it is a heuristic for a
    quadratic assignment problem, as in Git Re-Basin (arXiv 2209.04836), which knows permutations alone.

    Args:
        model_a: the model whose coordinates are wanted; or a task with it.
        model_b: the model to be moved; left as it is. Same architecture.
        symmetries: what `find_symmetries` gave for one of them; searched for if None.
        data: batches of arguments, or a task, for ``method="activations"``; default the example inputs.
        method: "weights", or "activations": units are matched by the correlation of what their readers see of them,
            and the rest by weights.
        starts: number of starts, at least 1.
        seed: of random starts and of the order of steps.
        example_inputs: a tensor or tuple of arguments at which the function is compared; a task brings its own.

    Returns:
        The aligned copy and how close it came. Cost: for each start some sweeps of n³ assignments and one product of
        the parameters per class.

    Raises:
        ControlError: if the models differ in parameters, arguments are out of range, inputs are missing, or the
            function would change.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        >>> twin, order = copy.deepcopy(net), torch.tensor([4, 2, 0, 1, 3, 5])
        >>> with torch.no_grad():
        ...     for p in (twin[0].weight, twin[0].bias):
        ...         _ = p.copy_(2 * p[order])
        ...     _ = twin[2].weight.copy_(twin[2].weight[:, order] / 2)
        >>> back = align(net, twin, example_inputs=torch.randn(4, 3))
        >>> back.distance[0] > 0.1, back.distance[1] < 1e-6, back.error < 1e-12
        (True, True, True)
    """  # noqa: DOC502
    first, args = as_args(model_a, example_inputs, "align")
    _check(first, model_b, symmetries, method, starts)
    found = find_symmetries(first, args, verify=False) if symmetries is None else symmetries
    fa, fb = Function.of(first, args), Function.of(model_b, args)
    groups, left = exact_symmetries(found, fb, kinds=(Permutation, Diagonal, Rotation))
    scales, matcher, target, origin, names, left = _gauge(groups, fa.state, fb.state, left)
    generator, ends = torch.Generator().manual_seed(seed), []
    for k in range(starts):
        state, fixed = origin.state, frozenset[str]()
        if k == 0 and method == "activations":
            batches = _batches(data, args)
            state, fixed = activation_start(fa, fb, batches, state, matcher)
        elif k == 0:
            state = signature_start(target.state, state, matcher.permutations)
        elif k > 1:
            state = random_start(state, matcher.permutations, generator)
        ends.append(matcher.climb(state, generator, fixed=fixed))
        if method == "activations":
            break  # the assignment is that of the activations; there is nothing to start from anew
    state, _, sweeps = max(ends, key=lambda end: end[1])
    final = _into_gauge(state, target, scales)
    out = copy.deepcopy(model_b)
    error, _, _ = write_checked(out, fb, final, "align")
    params = [n for n, _ in first.named_parameters()]
    return Aligned(
        out, method, names, left, (_distance(fa.state, fb.state, params), _distance(fa.state, final, params)),
        (_cosine(target.state, origin.state, params), _cosine(target.state, state, params)), error,
        tuple(_cosine(target.state, s, params) for s, _, _ in ends), sweeps,
        {p.name: _moved(origin.state, state, p) for p in matcher.permutations},
    )  # fmt: skip


def _check(a: nn.Module, b: nn.Module, symmetries: Symmetries | None, method: str, starts: int) -> None:
    if method not in {"weights", "activations"}:
        raise ControlError(f"align: method must be 'weights' or 'activations', got {method!r}.")
    if not isinstance(starts, int) or starts < 1:
        raise ControlError(f"align: starts must be an integer >= 1, got {starts!r}.")
    if not isinstance(b, nn.Module):
        raise ControlError(f"align: model_b must be an nn.Module, got {type(b).__name__}.")
    check_model(a, symmetries, "align")
    check_model(b, symmetries, "align")
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (a, b)]
    if shapes[0] != shapes[1]:
        name = next(n for n in (*shapes[0], *shapes[1]) if shapes[0].get(n) != shapes[1].get(n))
        raise ControlError(
            f"align: the models are of different architectures: {name!r} has shape {shapes[0].get(name)} in the first "
            f"and {shapes[1].get(name)} in the second."
        )


def _gauge(
    groups: Sequence[Symmetry], a: State, b: State, left: dict[str, str]
) -> tuple[list[Symmetry], Matcher, Balanced, Balanced, tuple[str, ...], dict[str, str]]:
    """Both models in the balanced gauge, and what is left to match."""
    scales: list[Symmetry] = []
    signs: list[Diagonal] = []
    rotations: list[Rotation] = []
    permutations = [g for g in groups if isinstance(g, Permutation)]
    for g in groups:
        reason = why_not_balanced(g, b)
        if isinstance(g, Diagonal) and g.kind == "sign":
            signs.append(g)
        elif isinstance(g, Rotation) and (not reason or g.orthogonal):
            rotations.append(g)
            whole = not g.orthogonal and not any(
                bool((rotate_fibers(s, g, {}, principal=True)[1] == 0).any()) for s in (a, b)
            )
            scales += [g] if whole else []
            if not g.orthogonal and not whole:
                left = {
                    **left,
                    f"{g.name}: general linear part": "its product lacks full rank: only rotations are matched",
                }
        elif isinstance(g, Diagonal | Rotation):
            if reason:
                left = {**left, g.name: reason}
            else:
                scales.append(g)
    used = (*permutations, *signs, *rotations, *(g for g in scales if isinstance(g, Diagonal)))
    target, origin = (balance_norms(s, scales, principal=True) for s in (a, b))
    matcher = Matcher(target.state, permutations, signs, rotations)
    return scales, matcher, target, origin, tuple(g.name for g in used), left


def _into_gauge(state: State, target: Balanced, scales: Sequence[Symmetry]) -> State:
    """Undo the balancing of the first model on the second, which has its coordinates now."""
    for g in scales:
        element = target.elements.get(g.name)
        if isinstance(g, Diagonal) and element is not None:
            state = g.apply(state, -element)
        elif isinstance(g, Rotation) and element is not None and bool(torch.isfinite(element).all()):
            state = g.apply(state, torch.linalg.inv(element))
    return state


def _batches(data: Task | Iterable[Any] | None, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    if data is None:
        return [args]
    if isinstance(data, Task):
        return [data.inputs(b) for b in data.batch_iter(0)]
    batches = [b if isinstance(b, tuple) else (b,) for b in data]
    if not batches:
        raise ControlError("align: data has no batch; pass a Task or a list of arguments.")
    return batches


def _distance(a: State, b: State, names: Sequence[str]) -> float:
    gap = sum(float((a[n] - b[n]).square().sum()) for n in names)
    return float((gap / max(sum(float(a[n].square().sum()) for n in names), 1e-300)) ** 0.5)


def _cosine(a: State, b: State, names: Sequence[str]) -> float:
    inner, aa, bb = (sum(float((x[n] * y[n]).sum()) for n in names) for x, y in ((a, b), (a, a), (b, b)))
    return float(inner / max((aa * bb) ** 0.5, 1e-300))


def _moved(before: State, after: State, p: Permutation) -> int:
    """Units whose size is that of another unit before; an estimate where sizes tie."""
    units = p._class()

    def sizes(state: State) -> torch.Tensor:
        parts = [s.take(state[s.param]).reshape(units.fibers, units.size, -1).square().sum(2) for s in units.slices]
        return torch.stack(parts).sum(0)

    a, b = sizes(before), sizes(after)
    return int(((a - b).abs() > 1e-9 * a.abs().max().clamp_min(1e-300)).sum())
