"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="What to look at: a built-in task ([bold]digits-mlp[/], digits-mlp-tanh, mnist-mlp), or "
        "[bold]package.module:factory[/], your own function that returns a gaugefix.Task, or [bold]hf:NAME[/] or "
        "[bold]hf:FOLDER[/] for transformers models.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with data files such as mnist.npz.", envvar="GAUGEFIX_DATA", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and of the data order.")]
