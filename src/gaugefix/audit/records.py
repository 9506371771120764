"""What an audit is: frozen records that print themselves, and write themselves as JSON and HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaugefix.advice import Advice
from gaugefix.audit.events import RunEvents
from gaugefix.audit.full import FullMeasurements
from gaugefix.files import write_atomically
from gaugefix.forecast import Certificate, Forecast
from gaugefix.measure import ChargeReport, CollapseReport, GradientNoise, Record
from gaugefix.symmetry import Symmetries

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Version of the layout of `Audit.to_dict`; the major number grows when a reader has to change.
SCHEMA_VERSION = "1.3"


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
        full: what only level "full" measures, else None.
        extra: further numbers of level "full", by name.
        run: what a monitor saw during training, if its log was given.
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
    full: FullMeasurements | None
    extra: dict[str, Any]
    run: RunEvents | None = None

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
