"""From a module to an exported program: three ways, tried in turn, and an error that says which line is in the way."""

from __future__ import annotations

import inspect
import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaugefix.errors import TraceError

_OWN = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a module into eval mode and give every submodule its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def named_outputs(result: Any, name: str = "output") -> dict[str, Tensor]:
    """The floating tensors of a module's result by name; other objects (a key-value cache) are left out.

    Args:
        result: a tensor, or nested mappings, sequences and dataclass-like outputs of them.
        name: prefix.

    Returns:
        Tensors in order.
    """
    if isinstance(result, Tensor):
        return {name: result} if result.is_floating_point() else {}
    if isinstance(result, Mapping):
        items: Any = result.items()
    elif isinstance(result, list | tuple):
        keys = getattr(result, "_fields", range(len(result)))
        items = zip(keys, result, strict=True)
    else:
        return {}
    prefix = "" if name == "output" else f"{name}."
    return {k: t for key, item in items for k, t in named_outputs(item, f"{prefix}{key}").items()}


class _TensorsOnly(nn.Module):
    """A module that returns only named tensors, so that it can be exported."""

    def __init__(self, module: nn.Module, report: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.module = module
        self.report = report  # the exporter undoes assignments to attributes, so names leave by a call

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        outputs = named_outputs(self.module(*args, **kwargs))
        self.report(list(outputs))
        return list(outputs.values())


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[str], str]:
    """Export a module: as its Python runs, from its bytecode (``strict``), or from a symbolic trace by ``torch.fx``.

    The second way sees through asserts on values and numbers that are only printed; the third never runs the module
    on tensors, and drops what no output needs (an array kept for a log). None of them can follow a branch that depends
    on the values of tensors.

    Args:
        model: any module; its modes are given back.
        args: example positional arguments.
        kwargs: example keyword arguments.

    Returns:
        The exported program of a module that returns a list of tensors, their names, and a note for people if the
        first way failed.

    Raises:
        TraceError: naming the line in the way and what to do.
    """
    with evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]), _quiet():
        try:
            return *_export(model, args, kwargs), ""
        except Exception as error:  # the exporter raises many types; whichever it is, it is the user's answer
            first = error
        for way, convert in (("torch.export in strict mode", _strict), ("torch.fx", _symbolic)):
            try:
                program, names = _export(convert(model, args, kwargs), args, kwargs)
            except Exception:
                continue
            return program, names, f"torch.export refused the module ({_reason(first)}); {way} was used instead"
    raise TraceError(_message(model, first)) from first


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[str]]:
    names: list[str] = []
    wrapper = _TensorsOnly(model, lambda found: names.__setitem__(slice(None), found))
    return torch.export.export(wrapper, args, kwargs, strict=False), names


def _strict(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    return torch.export.export(model, args, kwargs, strict=True).module(check_guards=False)


def _symbolic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    fixed = {k: v for k, v in bound.arguments.items() if v is None or isinstance(v, bool | int | float | str)}
    module = fx.GraphModule(model, fx.Tracer().trace(model, concrete_args=fixed))
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no dumps of graphs: what fails here is reported by the caller."""
    loggers = [logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.split(".")[0] == "torch"]
    before = [(logger, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints whole graphs when it fails
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled


def _message(model: nn.Module, error: Exception) -> str:
    """What failed, where, and what to do about it."""
    where = _user_line(error)
    text = f"{type(model).__name__} could not be exported by torch.export: {_reason(error)}"
    text += f", at {where}. " if where else ". "
    if _forks(error):
        return text + (
            "It has no fixed graph: replace the branch by torch.where (both sides are computed) or torch.cond, or "
            "search a submodule without it."
        )
    return text + "Search a submodule without this operation, or give it a form that torch.export takes."


def _forks(error: Exception) -> bool:
    said = f"{type(error).__name__} {error}".lower()
    return any(word in said for word in ("data-dependent", "datadependent", "control flow"))


def _reason(error: Exception) -> str:
    if _forks(error):
        return "what it does depends on the values of tensors"
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def _user_line(error: BaseException) -> str:
    """The innermost line of an error that is neither torch's nor ours, as ``file:line, in function: code``."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith("<")
        and not any(Path(f.filename).is_relative_to(folder) for folder in (_OWN, _TORCH))
    ]
    if not frames:
        return ""
    last = frames[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"{Path(last.filename).name}:{last.lineno}, in {last.name}: `{code}`"
