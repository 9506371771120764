"""The certificate: whether any layer of a network would gain by more width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gaugefix.forecast.results import Certificate, Forecast
from gaugefix.forecast.widths import forecast
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task


def certificate(
    task: Task,
    symmetries: Symmetries | Sequence[Units],
    *,
    settle_steps: int = 100,
    seed: int = 0,
    max_samples: int = 4096,
) -> Certificate:
    """Whether the network is wide enough: at a stationary point with κ = λ no ghost of any class would grow.

    Args:
        task: gives model, loss, data and optimiser.
        symmetries: what `find_symmetries` gave, or the classes of units themselves.
        settle_steps: full-batch steps on a copy before anything is measured, see `gaugefix.measure.settle`.
        seed: of the data order and the ascents.
        max_samples: stop after the batch that reaches this number.

    Returns:
        The certificate over all classes to which the theory applies. It is local in the rest of the network.
    """
    return certify(forecast(task, symmetries, settle_steps=settle_steps, seed=seed, max_samples=max_samples))


def certify(found: Forecast) -> Certificate:
    """`certificate` from a forecast that is there already; costs nothing.

    Args:
        found: from `forecast`.

    Returns:
        The certificate.
    """
    covered = [c for c in found.classes if c.verdict != "not applicable"]
    uncovered = tuple(c.name for c in found.classes if c.verdict == "not applicable")
    if not covered:
        return Certificate(np.nan, found.weight_decay, np.nan, False, "", uncovered, "no class is covered")
    binding = max(covered, key=lambda c: c.kappa)
    closed = all(c.verdict in {"saturated: more width cannot help", "dead stays dead"} for c in covered)
    open_ones = ", ".join(f"{c.name}: {c.verdict}" for c in covered if c.verdict.startswith(("not", "wants", "would")))
    residuals = [c.residual for c in covered if c.alive]
    return Certificate(
        binding.kappa,
        found.weight_decay,
        max(residuals, default=0.0),
        closed and not uncovered,
        binding.name,
        uncovered,
        open_ones or ("uncovered: " + ", ".join(uncovered) if uncovered else ""),
    )
