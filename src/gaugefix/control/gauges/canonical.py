"""The canonical form of a model: one point for each orbit of the symmetries, so that equal functions look equal."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaugefix.control.gauges.balance import balance_norms, stacked, why_not_balanced
from gaugefix.control.gauges.rebalance import write_checked
from gaugefix.control.gauges.signs import SignGroup, fix_signs
from gaugefix.control.state import Function, State, exact_symmetries, resolve
from gaugefix.measure import Record
from gaugefix.symmetry import Symmetries, Symmetry
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation
from gaugefix.task import Task

_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class CanonicalForm(Record):
    """A model in canonical form.

    Attributes:
        model: a copy with the same function.
        groups: names of the symmetries that were fixed: models that differ by these become equal.
        left: symmetries that were not, with the reason, by name: they still tell equal functions apart.
        degenerate: classes in which two units, or two singular values, cannot be told apart by their size, with the
            number of such ties, by name; their order is arbitrary.
        error: relative change of the outputs.
        residual: of the balance, 0 at the minimum.
        converged: whether the balance was reached.
    """

    model: nn.Module
    groups: tuple[str, ...]
    left: dict[str, str]
    degenerate: dict[str, int]
    error: float
    residual: float
    converged: bool

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the model.

        Returns:
            One key per field.
        """
        return {k: v for k, v in super().to_dict().items() if k != "model"}


def canonicalize(
    model: nn.Module | Task, symmetries: Symmetries | None = None, *, example_inputs: object = None
) -> CanonicalForm:
    """Choose one representative on the symmetry orbit: balanced, sorted, signs fixed.

    1. Rescalings and general linear groups: the point of least norm (`rebalance_`), heads and linear layers in their
       principal axes. It is unique up to what keeps norms.
    2. Permutations: units of each class in decreasing order of their squared norms, slice by slice with fixed weights.
    3. Sign flips: the largest entries positive, as many as the flips allow.

    Two models with one function that differ by these groups become equal, entry by entry, up to rounding; comparing
    weights, averaging or hashing then makes sense. Shifts and rotations of a residual stream are not fixed: see
    `CanonicalForm.left`. Running statistics of batch normalisation move with their units.

    Args:
        model: left as it is; or a task.
        symmetries: what `find_symmetries` gave for it; searched for if None.
        example_inputs: a tensor or tuple of arguments at which the function is compared; a task brings its own.

    Returns:
        The copy and what was fixed. Cost: one forward pass per symmetry, sorting the entries, and python time in
        proportion to the entries that signs can change.

    Raises:
        ControlError: if inputs are missing, the symmetries are another model's, or the function would change.

    Source: 2309.16932, 2402.07193; Kempf and Ness (1979) for the uniqueness of the balanced point.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
        >>> twin, order = copy.deepcopy(net), torch.tensor([4, 2, 0, 1, 3])
        >>> with torch.no_grad():
        ...     for p in (twin[0].weight, twin[0].bias):
        ...         _ = p.copy_(2 * p[order])
        ...     _ = twin[2].weight.copy_(twin[2].weight[:, order] / 2)
        >>> x = torch.randn(4, 3)
        >>> a, b = (canonicalize(m, example_inputs=x).model for m in (net, twin))
        >>> all(torch.allclose(p, q) for p, q in zip(a.parameters(), b.parameters()))
        True
    """  # noqa: DOC502
    module, args, found = resolve(model, symmetries, example_inputs, "canonicalize")
    function = Function.of(module, args)
    groups, left = exact_symmetries(found, function, kinds=(Permutation, Diagonal, Rotation))
    plan = _Plan.of(groups, function.state, left)
    balanced = balance_norms(function.state, plan.scales, principal=True)
    state, ties = _principal_axes(balanced.state, plan.turns)
    for p in plan.permutations:
        state, tied = _sort(state, p)
        if tied:
            ties[p.name] = tied
    state = fix_signs(state, plan.signs)
    out = copy.deepcopy(module)
    error, _, _ = write_checked(out, function, state, "canonicalize")
    return CanonicalForm(out, plan.names, plan.left, ties, error, balanced.residual, balanced.converged)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The groups by what is done to them."""

    scales: list[Symmetry]
    turns: list[Rotation]
    permutations: list[Permutation]
    signs: list[SignGroup]
    names: tuple[str, ...]
    left: dict[str, str]

    @classmethod
    def of(cls, groups: Sequence[Symmetry], state: State, left: dict[str, str]) -> _Plan:
        scales: list[Symmetry] = []
        turns: list[Rotation] = []
        permutations: list[Permutation] = []
        signs: list[SignGroup] = []
        names: list[str] = []
        for g in groups:
            reason = why_not_balanced(g, state)
            if isinstance(g, Permutation):
                permutations.append(g)
            elif isinstance(g, Diagonal) and g.kind == "sign":
                signs.append(g)
            elif isinstance(g, Rotation) and (g.orthogonal or not reason):
                turns.append(g)
                scales += [] if g.orthogonal else [g]
                signs.append(g)
            elif not reason:
                scales.append(g)
            else:
                left = {**left, g.name: reason}
                continue
            names.append(g.name)
        mixed = _mixed(permutations)
        left = {
            **left,
            **{n: f"permutes the same units as {other!r}: sorting one unsorts the other" for n, other in mixed.items()},
        }
        permutations = [p for p in permutations if p.name not in mixed]
        return cls(scales, turns, permutations, signs, tuple(n for n in names if n not in mixed), left)


def _mixed(permutations: Sequence[Permutation]) -> dict[str, str]:
    """Pairs of classes that are each other's fibers: together they permute more than either sorts."""
    out = {}
    for p in permutations:
        for q in permutations:
            a, b = p._class(), q._class()
            crossed = a.fibers == b.size > 1 and b.fibers == a.size > 1
            if p is not q and crossed and set(a.parameters) == set(b.parameters):
                out[p.name] = q.name
    return out


