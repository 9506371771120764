"""What level "full" adds to an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gaugefix.audit.boundary import Boundary
from gaugefix.measure import (
    AlignmentSummary,
    EntropyReport,
    LyapunovReport,
    Record,
    UnitNoise,
    alignment_report,
    entropy_report,
    lambda_min,
    lyapunov,
    unit_noise,
)
from gaugefix.symmetry import Symmetries
from gaugefix.task import Task

#: largest model whose flat directions an audit counts: a dense singular value decomposition, seconds at this size
_COUNTED = 2000


@dataclass(frozen=True, eq=False)
class FullMeasurements(Record):
    """What takes longer than a quick audit; a part that could not be measured is None, with its reason in `skipped`.

    Attributes:
        lyapunov: exponents of the nearest mirror planes under minibatch noise.
        entropy: what a finite step adds to the loss, and the balance of gradients between the sides of every unit.
        alignment: the six relations between activations, gradients and weights of every linear layer.
        unit_noise: gradient noise of both sides of every unit.
    """

    lyapunov: LyapunovReport | None
    entropy: EntropyReport | None
    alignment: AlignmentSummary | None
    unit_noise: tuple[UnitNoise, ...] | None


def measure_fully(
    task: Task, symmetries: Symmetries, boundary: Boundary, seed: int
) -> tuple[FullMeasurements, dict[str, Any]]:
    """Everything that only level "full" measures, each inside its own boundary.

    Args:
        task: what is audited.
        symmetries: what was found.
        boundary: where failures and warnings are kept.
        seed: of every random choice.

    Returns:
        The measurements, and further numbers by name for `Audit.extra`.
    """
    run = boundary.run
    full = FullMeasurements(
        lyapunov=run("Lyapunov exponents", lambda: lyapunov(task, symmetries, seed=seed)),
        entropy=run("entropy", lambda: entropy_report(task, symmetries, seed=seed)),
        alignment=run("alignment", lambda: alignment_report(task, seed=seed)),
        unit_noise=run("noise of units", lambda: unit_noise(task, symmetries, seed=seed)) if symmetries.units else None,
    )
    for part, what in ((full.lyapunov, "Lyapunov exponents"), (full.entropy, "entropy"), (full.alignment, "alignment")):
        for reason in part.skipped if part is not None else ():
            boundary.skip(what, reason)
    return full, _extra(task, symmetries, boundary, seed)


def _extra(task: Task, symmetries: Symmetries, boundary: Boundary, seed: int) -> dict[str, Any]:
    """Flat directions that the search missed, and the lowest curvature of the data loss."""
    from gaugefix.testing import flat_directions

    inputs, extra = task.inputs(task.first_batch()), {}
    counted = boundary.run(
        "completeness", lambda: flat_directions(task.model, inputs, seed=seed, max_parameters=_COUNTED)
    )
    if counted is not None:
        extra["flat_directions"] = {"found": symmetries.flat_dim, **vars(counted)}
        if counted.reliable and counted.flat != symmetries.flat_dim:
            boundary.notes.append(
                f"completeness: {counted.flat} flat directions were counted at a random point and "
                f"{symmetries.flat_dim} found; units that no input switches on there are one cause"
            )
    lowest = boundary.run("lowest curvature", lambda: lambda_min(task, seed=seed))
    if lowest is not None:
        extra["lowest_curvature"] = {"value": lowest[0], "residual": lowest[1]}
    return extra
