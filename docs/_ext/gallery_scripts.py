"""The gallery: one sphinx-gallery script for every registered study, and a scraper for the figures of results."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

from gaugefix.files import write_atomically
from gaugefix.studies import Paper, constructions, papers
from gaugefix.studies.registry import find_paper, find_study

HEADER = """Studies
=======

Every paper that gaugefix rests on becomes one study: its claims, each as *predicted* against *measured* with a
tolerance and the reason for it, over at least three seeds. These pages are made by running the studies; what you see is
what they measured when this documentation was built. Run one yourself with

.. code-block:: console

   $ gaugefix reproduce 2309.16932 --out results --html

or all of them with ``gaugefix reproduce --all``, which goes on where it was interrupted. What ``--full`` does is on
:doc:`/papers`.

That page also lists all papers, and how far each has got.
"""

SCRIPT = '''"""
{headline}
{rule}

{body}

.. rubric:: {origin}

{reference}
"""

# %%
# Predicted, measured
# -------------------
# One call runs every claim. The result prints as a table, draws itself, and says in ``result.passed`` whether all
# claims hold; with ``out="results"`` it is saved, and a later run takes over what has passed.

from gaugefix.studies import reproduce

# sphinx_gallery_start_ignore
import functools
import os

reproduce = functools.partial(reproduce, out=os.environ.get("GAUGEFIX_DOCS_RESULTS"))
# runs again when the study changes: {digest}
# sphinx_gallery_thumbnail_path = "_build/studies/{id}-thumb.png"
# sphinx_gallery_end_ignore
result = reproduce("{id}")
print(result.table())

# %%
# In the figure, lines and rings are predictions and filled points are measurements.

figure = result.figure(columns=2)

# %%
# The study
# ---------
# .. raw:: html
#
#    <details class="study-source"><summary>The file, from the settings to the figure</summary>
#
# .. literalinclude:: {source}
#    :language: python
#
# .. raw:: html
#
#    </details>
'''


def write(folder: Path) -> None:
    """Write the scripts of all registered studies; untouched where nothing has changed, so that builds are quick."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"GALLERY_HEADER.rst": HEADER}
    for paper in (*papers(), *constructions()):
        if paper.study:
            wanted[f"plot_{paper.study.rpartition('.')[2]}.py"] = _script(paper)
    for stale in set(folder.iterdir()) - {folder / name for name in wanted}:
        stale.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)


def _script(paper: Paper) -> str:
    study = find_study(paper.id)
    headline, _, rest = study.doc.partition("\n")
    body = re.sub(r"\n*^Source:.*", "", rest.strip(), flags=re.MULTILINE | re.DOTALL)
    headline = headline.rstrip(".")
    return SCRIPT.format(
        headline=headline,
        rule="=" * len(headline),
        body=body,
        origin="Rests on" if paper.rests_on else "Paper",
        reference="\n\n".join(map(_reference, [find_paper(id) for id in paper.rests_on] or [paper])),
        id=paper.id,
        digest=hashlib.sha256(study.source.encode()).hexdigest()[:16],
        source=f"/../src/{paper.study.replace('.', '/')}.py",
    )


def _reference(paper: Paper) -> str:
    venue = f", {paper.venue}" if paper.venue else ""
    link = f"`arXiv {paper.id} <https://arxiv.org/abs/{paper.id}>`__"
    return f"{', '.join(paper.authors)}: *{paper.title}*. {link}{venue}."


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: Any) -> str:
    """Show a global called ``figure`` below the block that made it."""
    figure = block_vars["example_globals"].pop("figure", None)
    if not isinstance(figure, Figure):
        return ""
    path, result = next(block_vars["image_path_iterator"]), block_vars["example_globals"]["result"]
    thumbnails = Path(gallery_conf["src_dir"]) / "_build" / "studies"
    thumbnails.mkdir(parents=True, exist_ok=True)
    first = replace(result, comparisons=result.comparisons[:1]).figure()
    first.savefig(thumbnails / f"{result.paper.id}-thumb.png", dpi=120)
    figure.savefig(path, dpi=170)
    return str(figure_rst([path], gallery_conf["src_dir"]))


def _get_sg_image_scraper() -> Any:
    """The name by which sphinx-gallery finds a scraper in a module."""
    return scrape
