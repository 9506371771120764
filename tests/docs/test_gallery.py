"""The documentation is generated from the studies; a full build is ``make docs``."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from gaugefix.studies import constructions, papers

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def scripts(monkeypatch):
    pytest.importorskip("sphinx_gallery")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module("gallery_scripts")


def test_every_study_has_a_page_that_is_a_program(scripts, tmp_path):
    (tmp_path / "plot_of_a_study_that_is_gone.py").write_text("")
    scripts.write(tmp_path)
    studied = [p for p in (*papers(), *constructions()) if p.study]
    assert len(list(tmp_path.glob("plot_*.py"))) == len(studied)
    for paper in studied:
        text = (tmp_path / f"plot_{paper.study.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        headline, rule = ast.get_docstring(ast.parse(text)).splitlines()[:2]
        assert set(rule) == {"="}
        assert len(rule) == len(headline)
        assert paper.id in text
        assert all(f"arxiv.org/abs/{id}" in text for id in paper.rests_on or (paper.id,))
        assert str(DOCS.parent) not in text  # no path of the machine that builds


def test_scripts_that_did_not_change_are_left_alone(scripts, tmp_path):
    scripts.write(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    scripts.write(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_bars_are_escaped_outside_literals_only(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    docstrings = importlib.import_module("docstrings")
    lines = ["|x| and ``|y|``", ">>> a | b", "text::", "", "    |z|", "after |w|"]
    docstrings.escape_bars(None, "function", "f", None, None, lines)
    assert lines == [r"\|x\| and ``|y|``", ">>> a | b", "text::", "", "    |z|", r"after \|w\|"]
