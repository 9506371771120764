"""What the theory needs to know of an elementwise function: its slope at zero, its parity, its homogeneity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """One elementwise function φ.

    Attributes:
        name: as in `Units.activation`.
        function: φ on tensors.
        slope: φ'(0) of a smooth φ with φ(0) = 0; nan if φ is not differentiable there or φ(0) ≠ 0.
        odd: whether φ(−z) = −φ(z), so that a unit and its negative compute the same feature.
        homogeneous: whether φ(cz) = cφ(z) for c > 0, so that only the direction of the incoming weights counts.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    slope: float = math.nan
    odd: bool = False
    homogeneous: bool = False

    @cached_property
    def vanishes(self) -> bool:
        """Whether φ(0) = 0: a unit without incoming weights then contributes nothing."""
        return float(self.function(torch.zeros(()))) == 0.0


def _identity(z: Tensor) -> Tensor:
    return z


_KNOWN = {
    a.name: a
    for a in (
        Activation("identity", _identity, 1.0, odd=True, homogeneous=True),
        Activation("relu", torch.relu, homogeneous=True),
        Activation("leaky_relu", functional.leaky_relu, homogeneous=True),
        Activation("tanh", torch.tanh, 1.0, odd=True),
        Activation("sin", torch.sin, 1.0, odd=True),
        Activation("softsign", functional.softsign, 1.0, odd=True),
        Activation("hardtanh", functional.hardtanh, 1.0, odd=True),
        Activation("erf", torch.erf, 2 / math.sqrt(math.pi), odd=True),
        Activation("gelu", functional.gelu, 0.5),
        Activation("silu", functional.silu, 0.5),
        Activation("mish", functional.mish, 0.6),
        Activation("elu", functional.elu, 1.0),
        Activation("sigmoid", torch.sigmoid),
        Activation("softplus", functional.softplus),
    )
}


def known_activation(name: str) -> Activation | None:
    """Look an activation up.

    Args:
        name: as in `Units.activation`.

    Returns:
        What is known of it, or None.

    Example:
        >>> known_activation("tanh").odd, known_activation("relu").slope
        (True, nan)
    """
    return _KNOWN.get(name)


def leaky(negative_slope: float) -> Activation:
    """LeakyReLU with a given slope for negative inputs.

    Args:
        negative_slope: a in φ(z) = max(z, 0) + a·min(z, 0).

    Returns:
        The activation.
    """

    def function(z: Tensor) -> Tensor:
        return functional.leaky_relu(z, negative_slope)

    return Activation("leaky_relu", function, homogeneous=True)
