"""The symmetries of a model as a table for a terminal, as JSON, as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gaugefix.report.blocks import fold_blocks
from gaugefix.report.format import template_environment
from gaugefix.report.html_page import group_html
from gaugefix.symmetry import Symmetries
from gaugefix.testing import Completeness


def symmetry_data(
    found: Symmetries, name: str, *, structure_only: bool = False, completeness: Completeness | None = None
) -> dict[str, Any]:
    """Everything that the reports show, as plain data.

    Args:
        found: the symmetries.
        name: of the model.
        structure_only: it was on the meta device, so nothing could be verified.
        completeness: comparison with the measured flat directions, if it was made.

    Returns:
        `Symmetries.to_dict` with ``name``, ``verified``, ``structure_only``, ``blocks`` and ``completeness``.
    """
    return {
        "name": name,
        "verified": found.verified,
        "structure_only": structure_only,
        "blocks": [section.to_dict() for section in fold_blocks(found)],
        "completeness": None if completeness is None else {**vars(completeness), "complete": completeness.complete},
        **found.to_dict(),
    }


def statements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the table says, in sentences.

    Args:
        data: from `symmetry_data`.

    Yields:
        Pairs (label, sentence), in reading order.
    """
    yield "output", f"the function that is kept: {data['output']}"
    yield "directions", f"{data['flat_dim']:,} flat directions of {data['n_parameters']:,} parameters"
    if data["verified"]:
        worst = max((s["error"] or 0.0 for s in data["symmetries"]), default=0.0)
        yield "verified", f"{len(data['symmetries'])} symmetries, largest change of the output {worst:.0e} (float64)"
    elif data["structure_only"]:
        yield "verified", "no: structure only, on the meta device (--verify checks random elements on random weights)"
    else:
        yield "verified", "no (--verify checks random elements on random weights)"
    if (c := data["completeness"]) is not None:
        sure = "" if c["reliable"] else " (the count is not reliable: too few inputs or no clean gap)"
        yield "complete", f"explains {c['explained']:,} of {c['measured']:,} flat directions{sure}"
        if not c["complete"]:
            where = ", ".join(f"{name} ({n})" for name, n in c["hidden"].items())
            yield (
                "hidden",
                f"{c['measured'] - c['explained']} directions that depend on data or are not known, in {where}",
            )
    for o in data["opaque"]:
        yield "opaque", f"{o['op']} at {o['place']}: {o['reason']}"
    for v in data["rejected"]:
        yield "rejected", f"{v['name']} changes the output by {v['error']:.0e}: please report this"
    for note in data["skipped"]:
        yield "skipped", note


def symmetry_console(data: Mapping[str, Any]) -> RenderableType:
    """The folded table and what it says.

    Args:
        data: from `symmetry_data`.

    Returns:
        Something rich can print; names from the model are never read as markup.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, options in _COLUMNS.items():
        table.add_column(column, **options)
    for section in data["blocks"]:
        title = section["block"] + (f" × {section['count']}" if section["count"] > 1 else "")
        table.add_row(Text(title, style="bold"), "", "", Text(f"{section['dim']:,}", style="bold"), "")
        for r in section["rows"]:
            directions = f"{r['dim']:,}" if r["dim"] else "–"
            table.add_row(Text(f"  {r['kind']}"), Text(r["group"]), r["units"], directions, Text(_short(r["acts_on"])))
        table.add_section()
    lines = [Text.assemble((f"{label:<11}", "dim"), sentence) for label, sentence in statements(data)]
    return Group(Text(f"Symmetries of {data['name']}", style="bold"), table, *lines)


_COLUMNS: dict[str, dict[str, Any]] = {
    "block": {"overflow": "fold"},
    "group": {"no_wrap": True},
    "units": {"justify": "right", "no_wrap": True},
    "directions": {"justify": "right", "no_wrap": True},
    "acts on": {"overflow": "fold", "ratio": 1},
}


def _short(acts_on: str, most: int = 120) -> str:
    """The first names and the number of the others."""
    if len(acts_on) <= most:
        return acts_on
    names = acts_on.split(", ")
    kept: list[str] = []
    while names and len(", ".join([*kept, names[0]])) <= most:
        kept.append(names.pop(0))
    return f"{', '.join(kept)}, … ({len(names)} more)"


def symmetry_page(data: Mapping[str, Any]) -> str:
    """The page: nothing is loaded from anywhere, no script, every name from the model is escaped.

    Args:
        data: from `symmetry_data`.

    Returns:
        HTML.
    """
    from markupsafe import Markup

    from gaugefix import __version__

    environment = template_environment()
    environment.filters["group"] = group_html
    style = resources.files("gaugefix.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    return environment.get_template("symmetries.html.j2").render(
        data=data, statements=list(statements(data)), style=Markup(style), version=__version__
    )
