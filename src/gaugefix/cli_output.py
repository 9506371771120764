"""What several commands print, and how they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

FINE, FINDING, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def leave(finding: bool) -> None:
    """Exit with the code for a finding, if there is one.

    Args:
        finding: whether there is one.

    Raises:
        Exit: with code 1.
    """
    if finding:
        raise typer.Exit(FINDING)


def json_text(value: Any) -> str:
    """JSON for machines.

    Args:
        value: anything that `gaugefix.measure.records.plain` knows.

    Returns:
        Text.
    """
    from gaugefix.measure.records import plain

    return json.dumps(plain(value), indent=2, allow_nan=False)


def files(title: str, paths: list[Path]) -> Text:
    """What was written, one absolute path a line.

    Args:
        title: what they are.
        paths: the files.

    Returns:
        For a console.
    """
    text = Text(title, style="bold")
    for path in paths:
        text.append(f"\n  {path.expanduser().absolute()}", style="not bold")
    return text
