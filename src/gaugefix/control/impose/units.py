"""Constraints on units: no tensor names, the search result says where a unit has its entries."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaugefix.control.impose.checks import check_finite, check_same_model, check_spread, check_strength, holder
from gaugefix.control.impose.factors import positive_factor
from gaugefix.control.impose.parts import PartFactors, UnitScales, positions_of
from gaugefix.errors import ControlError
from gaugefix.measure.classes import units_of
from gaugefix.symmetry import Slice, Symmetries, Units

_PRUNED = {"hidden", "channel", "head"}


def prune_units(
    model: nn.Module,
    symmetries: Symmetries | Sequence[Units],
    strength: float,
    *,
    classes: Sequence[str] | None = None,
    spread: float = 0.1,
) -> nn.Module:
    """Give every unit one scalar factor, so that weight decay prunes whole units: the penalty λ Σ_units ‖θ_unit‖₂.

    A unit owns the entries that write it (rows of its layers, their biases, on a residual stream those of every layer
    that adds to it) and its gains in normalisations; all are multiplied by one scalar s, θ_unit = s·v. A unit whose
    entries are pulled from zero by less than ``strength`` (the norm of the loss gradient) ends at exactly zero, in all
    its tensors at once; its readers are left as they are. Where rescaling (w, u) → (cw, u/c) is a symmetry, as with
    ReLU, the readers could make up for ever smaller units: give the other parameters weight decay too, the
    ``weight_decay`` of `optimizer`. `silence_` cuts to a given number of parameters.

    Args:
        model: changed in place; the function stays the same.
        symmetries: what `find_symmetries` gave, or classes of units.
        strength: λ ≥ 0, the weight decay of all factors.
        classes: names of classes; by default all hidden units, channels and attention heads.
        spread: s² − ‖v‖² at the start relative to the root mean square of the norms.

    Returns:
        The same model.

    Raises:
        ControlError: if a class is unknown, two classes own the same entry, a tensor cannot be factorised, or a
            number is out of range; the model is as before.

    Cost: one parameter for each unit, one product with a gathered vector per tensor and forward pass.

    Source: arXiv 2309.16932, group constraints.

    Example:
        >>> from gaugefix import find_symmetries
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> _ = prune_units(model, find_symmetries(model, (torch.randn(8, 4),)), strength=1e-3)
        >>> model[0].parametrizations.weight[0].scales.value.shape
        torch.Size([6])
    """  # noqa: DOC502
    strength, spread = check_strength(strength), check_spread(spread)
    check_same_model(model, symmetries)
    chosen = _choose(symmetries, classes, lambda u: u.kind in _PRUNED, "hidden units, channels or heads")
    labels = _labels(model, chosen)
    n = sum(len(u) for u in chosen)
    params = dict(model.named_parameters())
    device = next(iter(params[name].device for name in labels))
    squares = torch.zeros(n, dtype=torch.float64, device=device)
    parts = {}
    for name, label in labels.items():
        positions = positions_of(label >= 0)
        kept = label.flatten() if positions is None else label.flatten()[positions]
        parts[name] = positions, kept
        values = params[name].detach().flatten()
        values = values if positions is None else values[positions]
        squares.index_add_(0, kept, values.double().square())
    scales = UnitScales(positive_factor(squares.sqrt(), spread).to(params[next(iter(labels))].dtype))
    for k, (name, (positions, kept)) in enumerate(parts.items()):
        _put(model, name, PartFactors(strength, positions, scales, kept, owner=k == 0))
    return model


def rank(
    model: nn.Module,
    symmetries: Symmetries | Sequence[Units],
    strength: float,
    *,
    classes: Sequence[str] | None = None,
) -> nn.Module:
    """Lower the rank of products that a network has already: the penalty λ‖W_out W_in‖_* for every class.

    Where a class has a rotation symmetry, W_in → A W_in, W_out → W_out A⁻¹, its two sides are the factors U and V of a
    product, and weight decay λ on both is the nuclear norm of the product (queries with keys and values with outputs,
    for each head; bottlenecks). Where it has only rescalings (ReLU layers) it is λ Σ_i ‖w_in,i‖‖w_out,i‖, a group
    penalty that lowers the number of live units. Nothing is added to the model; the entries of the class become
    factors of their own, cut out of fused tensors.

    Args:
        model: changed in place; the function stays the same.
        symmetries: what `find_symmetries` gave.
        strength: λ ≥ 0, the weight decay of the entries; each entry feels it once, also in two classes.
        classes: names of classes; by default those with a rotation symmetry.

    Returns:
        The same model.

    Raises:
        ControlError: if a class is unknown or has no such symmetry, a tensor cannot be factorised, or a number is out
            of range; the model is as before.

    Cost: nothing for whole tensors, one copy per forward pass for parts of fused ones.

    Source: arXiv 2309.16932, low-rank constraint.

    Example:
        >>> from gaugefix import find_symmetries
        >>> model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 5))
        >>> _ = rank(model, find_symmetries(model, (torch.randn(8, 6),)), strength=1e-3)
        >>> from gaugefix.control import impose
        >>> [name for name, _ in impose.factors(model)]
        ['0.weight: factor 0', '1.weight: factor 0']
    """
    strength = check_strength(strength)
    check_same_model(model, symmetries)
    rotated = _groups(symmetries, ("GL(", "O("))
    chosen = _choose(symmetries, classes, lambda u: u.name in rotated, "classes with a rotation symmetry")
    usable = rotated | _groups(symmetries, ("R+",))
    for units in chosen:
        if units.name not in usable:
            raise ControlError(
                f"{units.name!r} has neither a rotation nor a rescaling symmetry, so its sides are no factors of a "
                f"product. "
                "Use impose.prune_units."
            )
    masks: dict[str, Tensor] = {}
    for s in (s for u in chosen for s in u.slices):
        tensor = _parameter(model, s)
        mask = masks.setdefault(s.param, torch.zeros_like(tensor, dtype=torch.bool))
        masks[s.param] = s.put(mask, torch.ones_like(s.take(mask)))
    for name, mask in masks.items():
        _put(model, name, PartFactors(strength, positions_of(mask)))
    return model


def _groups(symmetries: Symmetries | Sequence[Units], wanted: tuple[str, ...]) -> set[str]:
    """Names of the classes with a symmetry group of one of these kinds."""
    if isinstance(symmetries, Symmetries):
        return {s.units.name for s in symmetries if s.units is not None and any(w in s.group for w in wanted)}
    rotations = "GL(" in wanted
    return {u.name for u in symmetries if (u.activation == "identity" if rotations else u.homogeneous)}


def _choose(
    symmetries: Symmetries | Sequence[Units], classes: Sequence[str] | None, default: Callable[[Units], bool], what: str
) -> list[Units]:
    units = {u.name: u for u in units_of(symmetries)}
    shown = _shown(units.values())
    if classes is None:
        chosen = [u for u in units.values() if default(u)]
        if not chosen:
            raise ControlError(f"There are no {what}. The classes are {shown}; name some with classes=[…].")
        return chosen
    unknown = [name for name in classes if name not in units]
    if unknown or not classes or isinstance(classes, str):
        near = [n for name in unknown for n in difflib.get_close_matches(name, units, n=2, cutoff=0.6)]
        hint = f" Did you mean {', '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
        raise ControlError(f"classes must be names of classes of units, got {classes!r}.{hint} There are {shown}.")
    return [units[name] for name in dict.fromkeys(classes)]


def _shown(units: Iterable[Units], most: int = 12) -> str:
    """Names and kinds for an error."""
    named = [f"{u.name!r} ({u.kind})" for u in units]
    return (", ".join(named[:most]) or "none") + (f" and {len(named) - most} more" if len(named) > most else "")


def _parameter(model: nn.Module, s: Slice) -> Tensor:
    """The tensor of a slice, checked to be one that can be factorised and has room for it."""
    inner, last = holder(model, s.param)
    tensor: Tensor = getattr(inner, last).detach()
    if s.dim >= tensor.ndim or s.index.max() >= tensor.shape[s.dim]:
        raise ControlError(
            f"{s.param!r} has shape {tuple(tensor.shape)}, too small for the units of the search result. Find the "
            "symmetries of this model again."
        )
    check_finite(s.param, tensor)
    return tensor


def _labels(model: nn.Module, chosen: Sequence[Units]) -> dict[str, Tensor]:
    """For every tensor the number of the unit that owns each entry, −1 for none."""
    labels: dict[str, Tensor] = {}
    owners: list[str] = []
    for units in chosen:
        first = len(owners)
        owners += [units.name] * len(units)
        for s in (*units.incoming, *units.gains):
            tensor = _parameter(model, s)
            label = labels.setdefault(s.param, torch.full_like(tensor, -1, dtype=torch.int64))
            before = s.take(label)
            ids = torch.arange(first, len(owners), device=label.device).reshape(units.fibers, units.size)
            wanted = ids.reshape(ids.shape + (1,) * (before.ndim - 2)).expand_as(before)
            clash = (before >= 0) & (before != wanted)
            if bool(clash.any()):
                other = owners[int(before[clash][0])]
                raise ControlError(
                    f"An entry of {s.param!r} belongs to a unit of {other!r} and to one of {units.name!r}. Give "
                    f"classes=[…] "
                    "that do not overlap."
                )
            labels[s.param] = s.put(label, wanted)
    if not labels:
        raise ControlError(f"{', '.join(u.name for u in chosen)}: no entry writes these units.")
    return labels


def _put(model: nn.Module, name: str, kind: PartFactors) -> None:
    inner, last = holder(model, name)
    parametrize.register_parametrization(inner, last, kind.train(inner.training))
