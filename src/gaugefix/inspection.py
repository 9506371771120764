"""Looking at a model without training it: target in, the data of a report on its symmetries out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.errors import TaskError
from gaugefix.hub import hub_model
from gaugefix.report.symmetry_report import symmetry_data
from gaugefix.symmetry import find_symmetries
from gaugefix.task import Task, load_task
from gaugefix.testing import completeness
from gaugefix.testing.flat import countable


def inspect_symmetries(
    target: str,
    *,
    meta: bool | None = None,
    verify: bool | None = None,
    complete: bool = False,
    trainable_only: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The symmetries of a target as plain data.

    Args:
        target: as for `gaugefix.load_task`.
        meta: structure only, on the meta device; by default for ``hf:`` targets unless numbers are asked for.
        verify: check every symmetry numerically; by default if the model is small and not on the meta device.
        complete: compare with the flat directions of the function; for narrow models.
        trainable_only: keep frozen parameters fixed.
        data_dir: folder with data files.
        seed: of weights and checks.

    Returns:
        See `gaugefix.report.symmetry_report.symmetry_data`.

    Raises:
        TaskError: if numbers are asked for on the meta device, or the target cannot be loaded.
        MeasurementError: if ``complete`` is asked for a model that is not narrow.
    """  # noqa: DOC502
    numbers = bool(verify) or complete
    if meta and numbers:
        raise TaskError("--meta looks at structure only: leave out --verify and --complete, or --meta.")
    if meta is None:
        meta = target.startswith("hf:") and not numbers
    model, args, task = _load(target, meta, data_dir, seed)
    if complete:
        countable(model, trainable_only=trainable_only)  # before the search, which may take long on a wide model
    check: bool | Literal["auto"] = "auto" if verify is None else verify
    found = find_symmetries(
        task or model, None if task else args, verify=check, trainable_only=trainable_only, seed=seed
    )
    compared = completeness(found, model, args, seed=seed, trainable_only=trainable_only) if complete else None
    return symmetry_data(found, target, structure_only=meta, completeness=compared)


def _load(target: str, meta: bool, data_dir: Path | None, seed: int) -> tuple[nn.Module, tuple[Any, ...], Task | None]:
    """The model, its arguments, and the task if its loss can be looked at too."""
    if target.startswith("hf:"):
        found = hub_model(target, meta=meta, seed=seed, weights=False)
        return found.model, found.example(), None
    task = load_task(target, data_dir=data_dir, seed=seed)
    args = task.inputs(task.first_batch())
    if not meta:
        return task.model, args, task
    moved = pytree.tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, args)
    return meta_copy(task.model), moved, None


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device, in which tied parameters stay tied (``Module.to`` would part them).

    Args:
        model: left as it is.

    Returns:
        The copy; it takes no memory for weights.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo).to("meta")
