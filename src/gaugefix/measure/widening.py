"""A copy of a model in which a class of units has further units of zero size."""

from __future__ import annotations

import copy as copying
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gaugefix.errors import MeasurementError
from gaugefix.symmetry import Units
from gaugefix.symmetry.growth import Growth, grow_units

#: modules whose forward pass has the size of the class built in
_FIXED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Bilinear)


@dataclass(frozen=True, eq=False)
class Wide:
    """A widened model.

    Attributes:
        model: the copy.
        growth: where the new units are; ``growth.added`` has their slices.
        score_scale: factor by which a product of two new entries counts less than one of two old ones: a model that
            divides its scores by the square root of the head dimension divides by more after widening, and its old
            queries and keys were enlarged to make up for that. 1 for everything else.
        safe: whether every module that owns a grown parameter is known to run at any width.
    """

    model: nn.Module
    growth: Growth
    score_scale: float = 1.0
    safe: bool = True


def residual_stream(units: Units) -> bool:
    """Whether a class is the stream of a residual network or sits inside a normalisation over its units."""
    return units.kind == "residual" or "normalised" in units.flags


def unsuitable(units: Units, params: dict[str, Tensor]) -> str:
    """Why a ghost of a class makes no sense, before any model is built; "" if it does.

    Args:
        units: the class.
        params: parameters by name, with their ``requires_grad``.

    Returns:
        The reason.
    """
    if any(s.param not in params for s in units.slices):
        return "a slice belongs to no parameter of this model"
    frozen = [s.param for s in units.slices if not params[s.param].requires_grad]
    if frozen:
        return f"{frozen[0]!r} is frozen: neither trained nor decayed"
    if not units.incoming:
        return "no incoming slice"
    if not units.outgoing and "linear" not in units.flags:
        return "no outgoing slice"
    if any(s.index.shape[2] > 1 for s in units.incoming):
        return "units are whole blocks of parameters (heads): see the classes inside them"
    return ""


def widened_copy(model: nn.Module, units: Units, n: int) -> Wide:
    """A deep copy of a model with ``n`` more units of zero size in every fiber of a class.

    New incoming and outgoing entries are zero, batch normalisation of a new channel is the identity.

    Args:
        model: any module.
        units: a class of `find_symmetries`, with the names of this model.
        n: number of new units in each fiber.

    Returns:
        The copy. Whether it runs and computes the same is not checked here.

    Raises:
        MeasurementError: if the class cannot be widened: residual streams, tied parameters, grouped convolutions,
            modules with the size built in.
    """  # noqa: DOC502
    _refuse(model, units)
    shapes = {k: tuple(p.shape) for k, p in model.named_parameters()}
    growth = grow_units(units, shapes, n)
    wide = copying.deepcopy(model)
    safe = True
    for param in growth.sources:
        owner, _, leaf = param.rpartition(".")
        module = wide.get_submodule(owner)
        old: Tensor = getattr(module, leaf)
        gain = isinstance(module, _BatchNorm) and leaf == "weight"
        grown = growth.apply(param, old.detach(), fill=1.0 if gain else 0.0)
        setattr(module, leaf, nn.Parameter(grown, requires_grad=old.requires_grad))
        safe &= _resize(wide, owner, module, growth, param)
    return Wide(wide, growth, safe=safe)


def scaled_scores(wide: Wide, units: Units) -> Wide:
    """Make up for a model that divides its scores by √(head dimension): enlarge the old queries and keys.

    Args:
        wide: from `widened_copy`.
        units: the class before, with two factors of incoming slices and no outgoing one.

    Returns:
        The same model, its old entries times ((e + n)/e)^{1/4}.
    """
    size = wide.growth.units.size
    ratio = size / units.size
    params = dict(wide.model.named_parameters())
    with torch.no_grad():
        for s in wide.growth.units.slices:
            block = s.take(params[s.param])
            block[:, : units.size] *= ratio**0.25
            params[s.param].copy_(s.put(params[s.param], block))
    return Wide(wide.model, wide.growth, ratio**-0.5, wide.safe)


def _refuse(model: nn.Module, units: Units) -> None:
    params = dict(model.named_parameters())
    if residual_stream(units):
        raise MeasurementError(
            f"{units.name}: a residual stream or a class inside a normalisation cannot be widened, its mean and "
            "variance would change."
        )
    if not units.slices or any(s.param not in params for s in units.slices):
        raise MeasurementError(f"{units.name}: the class does not belong to this model; search this model again.")
    aliases = [k for k, _ in model.named_parameters(remove_duplicate=False)]
    tied = [
        p for p in units.parameters
        if sum(q is params[p] for k, q in model.named_parameters(remove_duplicate=False)) > 1
    ]  # fmt: skip
    if len(aliases) > len(params) and tied:
        raise MeasurementError(f"{units.name}: {tied[0]!r} is tied to another parameter. Untie it first.")
    for p in units.parameters:
        module = model.get_submodule(p.rpartition(".")[0])
        if isinstance(module, _FIXED):
            raise MeasurementError(f"{units.name}: {type(module).__name__} has the size of {p!r} built in.")
        if isinstance(module, _ConvNd) and module.groups != 1:
            raise MeasurementError(f"{units.name}: {p!r} is a convolution in {module.groups} groups.")


def _resize(model: nn.Module, owner: str, module: nn.Module, growth: Growth, param: str) -> bool:
    """Tell a module its new size; whether its kind is known."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
        _resize_adapter(model, owner, module)
    elif isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        out, into = (second, first) if module.transposed else (first, second)
        module.out_channels, module.in_channels = out, into
    elif isinstance(module, _BatchNorm):
        if param.endswith(".weight") or param == "weight":
            for name, fill in (("running_mean", 0.0), ("running_var", 1.0)):
                value = getattr(module, name)
                if value is not None:
                    setattr(module, name, growth.apply(param, value, fill))
            module.num_features = len(module.weight)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        module.nx, module.nf = (int(k) for k in module.weight.shape)  # type: ignore[assignment, union-attr]
    else:
        return False
    return True


def _resize_adapter(model: nn.Module, owner: str, module: nn.Linear) -> None:
    """The rank that a layer of peft keeps for each adapter."""
    parts = owner.split(".")
    if len(parts) > 2 and parts[-2] == "lora_A":
        ranks = getattr(model.get_submodule(".".join(parts[:-2])), "r", None)
        if isinstance(ranks, dict) and parts[-1] in ranks:
            ranks[parts[-1]] = module.out_features
