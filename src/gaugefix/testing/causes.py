"""Why a flat direction is in no symmetry: what moves inside the module along it, measured.

Along a hidden direction the values inside the module move although the outputs do not. The tests are linear in the
direction, so that they are ranks. Which directions are flat at other points and for wider inputs too? For those, what
moves at the nonlinear operations, and is it a function of what is there already?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.symmetry.generic import generator_span
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.verify import Degenerate, judgeable_parameters, lab_outputs, laboratory_copy, to_double
from gaugefix.testing.flat import SPREADS, FlatDirections, flat_directions, jacobian_block, redraw
from gaugefix.testing.moves import Moves
from gaugefix.testing.tangents import Tangents

#: tests in the order in which they are made; each explains what those before it left
KINDS = ("linear", "removed", "basis", "size", "product", "table")


@dataclass(frozen=True)
class Cause:
    """A measured reason for hidden directions.

    Attributes:
        kind: "point": absent at other points of parameter space (units that are dead or always on). "inputs": absent
            on inputs of three or ten times the standard deviation (units that are so on the usual ones). "few": the
            inputs are so few that the outputs on them can be changed at will; every direction beyond that is flat.
            "linear": undone between linear maps, such as the null space of one behind another. "removed": it enters
            nonlinear operations and does not leave them. "basis": what leaves every nonlinear operation moves by an
            affine function of itself: a change of basis, which the search might know. "table": the same but where
            values are the few rows of a table, too few to forbid a change that is not affine or keeps lengths on no
            others. "size": as
            "basis", up to a factor that differs from sample to sample, which a later norm removes. "product": as
            "basis" but for products of data with data, whose changes are undone by what is linear in them (there are
            fewer bilinear functions than parameters to make them of). "unknown": none of these.
        count: independent directions.
        where: the operations that remove them, or through which they go, as ``"op at module"``.
        parameters: in which they move.
    """

    kind: str
    count: int
    where: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Where the directions that no symmetry explains come from.

    Attributes:
        hidden: number at the point with the fewest, of those looked at.
        points: number of points looked at.
        causes: for all hidden directions at that point, and for those that only exist at others.
        reliable: whether some point could be judged.
    """

    hidden: int
    points: int
    causes: tuple[Cause, ...]
    reliable: bool

    @property
    def explained(self) -> bool:
        """Whether every direction has a cause."""
        return self.reliable and all(c.kind != "unknown" for c in self.causes)


def explain_hidden(
    found: Symmetries,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    points: int = 12,
    samples: int = 400,
    seed: int = 0,
    max_parameters: int = 6000,
) -> Explanation:
    """Find the cause of every flat direction that is in no symmetry.

    Flat directions are counted at several points; what does not exist at all of them depends on the point. Of the
    others, those that are not flat on wider inputs depend on the data. For the rest the module is run op by op with
    their tangents.

    Args:
        found: symmetries of the module.
        model: the module.
        args: example positional arguments.
        kwargs: example keyword arguments.
        points: points of parameter space at most; fewer if one of them has no hidden direction.
        samples: inputs on which tangents are compared, at least.
        seed: of parameters and inputs.
        max_parameters: as for `flat_directions`.

    Returns:
        The causes.

    Raises:
        MeasurementError: if the module is too large.

    Cost: `flat_directions` at every point, then one jvp of the module for each hidden direction and batch of inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gaugefix.symmetry import find_symmetries
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3))
        >>> explain_hidden(find_symmetries(mlp, (torch.randn(8, 4),)), mlp, (torch.randn(8, 4),)).hidden
        0
    """  # noqa: DOC502
    best: tuple[Tensor, dict[str, Tensor], FlatDirections] | None = None
    most, done = 0, 0
    for i in range(points):
        params = judgeable_parameters(model, args, kwargs or {}, torch.Generator().manual_seed(seed + i))
        flat = flat_directions(
            model, args, kwargs, params=params, seed=seed + i + 1, max_parameters=max_parameters, basis=True
        )
        if not flat.reliable:
            continue
        assert flat.basis is not None
        span = generator_span(found, params)
        rest = flat.basis - flat.basis @ span.T @ span
        _, values, right = torch.linalg.svd(rest, full_matrices=False)
        hidden = right[values > 1e-6]
        done, most = done + 1, max(most, len(hidden))
        if best is None or len(hidden) < len(best[0]):
            best = hidden, params, flat
        if len(best[0]) == 0 and most > 0:
            break
    if best is None:
        return Explanation(0, 0, (), reliable=False)
    hidden, params, flat = best
    count = len(hidden)
    causes = [Cause("point", most - count)] if most > count else []
    if count and _few_inputs(model, args, dict(kwargs or {}), params, flat.rank):
        causes.append(Cause("few", count))
    elif count:
        hidden = _still_flat(model, args, dict(kwargs or {}), params, hidden, seed)
        if len(hidden) < count:
            causes.append(Cause("inputs", count - len(hidden)))
        causes += _of_tangents(Tangents(model, args, dict(kwargs or {}), params, hidden, samples, seed))
    return Explanation(count, done, tuple(causes), reliable=True)


