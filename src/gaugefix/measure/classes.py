"""Classes of units as measurements see them: from a search result or a plain list, and the parts of a copy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Batch, Task

_PRECISION = ContextVar("precision", default=torch.float64)
_CHECKS: WeakKeyDictionary[Task, dict[tuple[object, ...], Any]] = WeakKeyDictionary()


def units_of(symmetries: Symmetries | Sequence[Units]) -> tuple[Units, ...]:
    """The classes of units of a search result.

    Args:
        symmetries: what `find_symmetries` gave, or the classes themselves.

    Returns:
        The classes.
    """
    return symmetries.units if isinstance(symmetries, Symmetries) else tuple(symmetries)


def rescaling_fails(units: Units, symmetries: Symmetries | Sequence[Units]) -> str:
    """Why rescaling (w, u) → (cw, u/c) is not a symmetry of a class.

    Args:
        units: the class.
        symmetries: the search result it comes from; with a plain list the activation alone decides.

    Returns:
        The reason, or "" if it is a symmetry.
    """
    if not units.incoming or not units.outgoing:
        return f"the class has no {'outgoing' if units.incoming else 'incoming'} slice"
    if isinstance(symmetries, Symmetries):
        groups = [s.group for s in symmetries if s.units is not None and s.units.name == units.name]
        if any("R+" in g or "GL(" in g for g in groups):
            return ""
        return f"rescaling is not a symmetry of {units.name} ({', '.join(groups) or 'no group found'})"
    if not units.homogeneous:
        return f"the activation {units.activation!r} is not homogeneous"
    return "gains sit between the two sides" if units.gains else ""


def to_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Cast the floating tensors of a batch; integers and everything else stay.

    Args:
        batch: a tensor, or tensors nested in tuples, lists and dictionaries.
        dtype: wanted floating type.

    Returns:
        The batch.
    """
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, batch)


def map_tensors(function: Any, batch: Batch) -> Batch:
    """Apply a function to every tensor of a batch.

    Args:
        function: tensor to tensor.
        batch: a tensor, or tensors nested in tuples, lists and dictionaries.

    Returns:
        The same nesting.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, b) for b in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(function, b) for b in batch)
    if isinstance(batch, dict):
        return {k: map_tensors(function, b) for k, b in batch.items()}
    return batch


def head(batch: Batch, n: int) -> Batch:
    """The first samples of a batch, if all its tensors have the samples along dimension 0; else all of it.

    Args:
        batch: a tensor, or tensors nested in tuples, lists and dictionaries.
        n: how many samples.

    Returns:
        A batch.
    """
    sizes: set[int] = set()
    map_tensors(lambda t: sizes.add(len(t) if t.ndim else -1), batch)
    return map_tensors(lambda t: t[:n], batch) if len(sizes) == 1 and -1 not in sizes else batch


def sample_shapes(batch: Batch) -> tuple[torch.Size, ...]:
    """Shapes of the tensors of a batch without the first dimension.

    Args:
        batch: tensors with the samples along dimension 0.

    Returns:
        In the order of the nesting.
    """
    shapes: list[torch.Size] = []
    map_tensors(lambda t: shapes.append(t.shape[1:]), batch)
    return tuple(shapes)


def checks(task: Task) -> dict[tuple[object, ...], Any]:
    """What checks of a task's operations have shown, by what they depend on: they need not be made twice.

    Args:
        task: a task, or an `exact_copy` of it, which shares them.

    Returns:
        To be read and added to; it lives as long as the task.
    """
    try:
        return _CHECKS.setdefault(task, {})
    except TypeError:  # a part that is not hashable
        return {}


def structure(model: nn.Module) -> tuple[object, ...]:
    """What a check of the operations of a model depends on, apart from values.

    Kinds of modules, which parameters are trained, and the precision: what holds to the digits of float32 need not hold
    to those of float64.

    Args:
        model: any module.

    Returns:
        A key.
    """
    dtypes = dict.fromkeys(p.dtype for p in model.parameters())
    return (*map(type, model.modules()), *dtypes, *(k for k, p in model.named_parameters() if p.requires_grad))


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Let measurements compute in another precision than float64.

    A pass in float32 needs half the memory and, on a CPU, about half the time. Traces, norms and products of the
    Hessian are then good to four digits or more; what should vanish (the defect of a conservation law, a residual, a
    singular value) does so only to about 1e-7, and what is checked is checked with the tolerance of that precision.

    Args:
        dtype: ``torch.float32`` or ``torch.float64``.

    Yields:
        Nothing.

    Raises:
        MeasurementError: for another type.

    Example:
        >>> from gaugefix import load_task
        >>> from gaugefix.measure import gradient_noise
        >>> with precision(torch.float32):
        ...     noise = gradient_noise(load_task("digits-mlp"), max_samples=480)
        >>> noise.method
        'ghost norms'
    """
    if dtype not in {torch.float32, torch.float64}:
        raise MeasurementError(f"precision: measurements run in torch.float32 or torch.float64, not in {dtype}.")
    token = _PRECISION.set(dtype)
    try:
        yield
    finally:
        _PRECISION.reset(token)


