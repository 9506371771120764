"""What a compression imposes on a model: units, ranks, or single weights, wherever it can be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import nn

from gaugefix.control.impose import low_rank, prune_units, rank, sparse
from gaugefix.control.impose.checks import check_strength, holder
from gaugefix.errors import ControlError
from gaugefix.symmetry import Symmetries, Units, find_symmetries

Method = Literal["units", "rank", "sparse"]
METHODS: tuple[Method, ...] = ("units", "rank", "sparse")
_PRUNED = {"hidden", "channel", "head"}


def constrain(
    model: nn.Module, args: tuple[Any, ...], method: Method, strength: float, only: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Impose one kind of constraint on all of a model that can take it.

    Args:
        model: changed in place; on an error it may be left half changed.
        args: example arguments, for the search for symmetries.
        method: "units": whole hidden units, channels and heads; "rank": products that have a rotation symmetry, and the
            matrices of all other Linear layers; "sparse": single weights.
        strength: λ.
        only: names of classes of units or of tensors, instead of all.

    Returns:
        Names of what is constrained, and why the rest is not.

    Raises:
        ControlError: if a name is unknown or cannot be constrained, or nothing can.
    """
    check_strength(strength)
    found = None if method == "sparse" else find_symmetries(model, args, verify=False)
    classes = [] if found is None else _classes(found, method)
    tensors = [] if method == "units" else _matrices(model, linear_only=method == "rank")
    if only is not None:
        classes, tensors = _chosen(model, found, tensors, only)
    left: dict[str, str] = {}
    usable = [u for u in classes if _fits(model, u, left, method, strict=only is not None)]
    if found is not None and usable:
        impose = prune_units if method == "units" else rank
        impose(model, found, strength, classes=[u.name for u in usable])
    done = [u.name for u in usable]
    taken = {s.param for u in usable for s in u.slices}
    for name in (t for t in tensors if t not in taken):
        try:
            holder(model, name)
        except ControlError as error:
            if only is not None:
                raise
            left[name] = str(error)
            continue
        if method == "rank":
            low_rank(model, name, strength=strength)
        else:
            sparse(model, name, strength=strength)
        done.append(name)
    if not done:
        why = "; ".join(f"{n}: {w}" for n, w in left.items())
        raise ControlError(f"compress: nothing in this model can take {_WHAT[method]}. {why}".strip())
    return tuple(done), left


_WHAT = {
    "units": "a constraint on units (no hidden units, channels or heads were found; try rank or sparse)",
    "rank": "a constraint on ranks (no products and no Linear layers)",
    "sparse": "a constraint on weights (no matrices)",
}


def _classes(found: Symmetries, method: Method) -> list[Units]:
    if method == "units":
        return [u for u in found.units if u.kind in _PRUNED]
    rotated = {s.units.name for s in found if s.units is not None and ("GL(" in s.group or "O(" in s.group)}
    return [u for u in found.units if u.name in rotated]


def _matrices(model: nn.Module, *, linear_only: bool) -> list[str]:
    """Weights with two dimensions or more, by the name that the model knows first."""
    names = []
    modules = dict(model.named_modules())
    for name, p in model.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        if p.ndim < 2 or (linear_only and not isinstance(owner, nn.Linear)):
            continue
        if not isinstance(owner, nn.Embedding | nn.EmbeddingBag):
            names.append(name)
    return names


def _chosen(
    model: nn.Module, found: Symmetries | None, tensors: Sequence[str], only: Sequence[str]
) -> tuple[list[Units], list[str]]:
    """The classes and tensors of these names."""
    by_name = {u.name: u for u in (found.units if found is not None else ())}
    allowed = [n for n, _ in model.named_parameters(remove_duplicate=False)] if tensors else []
    if isinstance(only, str) or not only:
        raise ControlError(f"compress: only must be a list of names, got {only!r}. {_near('', [*by_name, *tensors])}")
    for name in only:
        if name not in by_name and name not in allowed:
            raise ControlError(f"compress: nothing is called {name!r}. {_near(name, [*by_name, *tensors])}")
    return [by_name[n] for n in only if n in by_name], [n for n in only if n not in by_name]


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        return f"Did you mean {', '.join(map(repr, near))}?"
    return f"There are {', '.join(map(repr, names[:8])) or 'none'}{', …' if len(names) > 8 else ''}."


def _fits(model: nn.Module, units: Units, left: dict[str, str], method: Method, *, strict: bool) -> bool:
    """Whether every tensor of a class can be factorised; else why not."""
    slices = units.slices if method == "rank" else (*units.incoming, *units.gains)
    for s in slices:
        try:
            holder(model, s.param)
        except ControlError as error:
            if strict:
                raise
            left[units.name] = str(error)
            return False
    return True
