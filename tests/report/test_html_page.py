"""The page without a browser: complete, escaped, self-contained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gaugefix.audit import Audit
from gaugefix.report import html_page


class Outline(HTMLParser):
    """Tags, ids, links, text and JSON of a page, as a browser would parse them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.json, self.text, self._inside = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "json" if dict(attrs).get("id") == "figures" else tag if tag in {"script", "style"} else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in {"script", "style"} else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "json":
            self.json += data
        elif not self._inside:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope="module")
def page(sample: Audit) -> str:
    return sample.to_html()


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_hostile_names_stay_text(outline: Outline) -> None:
    assert len(outline.all("script")) == 3  # the data, the plotting library, ours
    assert not outline.all("img")
    assert not any(name.startswith("on") for _, attrs in outline.tags for name in attrs)
    assert "<script>alert(1)</script>" in outline.text
    assert "</script><img src=x onerror=alert(2)>" in outline.text


def test_names_in_plots_are_escaped_twice(outline: Outline) -> None:
    labels = json.loads(outline.json)["forecast"]["layout"]["yaxis"]["ticktext"]
    assert labels == ["encoder.0", "&lt;script&gt;alert(1)&lt;/script&gt;"]


def test_data_in_the_page_is_strict_json(outline: Outline) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    assert set(json.loads(outline.json, parse_constant=refuse)) == {
        "forecast",
        "spectrum",
        "balance",
        "noise",
        "training",
        "lyapunov",
        "alignment",
        "unit-noise",
        "events",
    }


def test_nothing_is_loaded_from_anywhere(outline: Outline) -> None:
    loads = [a.get(k) for _, a in outline.tags for k in ("src", "href", "action") if a.get(k)]
    assert loads
    assert all(str(x).startswith(("#", "data:")) for x in loads)
    policy = next(a["content"] for a in outline.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_every_link_has_a_target(outline: Outline) -> None:
    ids = [a["id"] for _, a in outline.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for a in outline.all("a"):
        assert str(a["href"]).removeprefix("#") in ids


def test_tables_have_captions_and_plots_have_labels(outline: Outline) -> None:
    assert len(outline.all("table")) == len(outline.all("caption")) >= 5
    plots = [a for a in outline.all("div") if str(a.get("class")) == "plot"]
    assert len(plots) == 9
    assert all(a.get("role") == "img" and a.get("aria-label") for a in plots)


def test_every_unit_is_drawn_with_its_state(outline: Outline) -> None:
    drawn = [str(a.get("class")) for a in outline.all("span") if "title" in a]
    assert sorted(drawn) == sorted(2 * (10 * ["unit alive"] + ["unit fading"] + 3 * ["unit copy"] + 2 * ["unit dead"]))


def test_no_repr_leaks_into_the_text(outline: Outline) -> None:
    assert not re.search(r"built-in method|<class|object at 0x|\bNone\b|\bnan\b|Undefined", outline.text)


def test_an_audit_with_nothing_measured_is_still_a_page(sample: Audit) -> None:
    empty = replace(
        sample,
        collapse=None,
        charges=None,
        noise=None,
        forecast=None,
        certificate=None,
        advice=(),
        training=(),
        full=None,
        run=None,
    )
    outline = Outline(empty.to_html())
    assert "Nothing to do" in outline.text
    assert json.loads(outline.json) == {}


def test_a_large_layer_is_summed_up(build: Callable[..., Audit]) -> None:
    outline = Outline(html_page(build(("wide",), n=1000).to_dict()))
    assert len([a for a in outline.all("span") if "title" in a]) == 512
    assert "488 units not drawn" in outline.text
