"""What a monitor watches: classes of units and charges, and the slots of sums that each needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gaugefix.measure.classes import rescaling_fails, units_of
from gaugefix.monitor.sums import Slot
from gaugefix.symmetry import Symmetries, Units
from gaugefix.symmetry.groups import Diagonal, Rotation
from gaugefix.symmetry.units import Slice


@dataclass(frozen=True, eq=False)
class WatchedClass:
    """A class of units.

    Attributes:
        units: the class.
        title: how messages call it; queries and keys, values and outputs of a head are told apart.
        roles: slot of every role that the class has.
        outgoing_entries: number of outgoing entries of one unit.
        polarity: ±1 per slice if a general linear group acts on the class, else empty.
    """

    units: Units
    title: str
    roles: Mapping[str, str]
    outgoing_entries: int
    polarity: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class WatchedCharge:
    """The Noether charges Q_i = Σ q‖slice_i‖² of a rescaling symmetry, one per unit.

    Attributes:
        name: key of its numbers: the class if it has no other charge, else the symmetry.
        title: how messages call it.
        plus: slot of the part with q > 0.
        minus: slot of the part with q < 0, as a positive number.
        params: every parameter in it.
    """

    name: str
    title: str
    plus: str
    minus: str
    params: tuple[str, ...]


@dataclass(eq=False)
class Watched:
    """Everything that is watched.

    Attributes:
        classes: of units.
        charges: of rescaling symmetries.
        slots: sums that they need, without repeats.
        skipped: what is not watched, and why.
    """

    classes: list[WatchedClass] = field(default_factory=list)
    charges: list[WatchedCharge] = field(default_factory=list)
    slots: dict[str, Slot] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def watch(symmetries: Symmetries | Sequence[Units] | None, params: Mapping[str, Tensor]) -> Watched:
    """Decide what to watch in a model.

    Args:
        symmetries: what `find_symmetries` gave, or classes of units; None watches norms alone.
        params: parameters by name.

    Returns:
        The plan, with reasons for what is left out.
    """
    out = Watched()
    if symmetries is None:
        out.skipped.append("classes of units: no symmetries were given; pass symmetries=find_symmetries(model, args)")
        return out
    polarities = _polarities(symmetries)
    for u in units_of(symmetries):
        if reason := _unusable(u.slices, params):
            out.skipped.append(f"{u.name}: {reason}")
        elif u.slices:
            out.classes.append(_class(u, polarities.get(u.name, ()), params, out.slots))
    for name, title, n, terms in _charges(symmetries):
        if reason := _unusable((s for s, _ in terms), params):
            out.skipped.append(f"charge of {name}: {reason}")
            continue
        name = _short(name, {c.name for c in out.charges})
        sides = [_slot(n, [(s, abs(q)) for s, q in terms if q * sign > 0], out.slots) for sign in (1, -1)]
        out.charges.append(
            WatchedCharge(name, title, sides[0], sides[1], tuple(dict.fromkeys(s.param for s, _ in terms)))
        )
    return out


def entries(s: Slice, shape: Sequence[int]) -> int:
    """Number of entries that one unit has in a slice.

    Args:
        s: the slice.
        shape: of its parameter.

    Returns:
        The number.
    """
    rest = (s.others[d].shape[1] if d in s.others else n for d, n in enumerate(shape) if d != s.dim)
    return int(s.index.shape[2]) * math.prod(rest)


def _class(u: Units, polarity: tuple[int, ...], params: Mapping[str, Tensor], slots: dict[str, Slot]) -> WatchedClass:
    roles = {
        role: _slot(len(u), [(s, 1.0) for s in group], slots)
        for role, group in (("write", u.incoming), ("read", u.outgoing), ("gain", u.gains))
        if group
    }
    outgoing = sum(entries(s, params[s.param].shape) for s in u.outgoing)
    return WatchedClass(u, _title(u), roles, outgoing, polarity)


def _short(name: str, taken: set[str]) -> str:
    """A symmetry of the whole network is named after all its classes: keep the first two."""
    parts, colon, kind = name.rpartition(": ")
    owners = parts.split(", ")
    short = f"{', '.join(owners[:2])} and {len(owners) - 2} more{colon}{kind}" if len(owners) > 3 else name
    number = 2
    while short in taken:
        short, number = f"{short.partition(' #')[0]} #{number}", number + 1
    return short


def _title(u: Units) -> str:
    """``"blocks.0.attn QK"`` where the name alone does not say which side of the head it is."""
    if u.kind != "head_dim":
        return u.name
    return f"{'VO' if u.outgoing else 'QK'} of {u.name.partition(' #')[0]}"


def _slot(n: int, terms: list[tuple[Slice, float]], slots: dict[str, Slot]) -> str:
    """The name of a slot with these terms; the same for the same terms."""
    parts = sorted(
        f"{s.param}[{s.dim}]{weight:g}{s.index.shape}{hash(s.index.tobytes())}"
        f"{[(d, p.shape, hash(p.tobytes())) for d, p in sorted(s.others.items())]}"
        for s, weight in terms
    )
    name = "+".join(parts)
    slots.setdefault(name, Slot(name, n, tuple(terms)))
    return name


def _unusable(slices: Iterable[Slice], params: Mapping[str, Tensor]) -> str:
    """Why a class cannot be watched, or ""."""
    for s in slices:
        if s.param not in params:
            return f"the model has no parameter {s.param!r}; find its symmetries again"
        shape = tuple(params[s.param].shape)
        if s.dim >= len(shape) or s.index.max(initial=0) >= shape[s.dim]:
            return (
                f"parameter {s.param!r} has shape {shape}, too small for the symmetries that were given. "
                "Flattened parameters (FSDP1, ZeRO-3) hide their shape: use fully_shard (FSDP2) or DDP"
            )
        if params[s.param].is_complex():
            return f"parameter {s.param!r} is complex"
    return ""


def _polarities(symmetries: Symmetries | Sequence[Units]) -> dict[str, tuple[int, ...]]:
    """Classes on which a general linear group acts."""
    if isinstance(symmetries, Symmetries):
        rotations = (s for s in symmetries if isinstance(s, Rotation) and not s.orthogonal and s.units is not None)
        return {s.units.name: s.polarity for s in rotations if s.units is not None}
    linear = [u for u in symmetries if u.activation == "identity" and not rescaling_fails(u, symmetries)]
    return {u.name: tuple({"read": 1, "write": -1}.get(s.role, 0) for s in u.slices) for u in linear}


def _charges(symmetries: Symmetries | Sequence[Units]) -> list[tuple[str, str, int, list[tuple[Slice, float]]]]:
    """Name, title, number of units and charged slices of every rescaling symmetry."""
    found: list[tuple[Units | None, str, int, list[tuple[Slice, float]]]] = []
    if isinstance(symmetries, Symmetries):
        for s in symmetries:
            if isinstance(s, Diagonal) and s.kind == "scale" and not s.mean_zero and s.charges:
                fibers, n, _ = s.charges[0][0].index.shape
                found.append((s.units, s.name, int(fibers * n), list(s.charges)))
            elif isinstance(s, Rotation) and not s.orthogonal and s.units is not None:
                signed = [(x, float(p)) for x, p in zip(s.units.slices, s.polarity, strict=True)]
                found.append((s.units, s.name, len(s.units), signed))
    else:
        for u in symmetries:
            if not rescaling_fails(u, symmetries):
                signs = {"read": 1.0, "write": -1.0}
                found.append((u, u.name, len(u), [(s, signs[s.role]) for s in u.slices if s.role in signs]))
    owners = [u.name for u, *_ in found if u is not None]
    out = []
    for owner, name, n, terms in found:
        charged = [(s, q) for s, q in terms if q]
        both = {q > 0 for _, q in charged} == {True, False}
        if both:  # a charge of one sign is a norm: the scale of what stands before a normalisation
            alone = owner is not None and owners.count(owner.name) == 1
            out.append((owner.name, _title(owner), n, charged) if owner and alone else (name, name, n, charged))
    return out
