"""The page of a compression: complete, escaped, without scripts, whatever the run was."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from gaugefix.report.compression_page import compression_page, lead, loss_curve

EVIL = "<script>alert(1)</script>"
GIVEN = {"gap": None, "clear": True}
WENT = {"dead": 54, "constant": 0, "merged": 1, "rank": 0}


def stage(name: str, loss: float, accuracy: float | None, parameters: int, nonzero: int) -> dict[str, Any]:
    metric = {} if accuracy is None else {f"accuracy {EVIL}": accuracy}
    return {"name": name, "loss": loss, "metric": metric, "parameters": parameters, "nonzero": nonzero}


@pytest.fixture
def data() -> dict[str, Any]:
    """A run with everything that the page can show."""
    return {
        "task": f"mine {EVIL}",
        "method": "units",
        "strength": 0.05,
        "stages": [stage("before", 0.8, 0.92, 4810, 4810), stage("folded", 0.6, 0.93, 685, 685)],
        "constrained": ["0"],
        "left": {f"head {EVIL}": "it is frozen"},
        "collapsed": [
            {"name": "0.weight", "kind": "units", "dead": 55, "total": 64, "threshold": 0.01, **GIVEN},
            {"name": "9.weight", "kind": "none", "dead": 0, "total": 0, "threshold": 0.0, **GIVEN},
        ],
        "removed": [
            {"name": "0", "kind": "hidden", "before": 64, "after": 9, "fibers": 1, **WENT}
        ],
        "factored": ["2"],
        "fold_error": 1e-7,
        "parameters": [4810, 685],
        "nonzero": [4810, 685],
        "bytes": [19240, 2740],
        "flops": [0, 0],
        "seconds": [1e-4, 7e-5],
        "speedup": 1.43,
        "losses": {"dense": [2.0, 1.0], "constrained": [1.0, 0.5, None], "refit": [0.4]},
        "notes": [f"note {EVIL}"],
        "changes": {},
    }  # fmt: skip


class Text(HTMLParser):
    """Tags and text, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_there_and_names_are_text(data: dict[str, Any]) -> None:
    page = Text(compression_page(data))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 5
    for shown in ("4,810", "685", "14.2 %", "54 dead, 1 merged", "two thin layers", "given", "it is frozen"):
        assert shown in page.text
    assert "9.weight" not in page.text  # nothing to say about it
    assert page.tags.count("polyline") == 3


def test_a_run_with_little_to_show(data: dict[str, Any]) -> None:
    bare = data | {
        "stages": [stage("before", 0.8, None, 10, 10), stage("cut", 0.9, None, 10, 10)],
        "losses": {"dense": [], "constrained": [0.7]},
        **{key: [] for key in ("collapsed", "removed", "factored", "notes")},
        "left": {},
        "nonzero": [10, 10],
        "parameters": [10, 10],
    }
    page = Text(compression_page(bare))
    assert "svg" not in page.tags
    assert "What went" not in page.text
    assert lead(bare) == "10 of 10 parameters are left; the loss goes from 0.8 to 0.9."


@pytest.mark.parametrize("values", [[1.0, 1.0], [1e-9, 1e3], [0.0, 0.5, 0.4], [2.0] * 5000])
def test_every_curve_stays_in_its_frame(values: list[float]) -> None:
    curve = loss_curve({"dense": [], "constrained": values})
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for line in curve["lines"] for p in line["points"].split()]
    assert len(points) <= 700
    assert all(curve["left"] <= x <= curve["width"] and 0 <= y <= curve["bottom"] for x, y in points)
    assert 2 <= len(curve["ticks"]) <= 14
