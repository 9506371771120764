"""The directive ``papers-table``: all papers with the state of their reproduction."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gaugefix.studies import Paper, papers

WIDTHS = (16, 64, 20)


class PapersTable(SphinxDirective):
    """A table of all papers, and above it how many are done."""

    def run(self) -> list[nodes.Node]:
        """The nodes."""
        every = papers()
        counts = {s: sum(p.status == s for p in every) for s in ("reproduced", "partial", "planned")}
        text = ", ".join(f"{n} {status}" for status, n in counts.items())
        return [nodes.paragraph("", f"{len(every)} papers: {text}."), self._table(every)]

    def _table(self, every: tuple[Paper, ...]) -> nodes.table:
        group = nodes.tgroup("", *[nodes.colspec(colwidth=w) for w in WIDTHS], cols=len(WIDTHS))
        group += nodes.thead("", _row(*[nodes.paragraph("", name) for name in ("arXiv", "paper", "status")]))
        group += nodes.tbody("", *[self._paper(p) for p in every])
        return nodes.table("", group, classes=["papers"])

    def _paper(self, paper: Paper) -> nodes.row:
        link = nodes.reference("", paper.id, refuri=f"https://arxiv.org/abs/{paper.id}")
        title = nodes.paragraph("", "", nodes.strong("", paper.title))
        authors = nodes.paragraph("", ", ".join(paper.authors), classes=["authors"])
        status = nodes.paragraph("", "", nodes.inline("", paper.status, classes=["status", f"status-{paper.status}"]))
        if paper.study:
            page = f"../gallery/plot_{paper.study.rpartition('.')[2]}.html".removeprefix("../")
            status += [nodes.Text(" "), nodes.reference("", f"{len(paper.claims)} claims", refuri=page)]
        return _row(nodes.paragraph("", "", link), [title, authors], status)


def _row(*cells: nodes.Node | list[nodes.Node]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", *(c if isinstance(c, list) else [c])) for c in cells])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("papers-table", PapersTable)
    return {"version": "1", "parallel_read_safe": True}
