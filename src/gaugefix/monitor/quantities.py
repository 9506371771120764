"""The cheap numbers: from sums over units to what is logged. Everything here is a small array on the processor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gaugefix.measure.sizes import combined_sizes, reference_size
from gaugefix.monitor.law import Sums
from gaugefix.monitor.watched import WatchedCharge, WatchedClass


class Table:
    """Sums of all slots after their one transfer from the device.

    Args:
        values: ``(pairs, units of all slots)``.
        pairs: names of the rows, such as "pp" for ‖θ‖².
        ranges: where every slot lies.
    """

    def __init__(self, values: np.ndarray, pairs: tuple[str, ...], ranges: Mapping[str, tuple[int, int]]) -> None:
        self._values, self._pairs, self._ranges = values, pairs, ranges

    def slot(self, name: str) -> dict[str, np.ndarray]:
        """The sums of one slot by pair, ``(n,)`` each."""
        a, b = self._ranges[name]
        return {pair: self._values[i, a:b] for i, pair in enumerate(self._pairs)}

    def square(self, name: str, pair: str = "pp") -> np.ndarray:
        """One sum of one slot, ``(n,)``."""
        a, b = self._ranges[name]
        return self._values[self._pairs.index(pair), a:b]

    def sides(self, charge: WatchedCharge) -> tuple[Sums, Sums]:
        """The sums of the positive and of the negative side of a charge."""
        return self.slot(charge.plus), self.slot(charge.minus)

    def scale_gradients(self, factor: float) -> None:
        """Divide the gradients by a factor, as the scaler of mixed precision would have done."""
        for i, pair in enumerate(self._pairs):
            self._values[i] /= factor ** pair.count("g")


def relative_sizes(w: WatchedClass, table: Table) -> np.ndarray:
    """Size of every unit relative to the reference of its class, as `gaugefix.measure.live_units` compares it.

    Args:
        w: the class.
        table: of the weights.

    Returns:
        ``(n,)``; below the tolerance a unit is dead.
    """
    norms = {role: np.sqrt(table.square(slot)) for role, slot in w.roles.items()}
    sizes = combined_sizes(w.units, norms.get("write"), norms.get("read"), norms.get("gain"))
    return np.asarray(sizes / reference_size(sizes, w.units, w.outgoing_entries))


def class_numbers(w: WatchedClass, table: Table, tolerance: float) -> dict[str, float]:
    """Numbers of one class that cost nothing more.

    Args:
        w: the class.
        table: of weights and gradients.
        tolerance: relative size below which a unit is dead.

    Returns:
        ``live``: number of live units; ``effective_units``: participation ratio (Σs²)²/Σs⁴ of the unit sizes s, the
        number of units that carry the layer; ``weight_norm`` and ``gradient_norm`` over all its slices.
    """
    relative = relative_sizes(w, table)
    square = relative**2
    quartic = float((square**2).sum())
    return {
        "live": float((relative >= tolerance).sum()),
        "effective_units": float(square.sum() ** 2 / quartic) if quartic > 0 else 0.0,
        "weight_norm": float(np.sqrt(sum(table.square(slot).sum() for slot in w.roles.values()))),
        "gradient_norm": float(np.sqrt(sum(table.square(slot, "gg").sum() for slot in w.roles.values()))),
    }


def imbalance(charge: WatchedCharge, table: Table, pair: str = "pp") -> float:
    """Σ|‖u‖² − ‖w‖²| / Σ(‖u‖² + ‖w‖²) over the units: 0 if all are balanced, 1 if one side is zero.

    Args:
        charge: which pair.
        table: of the sums.
        pair: "pp" for the weights, "gg" for the gradients, whose balance is where SGD comes to rest (2308.06671).

    Returns:
        The ratio; nan if both sides vanish. For gradients it is of the totals, |Σ(‖g_u‖² − ‖g_w‖²)| / Σ(…), because the
        law is about expectations.
    """
    plus, minus = table.square(charge.plus, pair), table.square(charge.minus, pair)
    total = float((plus + minus).sum())
    gap = np.abs(plus - minus).sum() if pair == "pp" else abs((plus - minus).sum())
    return float(gap) / total if total > 0 else float("nan")
