"""Commands that change a model: fold, rebalance, align. `gaugefix.cli` registers them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaugefix.cli_options import AsJson, DataDir, Seed, Target
from gaugefix.cli_output import json_text

if TYPE_CHECKING:
    from torch import nn

    from gaugefix.task import Task

Out = Annotated[Path | None, typer.Option(help="Where to write the weights (safetensors).", show_default=False)]
Weights = Annotated[
    Path | None, typer.Option(help="Read the weights from this file (safetensors).", show_default=False)
]
Epochs = Annotated[int | None, typer.Option(min=0, help="Passes to train first.", show_default="what the task says")]


class Gauge(StrEnum):
    """Where to go on the orbit."""

    norm = "norm"
    noise = "noise"
    equal_scale = "equal_scale"


def fold(
    target: Target,
    out: Out = None,
    weights: Weights = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, max=1, help="What counts as zero; 0 is exact.", show_default="widest gap")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Largest relative change of the outputs.", show_default="0.01, 1e-5 at 0")
    ] = None,
    multiple_of: Annotated[int, typer.Option(min=1, help="Round widths up to a multiple of this.")] = 1,
    factor: Annotated[bool, typer.Option(help="Make two thin layers of one that has low rank.")] = True,
    epochs: Epochs = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Cut out of a trained model what it does not use: a smaller one with the same function.

    Example: [bold]gaugefix fold my_run:task --weights trained.safetensors --out small.safetensors[/]
    """
    from gaugefix import control

    _check_out(out)
    task = _trained(target, weights, epochs, data_dir, seed)
    done = control.fold(task, tolerance=tolerance, max_error=max_error, multiple_of=multiple_of, factor=factor)
    typer.echo(json_text(done.to_dict()) if as_json else str(done))
    _write(done.model, out, as_json)


def rebalance(
    target: Target,
    to: Annotated[Gauge, typer.Option(help="Least norm, least gradient noise, or entries of equal size.")] = Gauge.norm,
    out: Out = None,
    weights: Weights = None,
    epochs: Epochs = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Move a model to the balanced point of its symmetry orbit: other weights, the same function.

    Example: [bold]gaugefix rebalance digits-mlp --to noise --out balanced.safetensors[/]
    """
    from gaugefix import control

    _check_out(out)
    task = _trained(target, weights, epochs, data_dir, seed)
    done = control.rebalance_(task, to=to.value, seed=seed)
    if as_json:
        typer.echo(json_text(done.to_dict()))
    else:
        typer.echo(f"squared norm {done.norm[0]:.4g} -> {done.norm[1]:.4g}, error {done.error:.1e}")
        typer.echo(f"imbalance that is left {done.residual:.1e}; {done.unbounded} units have no balanced point")
        for name, why in done.left.items():
            typer.echo(f"  {name} left as it is: {why}")
    _write(task.model, out, as_json)


def align(
    first: Annotated[str, typer.Argument(metavar="A", help="The model whose coordinates are wanted, as TARGET.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The model to be moved, as TARGET.")],
    out: Out = None,
    weights_a: Weights = None,
    weights_b: Weights = None,
    starts: Annotated[int, typer.Option(min=1, help="Number of starts of the matching.")] = 4,
    epochs: Epochs = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    seed_b: Annotated[int, typer.Option(help="Seed of the second model.")] = 1,
) -> None:
    """Bring the second model into the coordinates of the first, and measure the loss barrier between them.

    Example: [bold]gaugefix align my_run:task my_run:task --weights-a a.safetensors --weights-b b.safetensors[/]
    """
    from gaugefix import control

    _check_out(out)
    one = _trained(first, weights_a, epochs, data_dir, seed)
    two = _trained(second, weights_b, epochs, data_dir, seed_b)
    done = control.align(one, two.model, starts=starts, seed=seed)
    walls = [control.barrier(one.model, m, one).barrier for m in (two.model, done.model)]
    if as_json:
        typer.echo(json_text({**done.to_dict(), "barrier": walls}))
    else:
        typer.echo(f"relative distance of the weights {done.distance[0]:.3g} -> {done.distance[1]:.3g}")
        typer.echo(f"cosine in the balanced gauge {done.similarity[0]:.3g} -> {done.similarity[1]:.3g}")
        typer.echo(f"loss barrier on the straight line {walls[0]:.3g} -> {walls[1]:.3g}")
        typer.echo(f"error of the function {done.error:.1e}")
    _write(done.model, out, as_json)


def register(app: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: of the command line.
    """
    for command in (fold, rebalance, align):
        app.command()(command)


def _trained(target: str, weights: Path | None, epochs: int | None, data_dir: Path | None, seed: int) -> Task:
    """The task with its model as it was trained: from a file, or by training it now."""
    from gaugefix.errors import ControlError
    from gaugefix.task import load_task
    from gaugefix.training import train

    task = load_task(target, data_dir=data_dir, seed=seed)
    if weights is not None:
        from safetensors.torch import load_model

        try:
            load_model(task.model, weights)
        except (OSError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ControlError(f"--weights {weights}: these are no weights for {target!r} ({first}).") from error
        passes = epochs or 0
    else:
        passes = task.epochs if epochs is None else epochs
    if passes:
        train(task, epochs=passes, seed=seed)
    return task


def _check_out(path: Path | None) -> None:
    from gaugefix.files import check_writable

    if path is not None:
        check_writable(path)  # before hours of work, not after


def _write(model: nn.Module, path: Path | None, quiet: bool) -> None:
    if path is None:
        return
    from gaugefix.control.state import save_weights

    written = save_weights(model, path)
    if not quiet:
        typer.echo(f"Weights\n  {written}")