def working_precision() -> torch.dtype:
    """The precision that measurements compute in where the loss allows it.

    Returns:
        float64, or what `precision` says.
    """
    return _PRECISION.get()


def exact_copy(task: Task, *, read_only: bool = False) -> Task:
    """A task on a deep copy of the model, in float64 if the loss and the device allow, in evaluation mode.

    Measurements run on it, so that the user's model keeps its mode, gradients, hooks and buffers.

    Args:
        task: the original.
        read_only: for a measurement that never writes to parameters: those of the copy are others, but where no other
            precision is needed their values are the same memory.

    Returns:
        The copy, in the precision of `precision` if one is set; its ``batches`` cast the data.

    Example:
        >>> from gaugefix import load_task
        >>> next(exact_copy(load_task("digits-mlp")).model.parameters()).dtype
        torch.float64
    """
    dtype = working_precision()
    known, key = checks(task), (dtype, *structure(task.model))
    clone = _cast_copy(task, dtype, read_only) if known.get(key, True) else None
    if key not in known:
        known[key] = clone is not None and _evaluates(clone)
    if clone is None or not known[key]:
        # a loss with float32 constants inside, a device without float64: stay in the model's own precision
        own = next((p.dtype for p in task.model.parameters() if p.is_floating_point()), torch.float32)
        clone = _with_model(task, copy.deepcopy(task.model).eval(), own)
    with contextlib.suppress(TypeError):
        _CHECKS[clone] = known
    return clone


def _cast_copy(task: Task, dtype: torch.dtype, read_only: bool) -> Task | None:
    """A copy in some precision, or None on a device that does not have it."""
    model = _read_only_copy(task.model) if read_only else copy.deepcopy(task.model)
    try:
        return _with_model(task, model.to(dtype).eval(), dtype)
    except TypeError:
        return None


def _read_only_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters have their values in common with the original."""
    plain = (p for p in model.parameters() if type(p) is nn.Parameter)
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in plain})


def single_precision_copy(task: Task) -> Task:
    """As `exact_copy` in float32, for what need not be exact; `exact_copy` itself if the loss does not allow it.

    Args:
        task: the original.

    Returns:
        The copy; its ``batches`` cast the data.
    """
    clone = _cast_copy(task, torch.float32, read_only=False)
    return clone if clone is not None and _evaluates(clone) else exact_copy(task)


def _evaluates(task: Task) -> bool:
    """Whether the loss runs in this precision: on two samples where a batch can be cut, else on a whole one."""
    batch = task.first_batch()
    with torch.no_grad():
        for part in (head(batch, 2), batch):
            with contextlib.suppress(RuntimeError, IndexError, ValueError):
                task.loss(task.model, part)
                return True
    return False


def _with_model(task: Task, model: nn.Module, dtype: torch.dtype) -> Task:
    def batches(seed: int = 0) -> Iterator[Batch]:
        return (to_dtype(batch, dtype) for batch in task.batch_iter(seed))

    for p in model.parameters():
        p.grad = None
    return dataclasses.replace(task, model=model, batches=batches)
