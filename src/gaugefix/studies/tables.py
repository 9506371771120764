"""A study as text: per claim the verdict, the statement and the bar; per cell predicted, measured and how far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gaugefix.studies.framework import Comparison

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gaugefix.studies.results import StudyResult

_COLUMNS = {"cell": 18, "predicted": 11, "measured": 18, "deviation": 9, "bar": 7}


def study_table(result: StudyResult, max_cells: int) -> Group:
    """Title, the claims one below the other, one line of verdict.

    Args:
        result: what to show.
        max_cells: rows per claim; the ones nearest to their bar (or beyond) are shown.

    Returns:
        A rich renderable.
    """
    title = Text.assemble((result.paper.title, "bold"), f"  arXiv {result.paper.id}\n")
    claims = [part for comparison in result.comparisons for part in _claim(comparison, max_cells)]
    return Group(title, *claims, _verdict(result))


def _claim(comparison: Comparison, max_cells: int) -> list[RenderableType]:
    """Statement, tolerance with its reason, then one row per cell or the reason why there is none."""
    mark = ("✓ ", "bold green") if comparison.passed else ("✗ ", "bold red")
    head = Padding(Text.assemble(mark, (comparison.statement, "bold")), (0, 0, 0, 0))
    tolerance = comparison.tolerance
    parts: list[RenderableType] = [
        head,
        Padding(Text(f"tolerance {tolerance}: {tolerance.reason}", "dim"), (0, 0, 0, 2)),
    ]
    if comparison.error is not None:
        parts.append(Padding(Text(f"could not be measured: {comparison.error}", "red"), (0, 0, 0, 2)))
    elif comparison.measured.size:
        parts.append(Padding(_cells(comparison, max_cells), (0, 0, 0, 2)))
    return [*parts, Text()]


def _cells(comparison: Comparison, max_cells: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, width in _COLUMNS.items():
        head = comparison.unit if name == "cell" else name
        table.add_column(head, min_width=width, justify="left" if name == "cell" else "right", overflow="fold")
    table.add_column("")
    shown = cells_to_show(comparison, max_cells)
    deviation, bar, passed = comparison.deviation, comparison.bar, comparison.cell_passed
    for i in shown:
        table.add_row(
            comparison.cells[i],
            number(comparison.predicted[:, i].mean()),
            measured(comparison, i),
            f"{deviation[i]:.1e}",
            f"{bar[i]:.1e}",
            Text() if passed[i] else Text("✗", "bold red"),
        )
    if hidden := len(comparison.cells) - len(shown):
        table.add_row(Text(f"and {hidden} more, all nearer", "dim"))
    return table


def _verdict(result: StudyResult) -> Text:
    held = sum(c.passed for c in result.comparisons)
    seeds, size = len(result.setting.seeds), "full" if result.setting.full else "quick"
    text = Text.assemble(
        (f"{held} of {len(result.comparisons)} claims hold", "bold green" if result.passed else "bold red"),
        f" over {seeds} {'seed' if seeds == 1 else 'seeds'} ({size} setting, {result.seconds:.1f} s).",
    )
    for claim in result.study.missing:
        text.append(f"\nNot checked yet: {claim}.", "yellow")
    return text


def cells_to_show(comparison: Comparison, max_cells: int) -> list[int]:
    """Indices of the cells in order; of too many, those with the largest deviation relative to their bar."""
    if len(comparison.cells) <= max_cells:
        return list(range(len(comparison.cells)))
    deviation, bar = comparison.deviation, comparison.bar
    strain = np.where(np.isnan(deviation), np.inf, deviation / np.maximum(bar, np.finfo(float).tiny))
    return sorted(np.argsort(-strain, kind="stable")[:max_cells].tolist())


def number(value: float) -> str:
    """Five significant digits, integers without a point."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.5g}"


def measured(comparison: Comparison, cell: int) -> str:
    """Mean ± standard error over the seeds; the error is left out when it is zero to rounding."""
    mean, stderr = comparison.mean[cell], comparison.stderr[cell]
    return f"{number(mean)} ± {stderr:.1g}" if stderr > 1e-13 * max(1.0, abs(mean)) else number(mean)
