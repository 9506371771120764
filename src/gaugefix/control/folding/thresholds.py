"""Which of some sizes count as zero: a given tolerance, or the gap in their logarithms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

#: a gap must span a factor of ten, and what lies below it must be a hundredth of the largest
GAP = 10.0
BELOW = 1e-2


def threshold(sizes: Float[np.ndarray, " n"], tolerance: float | None, eps: float) -> float:
    """The size below which an entry counts as zero, relative to the largest.

    Args:
        sizes: non-negative.
        tolerance: given threshold; None takes the middle of the widest gap in the log sizes.
        eps: rounding unit of the numbers the sizes were made from.

    Returns:
        A number ≥ 32 eps.

    Example:
        >>> round(threshold(np.array([1.0, 0.5, 1e-5, 2e-5]), None, 1e-16), 5)
        0.00316
        >>> threshold(np.array([1.0, 0.5, 1e-5]), 0.0, 1e-7) < 1e-5
        True
    """
    floor = 32 * eps
    if tolerance is not None:
        return max(tolerance, floor)
    top = float(sizes.max(initial=0.0))
    relative = np.sort(sizes[sizes > floor * top] / top)[::-1] if top > 0 else np.zeros(0)
    ratios = relative[:-1] / relative[1:]
    ratios[relative[1:] > BELOW] = 1.0
    if not len(ratios) or ratios.max() < GAP:
        return floor
    k = int(ratios.argmax())
    return float(np.sqrt(relative[k] * relative[k + 1]))


def small(sizes: Float[np.ndarray, " n"], tolerance: float | None, eps: float) -> Bool[np.ndarray, " n"]:
    """Mask of the sizes that count as zero; all of them if the largest is zero.

    Args:
        sizes: non-negative.
        tolerance: as in `threshold`.
        eps: as in `threshold`.

    Returns:
        Booleans.
    """
    top = float(sizes.max(initial=0.0))
    return np.asarray(sizes <= threshold(sizes, tolerance, eps) * top)
