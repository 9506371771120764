"""find_symmetries: export, axes, charges, groups, gauges, verification, in one page."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import nn

import gaugefix.symmetry.rules  # noqa: F401  (registers the rules)
from gaugefix.errors import SymmetryError, TraceError
from gaugefix.symmetry.assemble import assemble
from gaugefix.symmetry.cells import Cells
from gaugefix.symmetry.classes import Classes
from gaugefix.symmetry.frozen import frozen_notes
from gaugefix.symmetry.generic import additions
from gaugefix.symmetry.graph import Graph, trace
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.offsets import absorb_offsets, move_offsets
from gaugefix.symmetry.patterns import recognise
from gaugefix.symmetry.scalefree import ScaleFlow
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.target_rotation import find_target_rotations
from gaugefix.symmetry.verify import verify_symmetries
from gaugefix.task import Task

#: with verify="auto", larger models are not checked numerically
AUTO_VERIFY_PARAMETERS = 2_000_000


def find_symmetries(
    model: nn.Module | Task,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    verify: bool | Literal["auto"] = "auto",
    trainable_only: bool = False,
    seed: int = 0,
) -> Symmetries:
    """Find the groups that act on the parameters of a module and leave its function unchanged.

    The module is exported (weights are never read, so the meta device works), every operation is lowered to a few
    kinds of statements about axes, and the largest group that they allow is read off: permutations, sign flips,
    rescalings, general linear and orthogonal groups, shifts. Operations without a rule pin what they touch and are
    listed in `Symmetries.opaque`: the result may miss a symmetry there, it does not invent one.

    Normalisations count as they act in training: BatchNorm uses the statistics of the batch, and ε is neglected
    (the function changes by O(ε/variance)).

    Args:
        model: any exportable module, or a `Task`: then the inputs are its own, and symmetries that only its loss has
            are listed with ``level="loss"`` (cross-entropy does not see a constant added to all logits; squared error
            does not see rotations of the outputs in directions in which the targets of one pass do not vary). Left
            exactly as it was.
        args: example positional arguments; only their shapes matter. Use a batch of at least 2.
        kwargs: example keyword arguments.
        verify: apply random elements of every group to random parameters in float64 and compare outputs. "auto" does
            so for models of up to 2 million parameters that are not on the meta device. A claim that fails is dropped
            and listed in `Symmetries.rejected`.
        trainable_only: keep parameters with ``requires_grad=False`` fixed, as a fine-tune does: only symmetries that
            move none of them are listed, and the flat directions are those of the others. Directions that fix them
            only as combinations of several symmetries are no group of their own: they are counted in
            `Symmetries.skipped`.
        seed: seed of the verification.

    Returns:
        The symmetries.

    Raises:
        SymmetryError: if ``args`` are missing for a module.

    Cost: one export, then linear in the number of operations; verification: a few forward passes per symmetry.

    Source: 2309.16932 (root); the linear-algebraic charges follow 2308.06671 and 2402.07193.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> found = find_symmetries(mlp, (torch.randn(2, 4),))
        >>> [s.group for s in found], found.flat_dim, found.verified
        (['S_6', 'S_5', 'R+^6', 'R+^5'], 11, True)
    """
    if isinstance(model, Task):
        return _find_in_task(model, verify=verify, trainable_only=trainable_only, seed=seed)
    if args is None:
        raise SymmetryError("find_symmetries(model, args) needs example arguments; only a Task brings its own.")
    found = _find(model, args, kwargs, trainable_only=trainable_only)
    if _should_verify(model, verify):
        return verify_symmetries(found, model, args, kwargs or {}, seed=seed)
    return found


def _find(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    prefix: str = "",
    *,
    trainable_only: bool = False,
) -> Symmetries:
    frozen = {n.removeprefix(prefix) for n, p in model.named_parameters() if trainable_only and not p.requires_grad}
    graph = trace(model, args, kwargs, prefix=prefix)
    graph.freeze(frozen)
    found = search(graph)
    if not frozen:
        return found
    notes = frozen_notes(_find(model, args, kwargs, prefix), found, frozen)
    return replace(found, skipped=(*found.skipped, *notes))


def search(graph: Graph) -> Symmetries:
    """The symmetries of a graph, not verified: lowering, axes, charges, groups, gauges.

    If there are RMS norms whose size nobody sees, the same function without their division is searched too, and what it
    adds comes last. In models too large for counting directions it is left out.

    Args:
        graph: just read; its operations are rewritten.

    Returns:
        The symmetries.
    """
    with _at_work(len(graph.ops)):
        offsets = absorb_offsets(graph)
        lower = Lowering(recognise(graph)).run()
        found = assemble(Classes(Cells(lower)))
        symmetries = [*found]
        flow = ScaleFlow(lower.records, lower.zero)
        if flow.idle_norms():
            other = Lowering(graph).run()
            other.records = ScaleFlow(other.records, other.zero).without_idle_norms()
            symmetries += additions(found, assemble(Classes(Cells(other))), found.shapes)
        return replace(found, symmetries=tuple(move_offsets(s, offsets) for s in symmetries))


@contextmanager
def _at_work(operations: int) -> Iterator[None]:
    """Room for chains as long as the network, and no garbage collection.

    Nothing made here is garbage before the end; it would be looked for in vain again and again, at a cost that grows
    with everything else in memory.
    """
    limit, collects = sys.getrecursionlimit(), gc.isenabled()
    sys.setrecursionlimit(max(limit, 1000 + 4 * operations))
    gc.disable()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
        if collects:
            gc.enable()


def _should_verify(model: nn.Module, verify: bool | Literal["auto"]) -> bool:
    if verify != "auto":
        return verify
    small = sum(p.numel() for p in model.parameters()) <= AUTO_VERIFY_PARAMETERS
    return small and not any(p.is_meta for p in model.parameters())


class _Objective(nn.Module):
    """The per-sample losses of a task as a module of the batch."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.loss = task.loss

    def forward(self, batch: Any) -> Any:
        return self.loss(self.model, batch)


