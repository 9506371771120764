"""A study as a rich table: per claim the verdict and the statement, per cell predicted, measured and the bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gaugefix.studies.framework import Comparison

if TYPE_CHECKING:
    from gaugefix.studies.results import StudyResult


def study_table(result: StudyResult, max_cells: int) -> Group:
    """Title, one table, one line of verdict.

    Args:
        result: what to show.
        max_cells: rows per claim; the ones nearest to their bar (or beyond) are shown.

    Returns:
        A rich renderable.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    table.add_column("claim", overflow="fold", ratio=1)
    for name in ("predicted", "measured", "deviation", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", justify="center", no_wrap=True)
    for comparison in result.comparisons:
        _add_claim(table, comparison, max_cells)
    title = Text.assemble((result.paper.title, "bold"), f"  arXiv {result.paper.id}")
    return Group(title, Text(), table, _verdict(result))


def _add_claim(table: Table, comparison: Comparison, max_cells: int) -> None:
    """The statement, then one row per cell."""
    mark = Text("✓", "green") if comparison.passed else Text("✗", "bold red")
    table.add_row(Text(comparison.statement, "bold"), "", "", "", str(comparison.tolerance), mark)
    if comparison.error is not None:
        table.add_row(Text(f"could not be measured: {comparison.error}", "red"), "", "", "", "", "")
    shown = cells_to_show(comparison, max_cells)
    for i in shown:
        ok = bool(comparison.cell_passed[i])
        table.add_row(
            f"  {comparison.cells[i]}",
            number(comparison.predicted[:, i].mean()),
            measured(comparison, i),
            f"{comparison.deviation[i]:.1e}",
            f"{comparison.bar[i]:.1e}",
            Text() if ok else Text("✗", "bold red"),
        )
    hidden = len(comparison.cells) - len(shown)
    if hidden:
        table.add_row(Text(f"  and {hidden} cells nearer to their predictions", "dim"), "", "", "", "", "")
    table.add_section()


def _verdict(result: StudyResult) -> Text:
    passed = sum(c.passed for c in result.comparisons)
    counted = f"{passed} of {len(result.comparisons)} claims hold"
    seeds, size = len(result.setting.seeds), "full" if result.setting.full else "quick"
    text = Text.assemble(
        (counted, "bold green" if result.passed else "bold red"),
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
    """Mean ± standard error over the seeds; the error is left out when all seeds agree exactly."""
    mean, stderr = number(comparison.mean[cell]), comparison.stderr[cell]
    return f"{mean} ± {stderr:.1g}" if stderr > 0 else mean
