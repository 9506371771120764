"""Commands about the papers: papers, reproduce, cite. `gaugefix.cli` registers them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaugefix.cli_options import AsJson
from gaugefix.cli_output import files, json_text, leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gaugefix.studies.batch import Summary
    from gaugefix.studies.results import StudyResult

STUDY_RESULTS = Path("study_results")


def papers(as_json: AsJson = False) -> None:
    """List the papers behind gaugefix, and which of them are reproduced so far.

    Example: [bold]gaugefix papers[/]
    """
    from gaugefix.studies import papers as all_papers

    known = all_papers()
    if as_json:
        typer.echo(json_text([{"id": p.id, "title": p.title, "status": p.status, "claims": p.claims} for p in known]))
        return
    table = Table("paper", "status", "claims", "title", title="Papers", title_justify="left", box=None, pad_edge=False)
    for p in known:
        table.add_row(Text(p.id), Text(p.status), str(len(p.claims) or "–"), Text(p.title))
    Console().print(table)


def reproduce(
    paper: Annotated[
        str | None, typer.Argument(metavar="PAPER", help="arXiv id, for example [bold]2309.16932[/].")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every paper that has a study, one after the other.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The sizes of the paper instead of the quick setting.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of independent runs.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figure and the numbers.", show_default=STUDY_RESULTS.name)
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write OUT/PAPER.html as well: every claim with its table and figure.")
    ] = False,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim fails.")] = False,
) -> None:
    """Run the claims of a paper, or of all: predicted against measured, with the tolerance.

    Prints a table and writes a figure (svg, png) and the numbers (json). What has passed is taken over by the next
    run, so that an interrupted one goes on where it stopped. For machines, --json prints JSON instead; files are then
    written only where --out or --html say so.

    Example: [bold]gaugefix reproduce 2309.16932 --out results[/]
    """  # noqa: DOC501
    from gaugefix.report.progress import Stages
    from gaugefix.studies import reproduce as run_study
    from gaugefix.studies import reproduce_all

    if (paper is None) == (not every):
        raise typer.BadParameter("give one paper, or --all", param_hint="PAPER")
    if out is None and (html or not as_json):
        out = STUDY_RESULTS
    with Stages(shown=not as_json) as stages:
        if paper is None:
            summaries = reproduce_all(
                full=full, seeds=seeds, out=out, progress=stages.follow("Studies"),
                done=partial(_write_page, out=out) if html and out is not None else None,
            )  # fmt: skip
        else:
            result = run_study(paper, full=full, seeds=seeds, out=out, progress=stages.follow("Claims"))
            if html and out is not None:
                _write_page(result, out)
    if paper is None:
        _print_all(summaries, out, as_json)
        leave(strict and not all(s.passed for s in summaries))
        return
    if as_json:
        typer.echo(json_text(result.to_dict()))
    else:
        written = sorted((out or Path()).glob(f"{result.paper.id}.*"))
        Console().print(result, files("Page, figure and numbers" if html else "Figure and numbers", written))
    leave(strict and not result.passed)


def cite(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="arXiv id, for example [bold]2309.16932[/].")],
) -> None:
    """Print the BibTeX entry of a paper.

    Example: [bold]gaugefix cite 2309.16932 >> references.bib[/]
    """
    from gaugefix.studies import cite as bibtex

    typer.echo(bibtex(paper))


def register(app: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: the command line.
    """
    for command in (papers, reproduce, cite):
        app.command()(command)


def _write_page(result: StudyResult, out: Path) -> Path:
    from gaugefix.files import write_atomically
    from gaugefix.report.study_page import study_page

    return write_atomically(out / f"{result.paper.id}.html", study_page(result.to_dict(), result.claim_figures()))


def _print_all(summaries: Sequence[Summary], out: Path | None, as_json: bool) -> None:
    """One row per study, and how many hold."""
    if as_json:
        typer.echo(json_text([s.to_dict() for s in summaries]))
        return
    table = Table(
        "", "paper", "claims", "time", "title", title="Studies", title_justify="left", box=None, pad_edge=False
    )
    for s in summaries:
        mark = Text("✓", "green") if s.passed else Text("✗", "bold red")
        title = Text(s.title) if not s.failed else Text.assemble(s.title, (f"\n{'; '.join(s.failed)}", "red"))
        table.add_row(mark, Text(s.id), f"{s.held} of {s.claims}", f"{s.seconds:.0f} s", title)
    held, seconds = sum(s.passed for s in summaries), sum(s.seconds for s in summaries)
    console = Console()
    console.print(table)
    tone = "bold green" if held == len(summaries) else "bold red"
    console.print(Text.assemble((f"{held} of {len(summaries)} studies hold", tone), f" ({seconds / 60:.1f} min)."))
    if out is not None:
        console.print(files("Figures and numbers", [out]))