def _still_flat(
    model: nn.Module, args: Any, kwargs: Any, params: Mapping[str, Tensor], hidden: Tensor, seed: int
) -> Tensor:
    """The part of some directions in which the outputs do not move on wider inputs either."""
    lab, generator = laboratory_copy(model), torch.Generator().manual_seed(seed)
    noise = Degenerate(lab)
    for spread in SPREADS[1:]:
        rows: list[Tensor] = []
        while len(hidden) and sum(map(len, rows)) < 4 * len(hidden) + 400:
            block = jacobian_block(lab, params, params, to_double(args), to_double(kwargs), noise, generator, spread)
            if block is None:
                break
            rows.append(block)
        if rows:
            stacked = torch.cat(rows)
            _, values, right = torch.linalg.svd(stacked @ hidden.T, full_matrices=True)
            moving = int((values > 1e-8 * torch.linalg.matrix_norm(stacked, 2)).sum())
            hidden = right[moving:] @ hidden
    return hidden


def _few_inputs(model: nn.Module, args: Any, kwargs: Any, params: Mapping[str, Tensor], rank: int) -> bool:
    """Whether the rank is that of any function of the few distinct outputs, so that P − rank follows from counting."""
    if any(t.is_floating_point() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
        return False
    lab, generator = laboratory_copy(model), torch.Generator().manual_seed(0)
    rows: list[Tensor] = []
    with torch.no_grad():
        for _ in range(max(1, 20 * rank // max(1, args[0].numel() if args else 1))):
            some, named = pytree.tree_map(lambda t: redraw(t, generator), (args, kwargs))
            rows += [o.reshape(-1, o.shape[-1]) for o in lab_outputs(lab, params, some, named)]
    if len({r.shape[1] for r in rows}) > 1:
        return False
    every = torch.cat(rows)
    distinct = len(torch.unique((every / every.abs().max()).round(decimals=9), dim=0))
    width = every.shape[1]
    sums = [every.sum(1), every.exp().sum(1)]  # of a softmax and of its logarithm: one entry follows from the others
    bound = any(bool((s - 1).abs().max() < 1e-9) for s in sums)
    return 5 * distinct < len(every) and rank == distinct * (width - bound)


def _of_tangents(tangents: Tangents) -> list[Cause]:
    """Test by test: what each explains of what the ones before left."""
    moves, left = Moves(tangents), len(tangents.hidden)
    known = tangents.hidden[:0]
    out: list[Cause] = []
    for kind in KINDS:
        if not left:
            break
        new = moves.beyond(moves.without(kind), known)
        if len(new):
            name = "table" if kind == "basis" and moves.is_table(new) else kind
            places = () if kind == "linear" else moves.places(new, removing=kind == "removed")
            out.append(Cause(name, len(new), places, moves.parameters(new)))
            known, left = torch.cat([known, new]), left - len(new)
    if left:
        out.append(Cause("unknown", left, (), moves.parameters(tangents.hidden)))
    return out
