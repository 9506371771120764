"""A linear layer h_b = W h_a whose second moments share an eigenbasis: which power laws its alignments imply.

Let z be an eigenvalue of WWᵀ, and let the second moments of h_a and of g_b = −∂ℓ/∂h_b be z^p and z^q there. Then
h_b = z^{1+p} and g_a = z^{1+q}, and each of the six alignment relations fixes p, q or their difference.
"""

from __future__ import annotations

import math

import numpy as np

#: rows a·(p, q) = b of each relation
_CONDITIONS: dict[str, tuple[tuple[float, float], float]] = {
    "rga_out": ((-1.0, 1.0), 1.0),  # H_b ∝ G_b: q = 1 + p
    "rwa_out": ((1.0, 0.0), 0.0),  # H_b ∝ WWᵀ: p = 0
    "gwa_out": ((0.0, 1.0), 1.0),  # G_b ∝ WWᵀ: q = 1
    "rga_in": ((1.0, -1.0), 1.0),  # H_a ∝ G_a: p = 1 + q
    "rwa_in": ((1.0, 0.0), 1.0),  # H_a ∝ WᵀW: p = 1
    "gwa_in": ((0.0, 1.0), 0.0),  # G_a ∝ WᵀW: q = 0
}


def canonical_exponents(outgoing: str, incoming: str) -> tuple[float, float] | None:
    """Exponents (p, q) of a layer on which one relation of each side holds.

    Args:
        outgoing: "rga_out", "rwa_out" or "gwa_out".
        incoming: "rga_in", "rwa_in" or "gwa_in".

    Returns:
        (p, q), or None if the two can hold together only where all non-zero z are equal (W is a projector up to
        scale): the two rga, the two rwa, the two gwa.

    Raises:
        ValueError: if a name is unknown or on the wrong side.

    Source: arXiv 2410.03006, result 3.

    Example:
        >>> canonical_exponents("gwa_out", "rwa_in"), canonical_exponents("rga_out", "rga_in")
        ((1.0, 1.0), None)
    """
    for name, side in ((outgoing, "_out"), (incoming, "_in")):
        if name not in _CONDITIONS or not name.endswith(side):
            known = ", ".join(n for n in _CONDITIONS if n.endswith(side))
            raise ValueError(f"Unknown relation {name!r} on this side; there are {known}.")
    rows, values = zip(_CONDITIONS[outgoing], _CONDITIONS[incoming], strict=True)
    matrix = np.array(rows)
    if math.isclose(float(np.linalg.det(matrix)), 0.0, abs_tol=1e-12):
        return None
    p, q = np.linalg.solve(matrix, np.array(values))
    return float(p) + 0.0, float(q) + 0.0


def deep_linear_exponents(layer: int, depth: int) -> tuple[float, float]:
    """Exponents of layer l of a deep linear network with isotropic inputs and label noise, p = l and q = D − 1 − l.

    Args:
        layer: l, from 0.
        depth: D, number of layers.

    Returns:
        (p, q) at the stationary state of SGD with weight decay.

    Raises:
        ValueError: if the layer is not one of the network.

    Source: arXiv 2410.03006, result 7.

    Example:
        >>> [deep_linear_exponents(l, 3) for l in range(3)]
        [(0.0, 2.0), (1.0, 1.0), (2.0, 0.0)]
    """
    if not 0 <= layer < depth:
        raise ValueError(f"layer must be in [0, {depth}), got {layer!r}.")
    return float(layer), float(depth - 1 - layer)
