"""Make ``docs/_static/audit.png``, the picture in the README, from a real report.

Run ``gaugefix audit digits-mlp`` first, then ``python docs/screenshot.py audit.html``. Needs Chromium,
playwright and pillow.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent / "_static" / "audit.png"
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def screenshot(report: Path) -> None:
    """The upper part of a report, from the headline to the forecast."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        page = browser.new_page(viewport={"width": 1080, "height": 800}, device_scale_factor=1.5)
        page.goto(report.absolute().as_uri())
        page.wait_for_selector("#plot-forecast .main-svg")
        page.add_style_tag(content="nav { display: none } header { padding-top: 2rem !important }")
        page.wait_for_timeout(500)
        end = page.locator("#forecast").bounding_box()
        assert end is not None
        page.screenshot(
            path=OUT, full_page=True, clip={"x": 0, "y": 0, "width": 1080, "height": end["y"] + end["height"] + 24}
        )
        browser.close()
    Image.open(OUT).convert("RGB").quantize(128).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]))
