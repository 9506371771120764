"""A study as one HTML page: every claim with its statement, its table and its figure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib import resources
from typing import Any

from gaugefix.report.format import number, template_environment


def study_page(data: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """The page: nothing is loaded from anywhere, no script, all text is escaped.

    Args:
        data: from `gaugefix.studies.StudyResult.to_dict`.
        figures: an SVG for every claim that could be drawn, by its name.

    Returns:
        HTML.
    """
    from markupsafe import Markup

    from gaugefix import __version__

    environment = template_environment()
    environment.filters["number"] = number
    style = resources.files("gaugefix.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    claims = [{**claim, "rows": _rows(claim), "image": _image(figures.get(claim["name"]))} for claim in data["claims"]]
    return environment.get_template("study.html.j2").render(
        data=data,
        claims=claims,
        held=sum(claim["passed"] for claim in data["claims"]),
        style=Markup(style),
        version=__version__,
    )


def _rows(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cells of a claim: label, mean prediction, mean and error of the measurement, deviation, bar, verdict."""
    rows = []
    for i, cell in enumerate(claim["cells"]):
        column = [row[i] for row in claim["predicted"]]
        deviation, bar = claim["deviation"][i], claim["bar"][i]
        known = [v for v in column if v is not None]
        rows.append({
            "cell": cell,
            "predicted": sum(known) / len(known) if known else None,
            "measured": claim["mean"][i],
            "stderr": claim["stderr"][i],
            "deviation": deviation,
            "bar": bar,
            "passed": deviation is not None and bar is not None and deviation <= bar,
        })
    return rows


def _image(svg: bytes | None) -> str:
    return "" if svg is None else f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
