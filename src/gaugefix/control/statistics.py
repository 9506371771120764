"""Running statistics of batch normalisation belong to the units they describe, and move with them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gaugefix.symmetry import Slice, Symmetry, Units
from gaugefix.symmetry.groups import Diagonal, Permutation


def _statistics(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Running mean and variance of every batch normalisation, by module name."""
    return {
        name: (f"{name}.running_mean".lstrip("."), f"{name}.running_var".lstrip("."))
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
    }


def units_with_statistics(units: Units, model: nn.Module) -> Units:
    """A class together with the running statistics of the normalisations whose gains it has.

    Args:
        units: the class.
        model: the module.

    Returns:
        The class with a "gain" slice for each running mean and variance.
    """
    found, extra = _statistics(model), {}
    for s in units.gains:
        for name in found.get(s.param.rpartition(".")[0], ()):
            extra[name] = Slice(name, 0, s.index, "gain")
    return replace(units, slices=(*units.slices, *extra.values())) if extra else units


def with_statistics(symmetry: Symmetry, model: nn.Module) -> Symmetry:
    """A permutation or sign flip that also moves the running statistics of batch normalisation.

    A running mean changes sign where gain and bias of the normalisation have unlike charges: then its input does.

    Args:
        symmetry: any symmetry.
        model: the module.

    Returns:
        The symmetry of the function in evaluation mode; others are returned as they are.
    """
    if isinstance(symmetry, Permutation) and symmetry.units is not None:
        return replace(symmetry, units=units_with_statistics(symmetry.units, model))
    if isinstance(symmetry, Diagonal) and symmetry.kind == "sign":
        charge = {(s.param, s.dim): q for s, q in symmetry.charges}
        extra: list[tuple[Slice, float]] = []
        for name, (mean, _) in _statistics(model).items():
            gain = next((s for s, _ in symmetry.charges if s.param in {f"{name}.weight", f"{name}.bias"}), None)
            odd = sum(charge.get((f"{name}.{leaf}", 0), 0.0) for leaf in ("weight", "bias")) % 2
            if gain is not None and odd:
                extra.append((Slice(mean, 0, gain.index, "gain"), 1.0))
        return replace(symmetry, charges=(*symmetry.charges, *extra)) if extra else symmetry
    return symmetry