def _principal_axes(state: State, turns: Sequence[Rotation]) -> tuple[State, dict[str, int]]:
    """Turn orthogonal classes into the eigenbasis of their second moments; count equal eigenvalues of every class."""
    ties: dict[str, int] = {}
    for g in turns:
        whole = torch.cat([stacked(state, g, sign, {}) for sign in (1, -1) if sign in g.polarity], dim=2)
        values, vectors = torch.linalg.eigh(whole @ whole.transpose(1, 2))
        if g.orthogonal:
            state = g.apply(state, vectors.flip(2).transpose(1, 2))
        tied = _count_ties(values.flip(1))
        if tied:
            ties[g.name] = tied
    return state, ties


def _count_ties(values: Tensor) -> int:
    """Neighbours in descending rows that are equal up to rounding, zeros left out."""
    top = values.max().clamp_min(1e-300)
    close = (values[:, :-1] - values[:, 1:]) < _TIE * top
    return int((close & (values[:, :-1] > _TIE * top)).sum())


def _sort(state: State, group: Permutation) -> tuple[State, int]:
    """Units in decreasing order of Σ_s r_s ‖slice_s‖², with fixed numbers r_s in [1, 2); and the number of ties."""
    units = group._class()
    key, rows = torch.zeros(units.fibers, units.size, dtype=torch.float64), []
    for k, s in enumerate(units.slices):
        block = s.take(state[s.param]).reshape(units.fibers, units.size, -1)
        key += (1 + (k + 1) * 0.6180339887498949 % 1) * block.square().sum(2)
        rows.append(block)
    order = key.argsort(dim=1, descending=True, stable=True)
    ranked = key.gather(1, order)
    close = (ranked[:, :-1] - ranked[:, 1:]) < _TIE * ranked.max().clamp_min(1e-300)
    tied = 0
    if close.any():  # equal units may stand in any order
        whole = torch.cat(rows, dim=2)
        for a, i in close.nonzero().tolist():
            x, y = whole[a, order[a, i]], whole[a, order[a, i + 1]]
            tied += not torch.allclose(x, y, rtol=1e-6, atol=1e-9)
    return group.apply(state, order), tied
