"""The command line: parses, calls, prints. Everything it can do is a Python function of the package."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from gaugefix import cli_change, cli_studies
from gaugefix.cli_options import AsJson, DataDir, Seed, Target
from gaugefix.cli_output import FINE, INTERRUPTED, USER_ERROR, files, json_text, leave
from gaugefix.errors import GaugefixError

app = typer.Typer(
    name="gaugefix",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is something to act on.")]


class Level(StrEnum):
    """How much an audit measures."""

    quick = "quick"
    full = "full"


class Precision(StrEnum):
    """What an audit computes in."""

    double = "double"
    single = "single"


def _version(wanted: bool) -> None:
    if wanted:
        from gaugefix import __version__

        typer.echo(f"gaugefix {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See what the symmetries of a network have done to it, and what they will do next.

    Start with [bold]gaugefix audit digits-mlp[/].
    """
    del version


@app.command()
def audit(
    target: Target,
    level: Annotated[Level, typer.Option(help="How much to measure; full adds what takes longer.")] = Level.quick,
    precision: Annotated[
        Precision, typer.Option(help="Single takes half the memory and about half the time of large networks.")
    ] = Precision.double,
    log: Annotated[
        Path | None,
        typer.Option(help="Log of a monitor that watched the training; shown as a timeline.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Where to write the page.", show_default="OUT/audit.html")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for audit.html and audit.json.", show_default="this folder")
    ] = None,
    data_dir: DataDir = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Passes to train first.", show_default="what the task says")
    ] = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Measure the model as it comes.")] = False,
    seed: Seed = 0,
    strict: Strict = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train a task, find its symmetries, measure what they did, forecast what they will do.

    Prints a summary that ends with what to do next, and writes [bold]audit.html[/] and [bold]audit.json[/]. For
    machines, --json prints JSON instead; files are then written only where --out or --html say so.

    Example: [bold]gaugefix audit digits-mlp --epochs 50 --out results[/]
    """
    import torch

    from gaugefix.audit import audit as run_audit
    from gaugefix.files import check_writable
    from gaugefix.measure import precision as compute_in
    from gaugefix.task import load_task

    page = html or (out or Path()) / "audit.html" if html or out or not as_json else None
    data = (out or Path()) / "audit.json" if out or not as_json else None
    written = [path for path in (page, data) if path is not None]
    for path in written:
        check_writable(path)  # before hours of training, not after
    task = load_task(target, data_dir=data_dir, seed=seed)
    passes = 0 if no_train else epochs
    if passes is not None:
        task = replace(task, epochs=passes)
    with compute_in(torch.float32 if precision is Precision.single else torch.float64):
        result = run_audit(task, level=level.value, log=log, progress=not quiet, seed=seed)
    if as_json:
        typer.echo(result.to_json(), nl=False)
    else:
        Console().print(result)
    if page is not None:
        result.to_html(page)
    if data is not None:
        result.to_json(data)
    if not as_json:
        Console().print(files("Report", written))
    leave(strict and any(a.severity == "act" for a in result.advice))


@app.command()
def symmetries(
    target: Target,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.", show_default=False)] = None,
    meta: Annotated[
        bool | None,
        typer.Option("--meta/--no-meta", help="Structure only, without weights.", show_default="meta for hf: targets"),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Check random elements on random weights in float64.",
            show_default="yes for up to 2 million parameters, no on the meta device",
        ),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Count the flat directions of the function too (narrow models only).")
    ] = False,
    trainable: Annotated[
        bool, typer.Option("--trainable", help="Keep frozen parameters fixed: only what a fine-tune can move.")
    ] = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a claim was rejected or an operation is opaque.")
    ] = False,
) -> None:
    """List the symmetries of a model without training it, block by block, equal blocks folded.

    TARGET may also be [bold]hf:NAME[/] or [bold]hf:FOLDER[/] for transformers models; weights are not read.

    Example: [bold]gaugefix symmetries hf:llama-8b[/]
    """
    from gaugefix.files import write_atomically
    from gaugefix.inspection import inspect_symmetries
    from gaugefix.report.symmetry_report import symmetry_console, symmetry_page

    data = inspect_symmetries(
        target, meta=meta, verify=verify, complete=complete, trainable_only=trainable, data_dir=data_dir, seed=seed
    )
    if as_json:
        typer.echo(json_text(data))
    else:
        Console().print(symmetry_console(data))
    if html is not None:
        written = write_atomically(html, symmetry_page(data))
        if not as_json:
            Console().print(files("Page", [written]))
    leave(strict and bool(data["rejected"] or data["opaque"]))


@app.command()
def watch(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="JSONL file that a monitor writes.")],
    once: Annotated[bool, typer.Option("--once", help="Print the present state and leave.")] = False,
    seconds: Annotated[float, typer.Option(min=0.05, help="Time between two looks at the file.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the present state as JSON for machines and leave.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is something to act on.")] = False,
) -> None:
    """Follow a training run: live units, ranks, balance, events, and at the end what to do about them.

    The run writes LOG with [bold]gaugefix.monitor.JsonlSink(LOG)[/]. Ends with the run, or with Ctrl-C.

    Example: [bold]gaugefix watch run.jsonl --once[/]
    """
    from gaugefix.monitor import read_log
    from gaugefix.report.run_console import follow_run, run_state, run_view

    if once or as_json:
        found = read_log(log)
        if as_json:
            typer.echo(json_text(run_state(found)))
        else:
            Console().print(run_view(found))
    else:
        found = follow_run(log, seconds=seconds, console=Console())
    leave(strict and any(a["severity"] == "act" for a in run_state(found)["advice"]))


cli_change.register(app)
cli_studies.register(app)


def main() -> NoReturn:
    """The console script: errors that a user can mend are one line on standard error and exit code 2."""
    try:
        app()
    except GaugefixError as error:
        line = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True, soft_wrap=True).print(line)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(FINE)
