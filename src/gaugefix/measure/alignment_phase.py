"""What a layer's alignment says: the power laws between its spectra, and which of the six relations hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gaugefix.measure.alignment import RELATIONS, AlignmentReport
from gaugefix.measure.records import Record

_SIGNIFICANT_MODE = 1e-3
_FEW_MODES = 4


@dataclass(frozen=True)
class PowerLaws(Record):
    """Exponents of h_a ~ z^p and g_b ~ z^q over the singular modes of a layer.

    Attributes:
        p: of the input features.
        q: of the output gradients.
        r2_p: fraction of the variance of log h that the line explains.
        r2_q: of log g.
        n_modes: modes with z above 1e-3 of the largest.
        valid: whether there were at least four of them.
    """

    p: float
    q: float
    r2_p: float
    r2_q: float
    n_modes: int
    valid: bool


def power_law_exponents(report: AlignmentReport) -> PowerLaws:
    """Exponents p and q of a layer by least squares of log h and log g on log z.

    Args:
        report: of the layer.

    Returns:
        The exponents; nan with fewer than four significant modes.

    Source: arXiv 2410.03006, result 3.
    """
    keep = (report.z > _SIGNIFICANT_MODE * report.z.max(initial=0.0)) & (report.h > 0) & (report.g > 0)
    if keep.sum() < _FEW_MODES:
        return PowerLaws(math.nan, math.nan, math.nan, math.nan, int(keep.sum()), False)
    z = np.log(report.z[keep])
    (p, r2_p), (q, r2_q) = (_line(z, np.log(values[keep])) for values in (report.h, report.g))
    return PowerLaws(p, q, r2_p, r2_q, int(keep.sum()), True)


def phase(report: AlignmentReport, tol: float = 0.3) -> tuple[str, ...]:
    """Which of the six relations hold: one of 2⁶ phases.

    Args:
        report: of the layer.
        tol: a relation holds if its correlation is at least 1 − tol and three standard deviations above the null.

    Returns:
        Their names, out of ``rga_out, rwa_out, gwa_out, rga_in, rwa_in, gwa_in``.

    Source: arXiv 2410.03006, results 1 and 2.
    """
    return tuple(
        name
        for name in RELATIONS
        if getattr(report, name) >= max(1 - tol, report.null[name] + 3 * report.null_std[name])
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and explained variance."""
    slope, intercept = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (math.nan, math.nan)
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - slope * x - intercept) ** 2).sum())
    return float(slope), 1 - rest / total if total > 0 else 1.0
