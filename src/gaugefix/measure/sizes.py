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
_ROLES: tuple[Role, ...] = ("write", "read", "gain")


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
    rows = {role: unit_rows(params, units, role) for role in _ROLES}
    norms = {role: _norms(r) if r.shape[1] else None for role, r in rows.items()}
    return combined_sizes(units, norms["write"], norms["read"], norms["gain"])


def combined_sizes(
    units: Units, incoming: np.ndarray | None, outgoing: np.ndarray | None, gains: np.ndarray | None
) -> Float[np.ndarray, " n"]:
    """`unit_sizes` where the norms of the sides are known already.

    Args:
        units: the class.
        incoming: ``(n,)`` norm of the incoming entries of every unit, None if there are none.
        outgoing: of the outgoing entries.
        gains: of the gains.

    Returns:
        ``(n,)``.
    """
    if incoming is None and outgoing is None:
        return np.zeros(len(units)) if gains is None else gains
    if outgoing is None:
        return np.asarray(incoming)
    activation = known_activation(units.activation)
    if incoming is None or (activation is not None and not activation.vanishes):
        return outgoing
    return np.asarray(np.sqrt(incoming * outgoing))


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
    return np.asarray(sizes >= tolerance * reference_size(sizes, units, unit_rows(params, units, "read").shape[1]))


def reference_size(sizes: np.ndarray, units: Units, outgoing_entries: int) -> float:
    """What the size of a unit is compared with to tell whether it is alive: see `live_units`.

    Args:
        sizes: ``(n,)`` of the class.
        units: the class.
        outgoing_entries: number of outgoing entries of one unit.

    Returns:
        A size, above zero.
    """
    return max(float(sizes.max(initial=0.0)), 0.1 * _initial_size(units, outgoing_entries))


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


def _initial_size(units: Units, outgoing_entries: int) -> float:
    """Size of a unit under PyTorch's default initialisation, entries of variance 1/(3 fan_in)."""
    incoming = math.sqrt(1 / 3) if units.incoming else 1.0
    outgoing = math.sqrt(outgoing_entries / (3 * len(units))) if outgoing_entries else 1.0
    return math.sqrt(incoming * outgoing)
