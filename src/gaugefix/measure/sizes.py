"""How large a unit is, and which units are alive: the one definition that every measurement and forecast shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gaugefix.measure.activations import known_activation
from gaugefix.symmetry import Units
from gaugefix.symmetry.units import Role

DEFAULT_TOLERANCE = 1e-2


def unit_sizes(params: Mapping[str, Tensor], units: Units) -> Float[np.ndarray, " n"]:
    """Size of every unit, √(‖incoming‖‖outgoing‖), the same in every gauge of a rescaling symmetry.

    A class with one side only has the norm of that side; a class whose activation does not vanish at zero (sigmoid)
    has the norm of its outgoing side, since no incoming weights make it a constant and not a dead unit.

    Args:
        params: parameters by name.
        units: the class.

    Returns:
        ``(fibers * size,)``.
    """
    incoming, outgoing = (unit_rows(params, units, role) for role in ("write", "read"))
    if not incoming.shape[1] and not outgoing.shape[1]:
        return _norms(unit_rows(params, units, None))
    if not outgoing.shape[1]:
        return _norms(incoming)
    activation = known_activation(units.activation)
    if not incoming.shape[1] or (activation is not None and not activation.vanishes):
        return _norms(outgoing)
    return np.asarray(np.sqrt(_norms(incoming) * _norms(outgoing)))


def live_units(params: Mapping[str, Tensor], units: Units, tolerance: float = DEFAULT_TOLERANCE) -> np.ndarray:
    """Mask of the units that are not dead: size at least ``tolerance`` of the class's reference size.

    The reference is the largest unit, or a tenth of a freshly initialised one if that is larger, so that a class in
    which every unit has decayed is dead and not merely small.

    Args:
        params: parameters by name.
        units: the class.
        tolerance: as in `collapse_report`.

    Returns:
        ``(fibers * size,)`` booleans.
    """
    sizes = unit_sizes(params, units)
    reference = max(float(sizes.max(initial=0.0)), 0.1 * _initial_size(params, units))
    return np.asarray(sizes >= tolerance * reference)


def unit_rows(params: Mapping[str, Tensor], units: Units, role: Role | None) -> np.ndarray:
    """Parameters of every unit of one role (or of both), ``(n, entries)`` in float64.

    Args:
        params: parameters by name.
        units: the class.
        role: "write" (incoming), "read" (outgoing) or None for both.

    Returns:
        One row per unit.
    """
    return units.rows({k: p.detach() for k, p in params.items()}, role).double().cpu().numpy()


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Every row divided by its norm; rows of zeros stay.

    Args:
        rows: ``(n, entries)``.

    Returns:
        The same shape.
    """
    norms = _norms(rows)[:, None]
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(rows, axis=1))


def _initial_size(params: Mapping[str, Tensor], units: Units) -> float:
    """Size of a unit under PyTorch's default initialisation, entries of variance 1/(3 fan_in)."""
    incoming = math.sqrt(1 / 3) if units.incoming else 1.0
    entries = unit_rows(params, units, "read").shape[1]
    outgoing = math.sqrt(entries / (3 * len(units))) if entries else 1.0
    return math.sqrt(incoming * outgoing)
