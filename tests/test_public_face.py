"""The public face: few names, light to import, silent, and one meaning for each name."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gaugefix

#: what a light import must not load: extras, and core dependencies that only some functions need
HEAVY = ("sklearn", "matplotlib", "plotly", "scipy", "jinja2", "typer", "transformers", "lightning", "pandas")


def names() -> list[str]:
    found = {n: getattr(gaugefix, n) for n in dir(gaugefix) if not n.startswith("_")}
    typing = {"TYPE_CHECKING", "Any"}
    return [n for n, v in found.items() if not inspect.ismodule(v) and n not in typing]


def imported(code: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(gaugefix.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )


def test_at_most_25_names() -> None:
    assert len(names()) <= 25


def test_late_names_are_there() -> None:
    code = "import gaugefix, sys; assert 'gaugefix.studies' not in sys.modules; gaugefix.papers(); gaugefix.Monitor"
    imported(code)
    with pytest.raises(AttributeError, match="has no attribute 'Moniter'"):
        gaugefix.Moniter  # noqa: B018


def test_every_name_says_what_it_is() -> None:
    assert [n for n in names() if not inspect.getdoc(getattr(gaugefix, n))] == []


def test_the_import_is_silent_and_loads_no_extra() -> None:
    code = f"import sys, json, torch; before = set(sys.modules); import gaugefix; heavy = {HEAVY!r}; "
    run = imported(code + "print(json.dumps([m for m in heavy if m in sys.modules and m not in before]))")
    assert json.loads(run.stdout) == []  # the only thing printed
    assert run.stderr == ""


@pytest.mark.parametrize("room", ["audit", "forecast"])
@pytest.mark.long
def test_a_verb_wins_over_its_room(room: str) -> None:
    """Whatever is imported first, the package has the function and from-imports reach the room."""
    code = f"""
import importlib
from gaugefix.{room} import {room} as verb
import gaugefix
module = importlib.import_module("gaugefix.{room}")
assert gaugefix.{room} is verb is module.{room} and callable(verb)
"""
    imported(code)
