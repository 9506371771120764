"""The page in a real browser: Chromium through Playwright, from a file, with no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gaugefix.audit import Audit

pytestmark = [pytest.mark.browser, pytest.mark.long]

ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PLOTS = ("forecast", "spectrum", "balance", "noise", "training")


def _missing(what: str) -> None:
    """Skip on a developer's machine, fail where the check has to run."""
    message = f"the browser tests need {what}"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        _missing("Chromium (apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright (pip install playwright)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=ARGS)
        yield running
        running.close()


@dataclass
class Visit:
    """An open page and everything it complained about or asked for."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def address(sample: Audit, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    sample.to_html(path)
    return path.as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Visit]]:
    opened = []

    def go(viewport: dict[str, int] = LAPTOP, scheme: str = "light", url: str = address) -> Visit:
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        seen = Visit(page)
        page.on("console", lambda m: seen.problems.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda e: seen.problems.append(str(e)))
        page.on("dialog", lambda d: (seen.problems.append(f"dialog {d.message}"), d.dismiss()))
        page.on("request", lambda r: seen.requests.append(r.url) if r.url.startswith(("http", "ws", "//")) else None)
        page.goto(url)
        page.wait_for_function(
            "document.querySelectorAll('.plot .main-svg').length >= document.querySelectorAll('.plot').length"
        )
        return seen

    yield go
    for context in opened:
        context.close()


def test_plots_are_drawn_without_complaint_or_network(visit: Callable[..., Visit]) -> None:
    seen = visit()
    for name in PLOTS:
        box = seen.page.locator(f"#plot-{name} .main-svg").first.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    assert seen.page.locator("#plot-forecast .scatterlayer .point").count() > 20
    assert seen.page.locator("#plot-training .scatterlayer path.js-line").count() == 1
    assert seen.problems == []
    assert seen.requests == []


def test_hostile_names_are_shown_and_do_nothing(visit: Callable[..., Visit]) -> None:
    seen = visit()
    assert seen.page.locator("h1").inner_text() == "</script><img src=x onerror=alert(2)>"
    assert seen.page.locator("img").count() == 0
    assert "<script>alert(1)</script>" in "".join(seen.page.locator("#plot-forecast .ytick").all_text_contents())
    assert seen.problems == []


def test_a_script_that_slipped_in_would_not_run(visit: Callable[..., Visit], sample: Audit, tmp_path: Path) -> None:
    hacked = tmp_path / "hacked.html"
    hacked.write_text(sample.to_html().replace("</main>", "<script>window.hacked = 1</script></main>"))
    seen = visit(url=hacked.as_uri())
    assert seen.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in p for p in seen.problems)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(visit: Callable[..., Visit], scheme: str) -> None:
    seen = visit(PHONE, scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert seen.page.locator(".network .layer").first.bounding_box()["width"] > 300
    assert seen.problems == []


def test_dark_follows_the_system_and_the_button(visit: Callable[..., Visit]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('#plot-forecast .xtick text')).fill"
    light, dark = visit(scheme="light").page, visit(scheme="dark").page
    assert _brightness(light.evaluate(paper)) > 200 > 80 > _brightness(dark.evaluate(paper))
    assert _brightness(light.evaluate(ink)) < 130 < _brightness(dark.evaluate(ink))
    dark.get_by_role("button", name="Switch to light colours").click()
    assert _brightness(dark.evaluate(paper)) > 200
    assert _brightness(dark.evaluate(ink)) < 130
    dark.reload()
    assert _brightness(dark.evaluate(paper)) > 200  # remembered


def _brightness(colour: str) -> float:
    """Mean of the channels of ``rgb(r, g, b)``."""
    channels = [float(x) for x in colour[colour.index("(") + 1 : -1].replace(",", " ").split()[:3]]
    return sum(channels) / 3


def test_everything_is_reachable_by_keyboard(visit: Callable[..., Visit]) -> None:
    page = visit().page
    focused = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused.append(
            page.evaluate("(e => e.getAttribute('href') || e.id || e.ariaLabel || e.tagName)(document.activeElement)")
        )
    assert focused[0] == "#advice"  # the skip link
    assert {"#network", "#forecast", "theme", "Forecast table", "SUMMARY"} <= set(focused)
    page.keyboard.press("Home")
    page.locator(".skip").focus()
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#advice")


def test_long_names_leave_room_on_a_phone(visit: Callable[..., Visit]) -> None:
    seen = visit(PHONE)
    for name in ("lyapunov", "alignment", "forecast"):
        labels = seen.page.locator(f"#plot-{name} .ytick").all_text_contents()
        assert max(map(len, labels)) <= 13, labels
        assert seen.page.locator(f"#plot-{name} .nsewdrag").first.bounding_box()["width"] > 150
    assert "…(1)</script>" in seen.page.locator("#plot-forecast .ytick").all_text_contents()
    for caption in seen.page.locator("caption:visible").all():
        box = caption.bounding_box()
        assert box["x"] + box["width"] <= PHONE["width"]
    assert seen.problems == []
