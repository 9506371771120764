"""Commands that change a model: fold, compress, rebalance, align. `gaugefix.cli` registers them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaugefix.cli_options import AsJson, DataDir, Seed, Target
from gaugefix.cli_output import json_text

if TYPE_CHECKING:
    from torch import nn

    from gaugefix.control.compression.constrain import Method
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
    if out is not None:
        _say(done.save(out), as_json)


def compress(
    target: Target,
    units: Annotated[
        float | None, typer.Option(help="Strength λ: whole units, channels and heads die.", show_default=False)
    ] = None,
    rank: Annotated[float | None, typer.Option(help="Strength λ: ranks become lower.", show_default=False)] = None,
    sparse: Annotated[float | None, typer.Option(help="Strength λ: single weights die.", show_default=False)] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes with the constraint.", show_default="what the task says")
    ] = None,
    pretrain: Annotated[
        int | None,
        typer.Option(min=0, help="Passes without it, before.", show_default="what the task says; 0 with --weights"),
    ] = None,
    refit: Annotated[
        int | None, typer.Option(min=0, help="Passes after the cut.", show_default="a quarter of --epochs")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Part to keep, the largest; for example 0.1.", show_default="what did not die"),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a class of units or a tensor; repeatable.", show_default="all")
    ] = None,
    out: Out = None,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.", show_default=False)] = None,
    weights: Weights = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Where an interrupted run goes on from.", show_default="beside --out"),
    ] = None,
    every: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")] = 60.0,
    restart: Annotated[bool, typer.Option("--restart", help="Ignore a checkpoint that is there.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="What counts as zero when folding.", show_default="widest gap")
    ] = None,
    factor_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the constrained weights.", show_default="that of the task")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train until a part of the model dies, cut it out, train on: a smaller, plain model with the accuracy it has left.

    Give one of --units, --rank and --sparse. Ctrl-C, or a kill, loses nothing: the same command goes on.

    Example: [bold]gaugefix compress digits-mlp --units 0.05 --epochs 400 --out small.safetensors[/]
    """  # noqa: DOC501
    from gaugefix import control
    from gaugefix.files import write_atomically
    from gaugefix.report.compression_page import compression_page
    from gaugefix.report.progress import Stages
    from gaugefix.task import load_task

    method, strength = _one_of({"units": units, "rank": rank, "sparse": sparse})
    for path in (out, html, checkpoint):
        _check_out(path)
    kept_in = checkpoint or (out.with_suffix(".checkpoint.safetensors") if out is not None else None)
    task = load_task(target, data_dir=data_dir, seed=seed)
    if weights is not None:
        task = _with_weights(task, weights, target)
    before = pretrain if pretrain is not None else 0 if weights is not None else task.epochs
    goes_on = kept_in is not None and kept_in.exists() and not restart and not quiet
    with Stages(shown=not quiet) as stages:
        bars: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int, note: str) -> None:
            nonlocal goes_on
            if goes_on and kept_in is not None:  # the checkpoint has been read and fits
                typer.echo(f"Going on from {kept_in.absolute()}", err=True)
                goes_on = False
            if total:
                bars.setdefault(phase, stages.follow(phase.capitalize()))(done, total, note)

        try:
            result = control.compress(
                task, method, strength, epochs=epochs, pretrain=before, refit=refit, keep=keep, only=only or None,
                tolerance=tolerance, factor_lr=factor_lr, checkpoint=kept_in, restart=restart, checkpoint_seconds=every,
                run=" ".join([target, *([str(weights)] if weights else [])]), seed=seed, progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            if kept_in is not None and kept_in.exists():
                typer.echo(f"Interrupted; the same command goes on from {kept_in.absolute()}", err=True)
            raise
    typer.echo(json_text(result.to_dict()) if as_json else str(result))
    if html is not None:
        _say(write_atomically(html, compression_page(result.to_dict())), as_json, "Page")
    if out is not None:
        _say(result.save(out), as_json)
        if kept_in is not None:
            kept_in.unlink(missing_ok=True)


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


def _one_of(strengths: dict[Method, float | None]) -> tuple[Method, float]:
    """The one constraint that was asked for."""
    from gaugefix.errors import ControlError

    given = [(method, strength) for method, strength in strengths.items() if strength is not None]
    if len(given) != 1:
        got = " and ".join(f"--{method} {strength:g}" for method, strength in given) or "none of them"
        raise ControlError(
            f"Give one of --units, --rank and --sparse with its strength, such as --units 0.01; got {got}."
        )
    return given[0]


def register(app: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: of the command line.
    """
    for command in (fold, compress, rebalance, align):
        app.command()(command)


def _trained(target: str, weights: Path | None, epochs: int | None, data_dir: Path | None, seed: int) -> Task:
    """The task with its model as it was trained: from a file, or by training it now."""
    from gaugefix.task import load_task
    from gaugefix.training import train

    task = load_task(target, data_dir=data_dir, seed=seed)
    if weights is not None:
        task = _with_weights(task, weights, target)
        passes = epochs or 0
    else:
        passes = task.epochs if epochs is None else epochs
    if passes:
        train(task, epochs=passes, seed=seed)
    return task


def _with_weights(task: Task, weights: Path, target: str) -> Task:
    """The task with the weights of a file; those of a folded model bring their smaller module."""
    from dataclasses import replace

    from safetensors import SafetensorError
    from safetensors.torch import load_model

    from gaugefix.control import load_folded
    from gaugefix.control.folding.reload import is_folded
    from gaugefix.errors import ControlError

    if is_folded(weights):
        return replace(task, model=load_folded(task.model, weights))
    try:
        load_model(task.model, weights)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ControlError(f"--weights {weights}: these are no weights for {target!r} ({first}).") from error
    return task


def _check_out(path: Path | None) -> None:
    from gaugefix.files import check_writable

    if path is not None:
        check_writable(path)  # before hours of work, not after


def _write(model: nn.Module, path: Path | None, quiet: bool) -> None:
    if path is None:
        return
    from gaugefix.control.state import save_weights

    _say(save_weights(model, path), quiet)


def _say(written: Path, quiet: bool, what: str = "Weights") -> None:
    if not quiet:
        typer.echo(f"{what}\n  {written}")
