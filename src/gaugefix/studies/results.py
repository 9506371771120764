"""The result of a study: a table, a figure, a JSON file, and one answer."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gaugefix.files import write_atomically
from gaugefix.studies.framework import Comparison, Setting
from gaugefix.studies.registry import Paper, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_MAX_CELLS = 8  # rows of a claim in a table; the rest is counted


@dataclass(frozen=True, eq=False)
class StudyResult:
    """Predicted against measured for every claim of one paper.

    Attributes:
        paper: which.
        study: its claims, as they were when they ran.
        setting: seeds and size of the run.
        comparisons: one per claim, those that failed or crashed too.
        environment: versions that the numbers were made with.
        source_hash: of the study's file and of the package.
    """

    paper: Paper
    study: Study
    setting: Setting
    comparisons: tuple[Comparison, ...]
    environment: Mapping[str, str] | None = None
    source_hash: str = ""

    @property
    def passed(self) -> bool:
        """Whether every claim holds. A study without claims has not passed."""
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def seconds(self) -> float:
        """Time spent measuring."""
        return sum(c.seconds for c in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Returns:
            Keys ``schema, id, title, passed, seconds, full, seeds, missing, environment, source_hash, claims``.
        """
        return {
            "schema": 1,
            "id": self.paper.id,
            "title": self.paper.title,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "full": self.setting.full,
            "seeds": list(self.setting.seeds),
            "missing": list(self.study.missing),
            "environment": dict(self.environment or {}),
            "source_hash": self.source_hash,
            "claims": [c.to_dict() for c in self.comparisons],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def table(self) -> str:
        """A plain-text table: per claim the verdict and the statement, then predicted, measured and the bar.

        Returns:
            At most 100 columns wide.
        """
        from rich.console import Console

        console = Console(width=100, file=io.StringIO(), color_system=None, legacy_windows=False)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())

    def __rich__(self) -> RenderableType:
        from gaugefix.studies.tables import study_table

        return study_table(self, _MAX_CELLS)

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(width=110, file=io.StringIO(), record=True, force_terminal=False, color_system=None)
        console.print(self)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>')

    def figure(self, columns: int = 3) -> Figure:
        """One panel per claim that could be measured: predicted as lines, measured as points with error bars.

        Args:
            columns: panels in a row.

        Returns:
            A matplotlib figure (needs the extra ``gaugefix[examples]``); it is not registered with pyplot.
        """
        from gaugefix.studies.figures import draw_study

        return draw_study(self.comparisons, {c.name: c.draw for c in self.study.claims}, columns)

    def claim_figures(self) -> dict[str, bytes]:
        """The panel of every claim that could be measured, as a picture of its own.

        Returns:
            SVG by the name of the claim.
        """
        from gaugefix.studies.figures import draw_study

        draws, found = {c.name: c.draw for c in self.study.claims}, {}
        for comparison in self.comparisons:
            if comparison.measured.size:
                buffer = io.BytesIO()
                draw_study([comparison], draws, titles=False).savefig(buffer, format="svg")
                found[comparison.name] = buffer.getvalue()
        return found

    def save(self, out: Path | str, *, figure: bool = True) -> tuple[Path, ...]:
        """Write ``<id>.json`` and, if asked, ``<id>.svg`` and ``<id>.png`` into a folder, each whole or not at all.

        Args:
            out: the folder; made if it is missing.
            figure: whether to draw.

        Returns:
            The paths.
        """
        folder = Path(out)
        paths = [write_atomically(folder / f"{self.paper.id}.json", self.to_json() + "\n")]
        if figure and any(c.measured.size for c in self.comparisons):
            drawn = self.figure()
            for kind in ("svg", "png"):
                buffer = io.BytesIO()
                drawn.savefig(buffer, format=kind, dpi=150)
                paths.append(write_atomically(folder / f"{self.paper.id}.{kind}", buffer.getvalue()))
        return tuple(paths)


def stored_comparisons(path: Path, setting: Setting, source_hash: str) -> dict[str, Comparison]:
    """Claims of an earlier run that need not run again: they passed, with the same setting and code.

    Args:
        path: the JSON file of the earlier run; may be missing or damaged.
        setting: of this run.
        source_hash: of the code now.

    Returns:
        Comparisons by name of the claim; empty if nothing can be used.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        same = (
            data["schema"] == 1
            and data["source_hash"] == source_hash
            and Setting(tuple(data["seeds"]), data["full"]) == setting
        )
        found = [Comparison.from_dict(c) for c in data["claims"]] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {c.name: c for c in found if c.passed and np.isfinite(c.measured).all()}
