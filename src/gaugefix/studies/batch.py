"""All studies, one after the other, with one line for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaugefix.studies.registry import constructions, papers
from gaugefix.studies.results import StudyResult
from gaugefix.studies.runner import Progress, reproduce


@dataclass(frozen=True)
class Summary:
    """One study in one line.

    Attributes:
        id: arXiv identifier.
        title: of the paper.
        passed: whether every claim holds.
        held: number of claims that hold.
        claims: number of claims.
        failed: names of those that do not.
        seconds: spent measuring, in whatever run it was.
    """

    id: str
    title: str
    passed: bool
    held: int
    claims: int
    failed: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def reproduce_all(
    *,
    full: bool = False,
    seeds: int = 3,
    out: Path | str | None = None,
    progress: Progress | None = None,
    done: Callable[[StudyResult], object] | None = None,
) -> tuple[Summary, ...]:
    """Run every study. One that fails does not stop the others.

    Args:
        full: as in `reproduce`.
        seeds: as in `reproduce`.
        out: as in `reproduce`; a second run takes over every claim that passed, so that one that was interrupted goes
            on where it stopped.
        progress: called with (studies done, studies in all, what is being measured), at the end with "".
        done: called with the result of every study, to keep it: only the summaries are returned.

    Returns:
        One summary per study, papers by date and then the constructions of this package.

    Raises:
        StudyError: as `reproduce`, before anything has run.
        ReportError: if nothing can be written to ``out``.
    """  # noqa: DOC502
    studied = [p for p in (*papers(), *constructions()) if p.study]
    found = []
    for i, paper in enumerate(studied):

        def follow(claims: int, total: int, name: str, i: int = i, id: str = paper.id) -> None:
            if progress is not None and name:
                progress(i, len(studied), f"{id} {name} ({claims + 1} of {total})")

        result = reproduce(paper.id, full=full, seeds=seeds, out=out, progress=follow)
        if done is not None:
            done(result)
        failed = tuple(c.name for c in result.comparisons if not c.passed)
        count = len(result.comparisons)
        found.append(Summary(paper.id, paper.title, result.passed, count - len(failed), count, failed, result.seconds))
    if progress is not None:
        progress(len(studied), len(studied), "")
    return tuple(found)
