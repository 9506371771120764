"""Progress on standard error: one bar per stage, silent when it is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Stages:
    """Bars for the stages of an audit.

    Args:
        shown: whether anything is printed.
        console: where; by default standard error, so that standard output stays clean for pipes.
    """

    def __init__(self, *, shown: bool = True, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console or Console(stderr=True),
            disable=not shown,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.tasks:
            self._progress.stop()

    def _add(self, name: str, total: int | None) -> TaskID:
        """A new bar; the first one starts the display, so that an early error is not preceded by an empty one."""
        self._progress.start()
        return self._progress.add_task(name, total=total, note="")

    @contextmanager
    def counted(self, name: str, total: int) -> Iterator[Callable[[str], None]]:
        """A bar with ``total`` steps.

        Args:
            name: what is going on.
            total: number of steps.

        Yields:
            A function that completes one step and shows a note next to the bar.
        """
        bar = self._add(name, total)
        yield lambda note: self._progress.update(bar, advance=1, note=note)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A stage of one step.

        Args:
            name: what is going on.

        Yields:
            Nothing.
        """
        bar = self._add(name, 1)
        yield
        self._progress.update(bar, completed=1)

    def follow(self, name: str) -> Callable[[int, int, str], None]:
        """A bar that somebody else moves.

        Args:
            name: what is going on.

        Returns:
            A function of (steps done, steps in all, note).
        """
        bars: list[TaskID] = []

        def move(done: int, total: int, note: str) -> None:
            if not bars:
                bars.append(self._add(name, total))
            self._progress.update(bars[0], completed=done, total=total, note=note)

        return move
