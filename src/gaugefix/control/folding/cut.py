"""Rounds of cuts: propose, build, compare, keep or leave."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from gaugefix.control.folding.bench import Bench
from gaugefix.control.folding.propose import Finder
from gaugefix.control.folding.records import FoldedClass, Proposal
from gaugefix.control.folding.shrink import all_cuts, cuts_of, ways_to_build
from gaugefix.control.state import Function
from gaugefix.errors import ControlError, TraceError
from gaugefix.symmetry import Symmetries, Units, find_symmetries
from gaugefix.symmetry.groups import Diagonal
from gaugefix.symmetry.verify import to_double

_ROUNDS = 50


@dataclass(frozen=True)
class Settings:
    """What counts as zero.

    Attributes:
        tolerance: as in `fold`.
        eps: rounding unit of the model's own precision.
        multiple_of: as in `fold`.
    """

    tolerance: float | None
    eps: float
    multiple_of: int


@dataclass(eq=False)
class _Ledger:
    """What went and what did not, by class; classes that are not tried again."""

    sizes: dict[str, list[FoldedClass]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)

    def book(self, p: Proposal) -> None:
        u = p.units
        self.skipped.pop(u.name, None)
        self.sizes.setdefault(u.name, []).append(
            FoldedClass(u.name, u.kind, u.size, p.after, u.fibers, p.dead, p.constant, p.merged, p.rank)
        )

    def classes(self) -> list[FoldedClass]:
        """One entry per class over all rounds."""
        return [
            FoldedClass(
                name, parts[0].kind, parts[0].before, parts[-1].after, parts[0].fibers,
                *(sum(getattr(c, what) for c in parts) for what in ("dead", "constant", "merged", "rank")),
            )
            for name, parts in self.sizes.items()
        ]  # fmt: skip


def cut_all(
    bench: Bench, symmetries: Symmetries | None, settings: Settings
) -> tuple[nn.Module, list[FoldedClass], dict[str, str]]:
    """Cut until nothing is idle: what one class loses can leave another one idle.

    Args:
        bench: the original.
        symmetries: for the first round; searched for if None, and in later rounds.
        settings: what counts as zero.

    Returns:
        A float64 module, what went, and what did not.
    """
    model, ledger = copy.deepcopy(bench.functions[0].model), _Ledger()
    inputs = [to_double(a) for a in bench.random_args]
    for k in range(_ROUNDS):
        function = Function(model, bench.functions[0].args, bench.functions[0].reference)
        found = symmetries if k == 0 and _fits(symmetries, model) else _search(function, ledger, first=k == 0)
        if found is None:
            break
        finder = Finder(function, found, settings.tolerance, settings.eps, inputs, settings.multiple_of)
        cut = _round(model, finder, bench, ledger)
        if cut is None:
            break
        model = cut
    return model, ledger.classes(), ledger.skipped


def _fits(symmetries: Symmetries | None, model: nn.Module) -> bool:
    """Whether given symmetries speak of this module, whose parametrisations are gone."""
    names = {n for n, _ in model.named_parameters()}
    return symmetries is not None and all(set(u.parameters) <= names for u in symmetries.units)


def _search(function: Function, ledger: _Ledger, *, first: bool) -> Symmetries | None:
    try:
        return find_symmetries(function.model, function.args, verify=False)
    except TraceError as failure:
        if first:
            raise
        ledger.skipped["further rounds"] = f"the smaller model cannot be searched ({str(failure)[:160]})"
        return None


def _round(model: nn.Module, finder: Finder, bench: Bench, ledger: _Ledger) -> nn.Module | None:
    """Cut all idle classes at once; if that does not work, all those that can be cut; None if nothing is left to do."""
    classes = [u for u in finder.symmetries.units if u.name not in ledger.barred and u.slices]
    proposals = _propose(finder, classes, ledger)
    if not proposals:
        return None
    built, _ = _build(model, proposals, bench)
    if built is None:
        built, proposals = _one_by_one(model, finder, classes, proposals, bench, ledger)
    if built is None:
        return model  # what cannot be cut is barred; others may have been in its way
    for p in proposals:
        ledger.book(p)
    ledger.skipped |= finder.notes
    return built


def _one_by_one(
    model: nn.Module, finder: Finder, classes: list[Units], proposals: list[Proposal], bench: Bench, ledger: _Ledger
) -> tuple[nn.Module | None, list[Proposal]]:
    """Cut class after class, as far as they lie in different dimensions; the next round sees the rest."""
    done: list[Proposal] = []
    touched: set[tuple[str, int]] = set()
    for p in proposals:
        units = next(u for u in classes if u.name == p.units.name)
        if _moved(units, finder, touched):
            continue  # done already, or positions have moved
        reason, last = "", -1
        for chosen, careful in _ways(finder, units, p, classes):
            if any(_moved(u, finder, touched) for u in chosen):
                continue
            fewer = _propose(careful, chosen, ledger)
            if not fewer or sum(f.after for f in fewer) == last:
                continue
            last = sum(f.after for f in fewer)
            built, failure = _build(model, fewer, bench)
            if built is not None:
                grown = sum(1 for _ in built.parameters()) > sum(1 for _ in model.parameters())
                model, done = built, [*done, *fewer]
                if grown:  # a bias that was not there belongs to a class that does not know it yet
                    return model, done
                touched |= {at for u in chosen for at in _places(u)}
                finder = replace(finder, function=Function(model, finder.function.args, finder.function.reference))
                break
            reason = reason or failure
        else:
            ledger.skipped[units.name] = reason or "nothing is idle by itself"
            ledger.barred.add(units.name)
    return (model, done) if done else (None, [])


def _moved(units: Units, finder: Finder, touched: set[tuple[str, int]]) -> bool:
    """Whether positions of a class, or of its gauges, are no longer what they were."""
    if touched & _places(units):
        return True
    own = [s for s in finder.symmetries if isinstance(s, Diagonal) and s.units is not None]
    gauges = [c for s in own if s.units is not None and s.units.name == units.name for c, _ in s.charges]
    restricted = {s.param for s in (*units.slices, *gauges) if s.others}
    return bool(restricted & {param for param, _ in touched})


def _places(units: Units) -> set[tuple[str, int]]:
    return {(s.param, s.dim) for s in units.slices}


def _ways(
    finder: Finder, units: Units, proposal: Proposal, classes: list[Units]
) -> Iterator[tuple[list[Units], Finder]]:
    """One class by itself, then with less in it, then together with linear classes that must have the same width."""
    yield [units], finder
    if proposal.merged:
        yield [units], replace(finder, merge=False)
    if proposal.constant or proposal.merged:
        yield [units], replace(finder, merge=False, constants=False)
    if proposal.rank:
        parent = _parent(units)
        group = [u for u in classes if "linear" in u.flags and u.fibers == units.fibers and u.size == units.size]
        group = [u for u in group if _parent(u) == parent]
        widths = [finder.propose(u, finder.function.state) for u in group]
        if len(group) > 1 and all(isinstance(w, Proposal) for w in widths):
            keep = max(w.after for w in widths if isinstance(w, Proposal))
            yield group, replace(finder, keep={u.name: keep for u in group})


def _parent(units: Units) -> str:
    """The module that holds the modules of a class: the attention around its projections."""
    owners = [p.rpartition(".")[0].split(".") for p in units.parameters]
    common = [a[0] for a in zip(*owners, strict=False) if len(set(a)) == 1]
    single = len({tuple(o) for o in owners}) == 1
    return ".".join(common[:-1] if single else common)


def _propose(finder: Finder, classes: list[Units], ledger: _Ledger, before: Sequence[Proposal] = ()) -> list[Proposal]:
    """Proposals that do not cut the same places, one after the other; the state of the last one has all of them."""
    proposals: list[Proposal] = []
    cuts = all_cuts(proposals)
    for units in classes:
        p = finder.propose(units, proposals[-1].state if proposals else finder.function.state)
        if isinstance(p, str):
            ledger.skipped[units.name] = p
        if not isinstance(p, Proposal):
            continue
        try:
            found = cuts_of(p)
        except ControlError as failure:
            ledger.skipped[units.name] = str(failure)
            continue
        if not any(len(np.intersect1d(where, cuts.get(at, []))) for at, where in found.items()):
            proposals.append(p)
            cuts = all_cuts(proposals)
    return proposals


def _build(model: nn.Module, proposals: list[Proposal], bench: Bench) -> tuple[nn.Module | None, str]:
    """The first way to build that computes the same, or why none does."""
    reasons = []
    for candidate in ways_to_build(model, proposals):
        reason = bench.judge(candidate)
        if not reason:
            return candidate, ""
        reasons.append(reason)
    return None, reasons[0]
