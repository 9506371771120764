"""An audit as one HTML page: nothing is loaded from anywhere, every name from the model is escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from gaugefix.report.figures import figures
from gaugefix.report.format import facts, headline, number, template_environment
from gaugefix.report.gl_spectra import gl_classes
from gaugefix.report.units import MEANING, STATES, unit_states

#: More units than this are summed up in words; the picture would say nothing.
_MOST_UNITS = 512


def html_page(data: Mapping[str, Any]) -> str:
    """The page.

    The scripts are the plotting library and ours, both inline; a content security policy names their hashes, so that
    no other script could run even if a name slipped through the escaping.

    Args:
        data: from `gaugefix.audit.Audit.to_dict`.

    Returns:
        HTML, about 5 MB.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = template_environment()
    environment.filters["number"] = number
    environment.filters["group"] = group_html
    scripts = [get_plotlyjs(), _text("report.js")]
    return environment.get_template("audit.html.j2").render(
        audit=data,
        facts=facts(data["task"]),
        headline=headline(data),
        layers=_layers(data),
        gl_classes=gl_classes(data),
        states=STATES,
        meaning=MEANING,
        figures=figures(data),
        style=Markup(_text("report.css")),
        scripts=[Markup(s) for s in scripts],
        hashes=" ".join(f"'sha256-{_digest(s)}'" for s in scripts),
    )


def group_html(name: str) -> str:
    """A group with its indices and exponents set as such.

    Args:
        name: for example ``"Z_2^32"``; anything else in it is escaped.

    Returns:
        Safe HTML.

    Example:
        >>> print(group_html("Z_2^32 <"))
        Z<sub>2</sub><sup>32</sup> &lt;
    """
    from markupsafe import Markup, escape

    text = re.sub(r"_(\w+)", r"<sub>\1</sub>", str(escape(name)))
    return Markup(re.sub(r"\^(\w+)", r"<sup>\1</sup>", text))


def _text(name: str) -> str:
    return resources.files("gaugefix.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _layers(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the picture of the network shows of every class of units."""
    if not data["collapse"]:
        return []
    forecasts = {c["name"]: c for c in (data["forecast"] or {"classes": ()})["classes"]}
    layers = []
    for unit in data["collapse"]["units"]:
        states = unit_states(unit, forecasts.get(unit["name"]))
        counts = {s: sum(u.state == s for u in states) for s in STATES}
        layers.append({
            **unit,
            "units": states[:_MOST_UNITS],
            "hidden": max(0, len(states) - _MOST_UNITS),
            "total": len(states),
            "counts": counts,
            "summary": ", ".join(f"{n} {'copies' if s == 'copy' and n > 1 else s}" for s, n in counts.items() if n),
            "groups": [s for s in data["symmetries"]["symmetries"] if s["class"] == unit["name"]],
            "forecast": forecasts.get(unit["name"]),
        })
    return layers
