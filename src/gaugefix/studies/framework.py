"""What a study is made of: claims, what they measured, and whether it is what was predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
Relation = Literal["=", ">=", "<="]
Array = Float[np.ndarray, "seeds cells"]
_SIGNS: dict[Relation, str] = {"=": "±", ">=": "−", "<=": "+"}


@dataclass(frozen=True)
class Setting:
    """How large a run is. The same seeds and sizes for every claim of a study; nothing is tuned per seed.

    Attributes:
        seeds: every claim is measured once for each.
        full: the sizes of the paper instead of the quick ones (≤ 60 s for a study on two cores).
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    full: bool = False

    def choose(self, quick: T, full: T) -> T:
        """The value for the size of this run."""
        return full if self.full else quick


@dataclass(frozen=True)
class Tolerance:
    """How far a measurement may be from its prediction, and why so far.

    The bar of a cell is ``absolute + relative·|predicted|``. With ``relation`` "=" the deviation
    |measured − predicted| must stay below it; with ">=" (an inequality claim) only a measurement that is *below*
    the prediction deviates, with "<=" only one above.

    Attributes:
        reason: one clause; it is printed beside the number.
        absolute: in the unit of the claim.
        relative: as a fraction of the prediction.
        relation: what is claimed.
        per_seed: whether every seed must hold on its own (the default), or the mean over the seeds. Use the mean
            only where single runs are random by nature.

    Raises:
        ValueError: if a bar is negative or not finite, or there is no reason.
    """

    reason: str
    absolute: float = 0.0
    relative: float = 0.0
    relation: Relation = "="
    per_seed: bool = True

    def __post_init__(self) -> None:
        """A tolerance without a reason is a number that was made to fit."""
        if not self.reason.strip():
            raise ValueError("Tolerance.reason must say why the measurement may deviate this much.")
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Tolerance.{name} must be a number in [0, inf), got {value!r}.")

    def __str__(self) -> str:
        """``± 1e-05``, ``± 2%``, ``− 0 (mean)``."""
        parts = [f"{self.absolute:g}"] if self.absolute or not self.relative else []
        parts += [f"{self.relative:.3g}".rstrip() if self.relative < 1e-4 else f"{100 * self.relative:g}%"] * bool(
            self.relative
        )
        return f"{_SIGNS[self.relation]} {' + '.join(parts)}{'' if self.per_seed else ' (mean)'}"

    def bar(self, predicted: np.ndarray) -> np.ndarray:
        """``absolute + relative·|predicted|``, in the shape of the prediction."""
        return np.asarray(self.absolute + self.relative * np.abs(predicted))

    def deviation(self, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """How much is held against the bar: zero on the allowed side of an inequality, NaN if one is not finite."""
        gap = np.where(np.isfinite(measured) & np.isfinite(predicted), measured - predicted, np.nan)
        if self.relation == "=":
            return np.asarray(np.abs(gap))
        wrong_way = -gap if self.relation == ">=" else gap
        return np.where(np.isnan(gap), np.nan, np.maximum(wrong_way, 0.0))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the measuring function of a claim returns.

    Attributes:
        predicted: from theory, ``(cells,)`` or ``(seeds, cells)`` when it depends on the data of the seed.
        measured: ``(seeds, cells)``.
        cells: a short label for each column.
        curves: further arrays for the figure (kept in the JSON file, so keep them small).
    """

    predicted: np.ndarray
    measured: np.ndarray
    cells: tuple[str, ...]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)


Draw = Callable[["Axes", "Comparison"], None]


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a paper. Nothing runs until the study does.

    Attributes:
        name: short, unique within the study; a lower-case word or a few with hyphens.
        statement: one sentence.
        measure: does the experiment for all seeds at once and predicts it.
        tolerance: the bar and its reason.
        draw: paints the comparison into one axes; by default predicted against measured, cell by cell.
        unit: of the numbers, for the table and the axis.
    """

    name: str
    statement: str
    measure: Callable[[Setting], Evidence]
    tolerance: Tolerance
    draw: Draw | None = None
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A claim after it has run: predicted against measured.

    Attributes:
        name: of the claim.
        statement: of the claim.
        tolerance: of the claim.
        unit: of the numbers.
        cells: labels of the columns.
        predicted: ``(seeds, cells)``.
        measured: ``(seeds, cells)``.
        curves: further arrays for the figure.
        seconds: wall-clock time.
        error: why the claim could not be measured; None if it could.
    """

    name: str
    statement: str
    tolerance: Tolerance
    unit: str = ""
    cells: tuple[str, ...] = ()
    predicted: Array = field(default_factory=lambda: np.empty((0, 0)))
    measured: Array = field(default_factory=lambda: np.empty((0, 0)))
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def n_seeds(self) -> int:
        """Number of independent repetitions."""
        return int(self.measured.shape[0])

    @property
    def mean(self) -> Float[np.ndarray, " cells"]:
        """Measured mean over the seeds."""
        return np.asarray(self.measured.mean(axis=0)) if self.n_seeds else np.empty(0)

    @property
    def stderr(self) -> Float[np.ndarray, " cells"]:
        """Standard error of the mean of measured − predicted, std/√seeds, unbiased variance; NaN for one seed.

        Where the prediction is the same for all seeds this is the standard error of `mean`; where every seed has
        data of its own, what differs because the data differ is left out.
        """
        if self.n_seeds < 2:
            return np.full(self.measured.shape[1:], np.nan)
        return np.asarray((self.measured - self.predicted).std(axis=0, ddof=1) / math.sqrt(self.n_seeds))

    @property
    def deviation(self) -> Float[np.ndarray, " cells"]:
        """What is held against `bar` in each cell, of the worst seed or of the mean over the seeds."""
        if not self.n_seeds:
            return np.empty(0)
        return self._worst_seed()[0]

    @property
    def bar(self) -> Float[np.ndarray, " cells"]:
        """The tolerance in each cell, for the seed that `deviation` is about."""
        if not self.n_seeds:
            return np.empty(0)
        return self._worst_seed()[1]

    def _worst_seed(self) -> tuple[np.ndarray, np.ndarray]:
        predicted, measured = self.predicted, self.measured
        if not self.tolerance.per_seed:
            predicted, measured = predicted.mean(axis=0, keepdims=True), measured.mean(axis=0, keepdims=True)
        deviation, bar = self.tolerance.deviation(predicted, measured), self.tolerance.bar(predicted)
        excess = np.where(np.isnan(deviation - bar), np.inf, deviation - bar)
        worst, cell = excess.argmax(axis=0), np.arange(excess.shape[1])
        return deviation[worst, cell], bar[worst, cell]

    @property
    def cell_passed(self) -> np.ndarray:
        """Whether each cell is within its bar, ``(cells,)`` bool; NaN is not."""
        return np.asarray(self.deviation <= self.bar)

    @property
    def passed(self) -> bool:
        """Whether the claim was measured and every cell is within its bar."""
        return self.error is None and self.measured.size > 0 and bool(self.cell_passed.all())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become None.

        Returns:
            The attributes and ``passed, n_seeds, mean, stderr, deviation, bar``.
        """
        return {
            "name": self.name,
            "statement": self.statement,
            "passed": self.passed,
            "error": self.error,
            "unit": self.unit,
            "seconds": round(self.seconds, 3),
            "n_seeds": self.n_seeds,
            "cells": list(self.cells),
            "mean": _plain(self.mean),
            "stderr": _plain(self.stderr),
            "deviation": _plain(self.deviation),
            "bar": _plain(self.bar),
            "tolerance": vars(self.tolerance),
            "predicted": _plain(self.predicted),
            "measured": _plain(self.measured),
            "curves": {name: _plain(values) for name, values in self.curves.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_dict`; what can be computed is computed anew."""
        return cls(
            name=data["name"],
            statement=data["statement"],
            tolerance=Tolerance(**data["tolerance"]),
            unit=data["unit"],
            cells=tuple(data["cells"]),
            predicted=_array(data["predicted"]),
            measured=_array(data["measured"]),
            curves={name: _array(values) for name, values in data["curves"].items()},
            seconds=data["seconds"],
            error=data["error"],
        )


def compare(claim: Claim, evidence: Evidence, seconds: float = 0.0, *, n_seeds: int | None = None) -> Comparison:
    """Put the evidence of a claim into shape and check that it fits together.

    Args:
        claim: what was claimed.
        evidence: what its measuring function returned.
        seconds: how long that took.
        n_seeds: rows that the measurement must have; not checked if None.

    Returns:
        The comparison.

    Raises:
        ValueError: if the shapes do not fit: a broadcast that nobody meant would hide a failure.
    """
    measured = np.atleast_2d(np.asarray(evidence.measured, dtype=float))
    predicted = np.asarray(evidence.predicted, dtype=float)
    if measured.ndim != 2 or measured.shape[1] != len(evidence.cells) or not measured.size:
        raise ValueError(
            f"Claim {claim.name!r}: measured must be (seeds, {len(evidence.cells)}) with one label per cell, "
            f"got {measured.shape}."
        )
    if n_seeds is not None and len(measured) != n_seeds:
        raise ValueError(f"Claim {claim.name!r}: measured has {len(measured)} rows for {n_seeds} seeds.")
    if predicted.shape not in {measured.shape, measured.shape[1:]}:
        raise ValueError(
            f"Claim {claim.name!r}: predicted must be {measured.shape} or {measured.shape[1:]}, got {predicted.shape}."
        )
    return Comparison(
        name=claim.name,
        statement=claim.statement,
        tolerance=claim.tolerance,
        unit=claim.unit,
        cells=evidence.cells,
        predicted=np.broadcast_to(predicted, measured.shape).copy(),
        measured=measured,
        curves={name: np.asarray(values, dtype=float) for name, values in evidence.curves.items()},
        seconds=seconds,
    )


def labels(name: str, values: Iterable[float]) -> tuple[str, ...]:
    """Labels of cells, ``("λ = 0.1", "λ = 0.2")``."""
    return tuple(f"{name} = {value:g}" for value in values)


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists of floats; NaN and infinities have no place in JSON and become None."""
    return [_plain(v) for v in values] if values.ndim > 1 else [float(v) if np.isfinite(v) else None for v in values]


def _array(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=float) if values else np.empty((0, 0))
