"""Run measurements one by one: what fails is recorded with its reason, and the others go on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from gaugefix.errors import ConvergenceWarning, GaugefixError, ValidityWarning

if TYPE_CHECKING:
    from gaugefix.report.progress import Stages

T = TypeVar("T")


class Boundary:
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