def _find_in_task(task: Task, *, verify: bool | Literal["auto"], trainable_only: bool = False, seed: int) -> Symmetries:
    """Symmetries of the function, then those that only the loss has."""
    batch = task.first_batch()
    found = find_symmetries(task.model, task.inputs(batch), verify=verify, trainable_only=trainable_only, seed=seed)
    objective = _Objective(task)
    frozen = {n for n, p in task.model.named_parameters() if trainable_only and not p.requires_grad}
    try:
        whole = _find(objective, (batch,), None, prefix="model.", trainable_only=trainable_only)
    except TraceError as error:
        note = f"symmetries of the loss that do not depend on the targets: {error}"
        whole = replace(found, symmetries=(), verification=(), rejected=(), opaque=())
        found = replace(found, skipped=(*found.skipped, note))
    graph = trace(task.model, task.inputs(batch))
    graph.freeze(frozen)
    turns = find_target_rotations(task, Lowering(recognise(graph)).run())
    whole = replace(whole, symmetries=(*whole.symmetries, *turns))
    if _should_verify(task.model, verify):
        whole = verify_symmetries(whole, objective, (batch,), {}, seed=seed, prefix="model.")
    known = {(s.group, s.axes) for s in found}
    extra = [s for s in whole if (s.group, s.axes) not in known]
    return replace(
        found,
        symmetries=(*found.symmetries, *(replace(s, name=f"loss: {s.name}", level="loss") for s in extra)),
        verification=(
            *found.verification,
            *(replace(v, name=f"loss: {v.name}") for v in whole.verification if v.name in {s.name for s in extra}),
        ),
        rejected=(*found.rejected, *whole.rejected),
        skipped=(*found.skipped, *(f"loss: {o.op} ({o.reason})" for o in whole.opaque if o not in found.opaque)),
    )
