"""The tables in a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from gaugefix.audit import Audit


def text_of(audit: Audit, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(audit)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_it_fits_and_ends_with_what_to_do(sample: Audit) -> None:
    text = text_of(sample)
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("What to do next") > text.index("Forecast at weight decay")
    assert "→ Use 11 units here" in text


def test_names_are_not_read_as_markup(sample: Audit) -> None:
    named = replace(sample, task=replace(sample.task, name="[bold red]x[/] [/nothing]"), skipped=("[/oops]: a",))
    text = text_of(named, 120)
    assert "[bold red]x[/] [/nothing]" in text
    assert "[/oops]: a" in text


def test_what_was_not_measured_is_said(sample: Audit) -> None:
    text = text_of(sample, 120)
    assert "Not measured" in text
    assert "completeness: level quick" in text
    assert "forecast: slow convergence" in text


def test_a_healthy_network_has_nothing_to_do(sample: Audit) -> None:
    text = text_of(replace(sample, advice=(), collapse=None, forecast=None, skipped=(), notes=()))
    assert "Nothing to do: every unit does work of its own." in text
    assert "Not measured" not in text
