"""audit: find, measure and forecast one task, and say what to do about it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from gaugefix.advice import advise
from gaugefix.audit.boundary import Boundary
from gaugefix.audit.events import read_events
from gaugefix.audit.full import measure_fully
from gaugefix.audit.records import Audit, TaskSummary
from gaugefix.errors import MeasurementError
from gaugefix.forecast import certify, forecast
from gaugefix.measure import check_charge_law, collapse_report, gradient_noise, working_precision
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.task import Task
from gaugefix.threads import is_small, one_thread
from gaugefix.training import train

if TYPE_CHECKING:
    from gaugefix.report.progress import Stages


#: full-batch steps for each weight decay that level "full" tries to find where a deep network dies
_JUMP_STEPS = 600


def audit(
    task: Task,
    *,
    level: Literal["quick", "full"] = "quick",
    log: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Audit:
    """Find the symmetries of a task's model, measure what they did to it, forecast what they will do.

    The model is trained first for ``task.epochs`` passes (in place); with ``epochs=0`` it is measured as it is. A
    measurement that fails is reported in `Audit.skipped` with its reason and does not stop the others. Small networks
    run on one thread, see `gaugefix.threads.one_thread`; for the others ``OMP_NUM_THREADS`` decides. It computes in
    float64, or in what `gaugefix.measure.precision` says.

    Args:
        task: what to audit.
        level: "full" adds Lyapunov exponents of the nearest mirror planes, the entropic loss and gradient balance,
            alignment of every layer, noise of every unit, the lowest curvature of the data loss, with several hidden
            layers the weight decay at which the network dies at a jump, and a count of the flat directions to see
            whether the search missed any (a dense Jacobian, up to 2000 parameters).
        log: JSONL file of a `gaugefix.monitor.Monitor` that watched the training of this model; the report then says
            what happened during it. It is read first.
        progress: show progress bars on standard error.
        seed: seed of the data order and of every random choice of the measurements.

    Returns:
        The audit; print it with rich, or write it with `Audit.to_html` and `Audit.to_json`.

    Raises:
        MeasurementError: if ``level`` is unknown, or ``log`` is not the log of a run.
        TaskError: if the loss is not finite or not per sample, or training diverges.

    Example:
        >>> import gaugefix
        >>> result = gaugefix.audit(my_task)  # doctest: +SKIP
        >>> result.to_html("audit.html")  # doctest: +SKIP
    """  # noqa: DOC502
    if level not in {"quick", "full"}:
        raise MeasurementError(f"audit: level must be 'quick' or 'full', got {level!r}.")
    from gaugefix.report.progress import Stages

    started = time.perf_counter()
    events = read_events(log) if log is not None else None  # before hours of training, not after
    task.check()
    with one_thread() if is_small(task) else nullcontext(), Stages(shown=progress) as stages:
        training = tuple(_train(task, stages, seed)) if task.epochs else ()
        task.check()
        boundary = Boundary(stages)
        found = _measure(task, training, boundary, level, seed, started)
    return found if events is None else replace(found, run=events)


def _train(task: Task, stages: Stages, seed: int) -> list[float]:
    """Train with a bar that shows the loss."""
    with stages.counted("Training", task.epochs) as advance:
        return train(task, seed=seed, callback=lambda _, loss: advance(f"loss {loss:.4f}"))


def _measure(
    task: Task, training: tuple[float, ...], boundary: Boundary, level: str, seed: int, started: float
) -> Audit:
    """Every measurement inside its own boundary."""
    run = boundary.run
    found = run("symmetries", lambda: find_symmetries(task))
    symmetries = found if found is not None else Symmetries((), ())
    params = {name: p.detach() for name, p in task.model.named_parameters()}
    if working_precision() != torch.float64:
        boundary.notes.append("measurements: computed in float32; what is below 1e-6 of the rest may be rounding")
    if symmetries.units:
        collapse = run("collapse", lambda: collapse_report(params, symmetries))
        charges = run("charges", lambda: check_charge_law(task, symmetries, seed=seed))
        jump = _JUMP_STEPS if level == "full" else 0
        prediction = run("forecast", lambda: forecast(task, symmetries, jump_steps=jump, seed=seed))
    else:
        collapse = charges = prediction = None
        boundary.skip("collapse, charges, forecast", "no class of hidden units was found")
    if prediction is not None and prediction.note:
        boundary.notes.append(f"forecast: {prediction.note}")
    proof = certify(prediction) if prediction is not None else None
    noise = run("noise", lambda: gradient_noise(task, seed=seed))
    metric = _metric(task, boundary)
    full, extra = measure_fully(task, symmetries, boundary, seed) if level == "full" else (None, {})
    dynamics = (full.lyapunov, full.entropy) if full is not None else (None, None)
    return Audit(
        task=_summary(task, len(training), metric),
        symmetries=symmetries,
        collapse=collapse,
        charges=charges,
        noise=noise,
        forecast=prediction,
        certificate=proof,
        advice=advise(symmetries, collapse, charges, noise, prediction, proof, *dynamics),
        skipped=(*boundary.skipped, *symmetries.skipped),
        notes=tuple(dict.fromkeys(boundary.notes)),
        training=training,
        seconds=time.perf_counter() - started,
        full=full,
        extra=extra,
    )


def _metric(task: Task, boundary: Boundary) -> dict[str, float]:
    """What the task's own metric says; empty if it has none or fails."""
    if (metric := task.metric) is None:
        return {}
    return boundary.run("metric", lambda: dict(metric(task.model))) or {}


def _summary(task: Task, epochs: int, metric: dict[str, float]) -> TaskSummary:
    return TaskSummary(
        name=task.name,
        parameters=sum(p.numel() for p in task.model.parameters()),
        lr=task.lr,
        weight_decay=task.weight_decay,
        batch_size=task.batch_size,
        momentum=task.momentum,
        optimizer=task.optimizer,
        epochs=epochs,
        metric=metric,
    )
