"""audit: find, measure and forecast one task, and say what to do about it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gaugefix.advice import Advice, advise
from gaugefix.errors import ConvergenceWarning, GaugefixError, MeasurementError, ValidityWarning
from gaugefix.files import write_atomically
from gaugefix.forecast import Certificate, Forecast, certify, forecast
from gaugefix.measure import (
    ChargeReport,
    CollapseReport,
    GradientNoise,
    Record,
    check_charge_law,
    collapse_report,
    gradient_noise,
    lambda_min,
)
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.task import Task
from gaugefix.threads import is_small, one_thread
from gaugefix.training import train

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gaugefix.report.progress import Stages

#: Version of the layout of `Audit.to_dict`; the major number grows when a reader has to change.
SCHEMA_VERSION = "1.1"

#: full-batch steps for each weight decay that level "full" tries to find where a deep network dies
_JUMP_STEPS = 600

T = TypeVar("T")


@dataclass(frozen=True)
class TaskSummary(Record):
    """The settings a report is about.

    Attributes:
        name: of the task.
        parameters: number of scalars of the model.
        lr: learning rate.
        weight_decay: PyTorch's λ.
        batch_size: samples per step.
        momentum: heavy-ball momentum.
        optimizer: "sgd", "adam" or "adamw".
        epochs: passes trained by the audit; 0 if the model was measured as it came.
        metric: what the task's own metric says at the end, for example ``{"test accuracy": 0.97}``.
    """

    name: str
    parameters: int
    lr: float
    weight_decay: float
    batch_size: int
    momentum: float
    optimizer: str
    epochs: int
    metric: dict[str, float]


@dataclass(frozen=True, eq=False)
class Audit(Record):
    """Everything one audit found.

    Attributes:
        task: the settings.
        symmetries: of the model, on the inputs of the first batch; empty if the search failed.
        collapse: dead and duplicate units and ranks; None if it was skipped, as for the next ones.
        charges: balance of every unit and the check of its one-step law.
        noise: moments of the per-sample gradients.
        forecast: what training will do next with every class of units.
        certificate: whether a wider network would do better.
        advice: diagnosis, evidence and next step, the most urgent first.
        skipped: what was not measured, and why.
        notes: warnings of the measurements: results to read with care.
        training: mean loss of every pass of the audit's own training.
        seconds: wall-clock time of the audit.
        extra: further numbers of level "full", by name.
    """

    task: TaskSummary
    symmetries: Symmetries
    collapse: CollapseReport | None
    charges: ChargeReport | None
    noise: GradientNoise | None
    forecast: Forecast | None
    certificate: Certificate | None
    advice: tuple[Advice, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    training: tuple[float, ...]
    seconds: float
    extra: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the layout is ``gaugefix/report/audit.schema.json``.

        Returns:
            One key per field, and ``schema_version`` and ``gaugefix``, the version that wrote it. Numbers that
            are not finite are None.
        """
        from gaugefix import __version__
        from gaugefix.measure.records import plain

        found = plain(self.symmetries.to_dict())
        for entry, symmetry in zip(found["symmetries"], self.symmetries, strict=True):
            entry["class"] = symmetry.units.name if symmetry.units else None
        head = {"schema_version": SCHEMA_VERSION, "gaugefix": __version__}
        return {**head, **super().to_dict(), "symmetries": found}

    def to_json(self, path: str | Path | None = None) -> str:
        """The audit as text for machines.

        Args:
            path: also write it there, whole or not at all.

        Returns:
            JSON without NaN or infinity.

        Raises:
            ReportError: if the file cannot be written.
        """  # noqa: DOC502
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            write_atomically(path, text)
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """The audit as one page that needs no network.

        Args:
            path: also write it there, whole or not at all.

        Returns:
            HTML, about 5 MB because the plotting library is inside.

        Raises:
            ReportError: if the file cannot be written.
        """  # noqa: DOC502
        from gaugefix.report import html_page

        text = html_page(self.to_dict())
        if path is not None:
            write_atomically(path, text)
        return text

    def __rich__(self) -> RenderableType:
        """The audit as tables for a terminal."""
        from gaugefix.report import console_report

        return console_report(self.to_dict())


