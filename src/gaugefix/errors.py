"""Exceptions and warnings of the whole package, in one place so that users can catch them."""

from __future__ import annotations


class GaugefixError(Exception):
    """Base class of every error that a user can cause and mend; the command line prints it without a traceback."""


class TaskError(GaugefixError, ValueError):
    """A task, its loss or its data is not what it must be."""


class TraceError(GaugefixError, RuntimeError):
    """The module could not be turned into a graph."""


class SymmetryError(GaugefixError, ValueError):
    """A symmetry, a mirror or a parameter dictionary does not fit."""


class MeasurementError(GaugefixError, ValueError):
    """A quantity cannot be measured on this model or with these arguments."""


class ControlError(GaugefixError, ValueError):
    """A model cannot be changed in this way: by this symmetry, constraint or with these arguments."""


class StudyError(GaugefixError, ValueError):
    """A study is unknown or cannot run here."""


class SweepError(GaugefixError, ValueError):
    """A grid of runs does not fit, or some of its runs failed."""


class ReportError(GaugefixError, OSError):
    """A report cannot be written."""


class ConvergenceWarning(UserWarning):
    """An iterative result stopped before it converged."""


class ValidityWarning(UserWarning):
    """A formula is used outside the range in which it is known to hold."""
