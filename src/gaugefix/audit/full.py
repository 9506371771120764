"""What level "full" adds to an audit."""

from __future__ import annotations

from typing import Any

from gaugefix.audit.boundary import Boundary
from gaugefix.measure import lambda_min
from gaugefix.symmetry import Symmetries
from gaugefix.task import Task


def measure_fully(task: Task, symmetries: Symmetries, boundary: Boundary, seed: int) -> dict[str, Any]:
    """What level "full" adds: flat directions that the search missed, and the lowest curvature of the data loss."""
    from gaugefix.testing import flat_directions

    inputs, extra = task.inputs(task.first_batch()), {}
    counted = boundary.run("completeness", lambda: flat_directions(task.model, inputs, seed=seed))
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
    boundary.skip("Lyapunov exponents, critical learning rate and batch size", "not in this release")
    return extra