def audit(task: Task, *, level: Literal["quick", "full"] = "quick", progress: bool = True, seed: int = 0) -> Audit:
    """Find the symmetries of a task's model, measure what they did to it, forecast what they will do.

    The model is trained first for ``task.epochs`` passes (in place); with ``epochs=0`` it is measured as it is. A
    measurement that fails is reported in `Audit.skipped` with its reason and does not stop the others. Small networks
    run on one thread, see `gaugefix.threads.one_thread`; for the others ``OMP_NUM_THREADS`` decides.

    Args:
        task: what to audit.
        level: "full" adds a count of the flat directions, to see whether the search missed any (a dense Jacobian, up to
            6000 parameters), the lowest curvature of the data loss, and with several hidden layers the weight decay at
            which the network dies at a jump.
        progress: show progress bars on standard error.
        seed: seed of the data order and of every random choice of the measurements.

    Returns:
        The audit; print it with rich, or write it with `Audit.to_html` and `Audit.to_json`.

    Raises:
        MeasurementError: if ``level`` is unknown.
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
    task.check()
    with one_thread() if is_small(task) else nullcontext(), Stages(shown=progress) as stages:
        training = tuple(_train(task, stages, seed)) if task.epochs else ()
        task.check()
        boundary = _Boundary(stages)
        return _measure(task, training, boundary, level, seed, started)


def _train(task: Task, stages: Stages, seed: int) -> list[float]:
    """Train with a bar that shows the loss."""
    with stages.counted("Training", task.epochs) as advance:
        return train(task, seed=seed, callback=lambda _, loss: advance(f"loss {loss:.4f}"))


def _measure(
    task: Task, training: tuple[float, ...], boundary: _Boundary, level: str, seed: int, started: float
) -> Audit:
    """Every measurement inside its own boundary."""
    run = boundary.run
    found = run("symmetries", lambda: find_symmetries(task))
    symmetries = found if found is not None else Symmetries((), ())
    params = {name: p.detach() for name, p in task.model.named_parameters()}
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
    extra = _full(task, symmetries, boundary, seed) if level == "full" else {}
    return Audit(
        task=_summary(task, len(training), metric),
        symmetries=symmetries,
        collapse=collapse,
        charges=charges,
        noise=noise,
        forecast=prediction,
        certificate=proof,
        advice=advise(symmetries, collapse, charges, noise, prediction, proof),
        skipped=(*boundary.skipped, *symmetries.skipped),
        notes=tuple(dict.fromkeys(boundary.notes)),
        training=training,
        seconds=time.perf_counter() - started,
        extra=extra,
    )


def _metric(task: Task, boundary: _Boundary) -> dict[str, float]:
    """What the task's own metric says; empty if it has none or fails."""
    if (metric := task.metric) is None:
        return {}
    return boundary.run("metric", lambda: dict(metric(task.model))) or {}


def _full(task: Task, symmetries: Symmetries, boundary: _Boundary, seed: int) -> dict[str, Any]:
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
    boundary.skip("Lyapunov exponents", "not in this release")
    return extra


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


class _Boundary:
    """Runs measurements; one that fails is recorded, its warnings are kept, and the audit goes on."""

    def __init__(self, stages: Stages) -> None:
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self._stages = stages

    def skip(self, what: str, reason: str) -> None:
        """Record that something was not measured."""
        self.skipped.append(f"{what}: {reason}")

    def run(self, what: str, function: Callable[[], T]) -> T | None:
        """The function's result, or None and an entry in `skipped`."""
        with self._stages.step(f"Measuring {what}"), warnings.catch_warnings(record=True) as caught:
            for ours in (ConvergenceWarning, ValidityWarning):  # the others obey the filters of the caller
                warnings.simplefilter("always", ours)
            try:
                result = function()
            except GaugefixError as error:
                self.skip(what, str(error))
                result = None
            except Exception as error:  # a report with one gap is worth more than none
                self.skip(what, f"{type(error).__name__}: {error}")
                result = None
        for warning in caught:
            if issubclass(warning.category, ConvergenceWarning | ValidityWarning):
                self.notes.append(f"{what}: {warning.message}")
            else:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
        return result
