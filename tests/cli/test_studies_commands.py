"""Commands about papers: the page of a study, and all studies in one run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Run

from gaugefix.report.study_page import study_page
from gaugefix.studies import Claim, Evidence, Paper, Setting, Study, Tolerance, batch, registry, reproduce_all
from gaugefix.studies.runner import run_study

EVIL = '<script>alert(1)</script> & "quotes" \''
MEASURED: list[str] = []


def claims(id: str, offset: float, *, interrupt: bool = False) -> Study:
    def measure(setting: Setting) -> Evidence:
        MEASURED.append(id)
        if interrupt and MEASURED.count(id) == 1:
            raise KeyboardInterrupt
        return Evidence(np.zeros(2), np.full((len(setting.seeds), 2), offset), (f"cell {EVIL}", "b"))

    claim = Claim("one", f"A statement with {EVIL}.", measure, Tolerance(f"because {EVIL}", absolute=0.1), unit=EVIL)
    return Study(id, lambda: (claim,), missing=(EVIL,))


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies of which the second fails, and the first attempt at it is interrupted."""
    MEASURED.clear()
    known = {"2309.16932": claims("2309.16932", 0.0), "2408.15495": claims("2408.15495", 1.0, interrupt=True)}
    ids = [Paper(id, f"Title of {id}", ("A",), 2023, study="tests") for id in known]
    monkeypatch.setattr(batch, "papers", lambda: tuple(ids))
    monkeypatch.setattr(batch, "constructions", tuple)
    registry.papers()  # registers the real ones
    monkeypatch.setattr(registry, "_STUDIES", known)


@pytest.mark.long
def test_all_goes_on_where_it_was_interrupted(
    studies: None, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path))
    assert run("reproduce", "--all", *out) == 130
    assert MEASURED == ["2309.16932", "2408.15495"]
    assert run("reproduce", "--all", *out, "--html", "--strict") == 1
    assert MEASURED == ["2309.16932", "2408.15495", "2408.15495"]  # what passed is not measured again
    shown = capsys.readouterr().out
    assert "✓ 2309.16932 1 of 1" in " ".join(shown.split())
    assert "✗ 2408.15495 0 of 1" in " ".join(shown.split())
    assert "1 of 2 studies hold" in shown
    assert {p.name for p in tmp_path.glob("*.html")} == {"2309.16932.html", "2408.15495.html"}
    assert run("reproduce", "--all", *out) == 0  # without --strict


def test_all_as_json(studies: None, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    MEASURED.append("2408.15495")
    assert run("reproduce", "--all", "--json", "--seeds", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(s["id"], s["passed"], s["failed"]) for s in found] == [
        ("2309.16932", True, []),
        ("2408.15495", False, ["one"]),
    ]


def test_progress_names_study_and_claim(studies: None) -> None:
    MEASURED.append("2408.15495")
    seen: list[tuple[int, int, str]] = []
    reproduce_all(seeds=1, progress=lambda *now: seen.append(now))
    assert seen == [(0, 2, "2309.16932 one (1 of 1)"), (1, 2, "2408.15495 one (1 of 1)"), (2, 2, "")]


@pytest.mark.parametrize("args", [(), ("2309.16932", "--all")])
def test_one_paper_or_all(args: tuple[str, ...], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", *args) == 2
    assert "give one paper, or --all" in capsys.readouterr().err


class Page(HTMLParser):
    """What a browser would see: tags, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_claim_and_escapes_all_text(studies: None) -> None:
    result = run_study(claims("2309.16932", 1.0), Setting())
    page = study_page(result.to_dict(), result.claim_figures())
    seen = Page(page)
    assert not [t for t, _ in seen.tags if t in {"script", "iframe", "object"}]
    assert "<script" not in page.replace("&lt;script", "")
    for text in (f"A statement with {EVIL}.", f"because {EVIL}", f"cell {EVIL}", "does not hold", "0 of 1 claims hold"):
        assert text in seen.text
    (image,) = [a for t, a in seen.tags if t == "img"]
    assert str(image["src"]).startswith("data:image/svg+xml;base64,")
    assert "http" not in "".join(str(a.get("src") or a.get("href") or "") for _, a in seen.tags)
    assert "default-src 'none'" in page


def test_a_claim_that_crashed_has_no_figure_and_says_why(studies: None) -> None:
    def crash(setting: Setting) -> Evidence:
        raise ZeroDivisionError(EVIL)

    result = run_study(Study("2309.16932", lambda: (Claim("c", "S.", crash, Tolerance("r")),)), Setting())
    seen = Page(study_page(result.to_dict(), result.claim_figures()))
    assert f"ZeroDivisionError: {EVIL}" in seen.text
    assert "img" not in {t for t, _ in seen.tags}
