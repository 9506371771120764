"""A task: a model, a per-sample loss, batches and optimiser settings. What gets audited."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gaugefix.errors import TaskError

Batch = Any
Loss = Callable[[nn.Module, Batch], Float[Tensor, " n"]]


def _default_inputs(batch: Batch) -> tuple[Any, ...]:
    """Positional model arguments of a batch: the first item of a tuple or list, else the batch itself."""
    return (batch[0],) if isinstance(batch, tuple | list) else (batch,)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    lr: float
    weight_decay: float
    batch_size: int
    momentum: float = 0.0
    optimizer: str = "sgd"
    name: str = "task"
    epochs: int = 0
    inputs: Callable[[Batch], tuple[Any, ...]] = field(default=_default_inputs, repr=False)
    metric: Callable[[nn.Module], dict[str, float]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Task(_Settings):
    """What is needed to measure and forecast one training run.

    The objective is the mean of the per-sample losses plus PyTorch's weight decay,
    ``mean_i ℓ_i(θ) + (λ/2)‖θ‖²`` with λ = ``weight_decay``.

    Attributes:
        model: the network; it is never changed except by `gaugefix.training.train`.
        loss: ``loss(model, batch) -> (n,)``, per sample and unreduced.
        batches: ``batches()`` returns a fresh iterable over one pass of the data; seed it yourself, or accept
            a keyword ``seed`` and it is given one, so that two passes with one seed are equal.
        lr: learning rate.
        weight_decay: PyTorch's coefficient λ, the gradient gets ``+ λθ``.
        batch_size: number of samples per step; T = lr / batch_size.
        momentum: heavy-ball momentum.
        optimizer: "sgd", "adam" or "adamw".
        name: for reports.
        epochs: passes that `gaugefix audit` trains before it measures; 0 audits the model as it is.
        inputs: maps a batch to the positional arguments of ``model``; by default the first item of a tuple.
        metric: optional ``metric(model) -> {"test accuracy": …}``, shown in reports.

    Raises:
        TaskError: if a field has the wrong type or is out of its legal range.

    Example:
        >>> import torch, gaugefix
        >>> from torch import nn
        >>> x, y = torch.randn(64, 5), torch.randint(3, (64,))
        >>> task = gaugefix.Task(
        ...     nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        ...     lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        ...     lambda: zip(x.split(16), y.split(16)),
        ...     lr=0.1, weight_decay=1e-3, batch_size=16,
        ... )
        >>> task.check().shape
        torch.Size([16])
    """

    model: nn.Module = field(kw_only=False)
    loss: Loss = field(kw_only=False)
    batches: Callable[..., Iterable[Batch]] = field(kw_only=False)

    def __post_init__(self) -> None:
        """Validate every setting once, so that nothing downstream has to."""
        if not isinstance(self.model, nn.Module):
            raise TaskError(f"Task.model must be a torch.nn.Module, got {type(self.model).__name__}.")
        for name in ("loss", "batches", "inputs"):
            if not callable(getattr(self, name)):
                raise TaskError(
                    f"Task.{name} must be callable, got {type(getattr(self, name)).__name__}. "
                    + ("Pass a function that returns a fresh iterator." if name == "batches" else "")
                )
        _check_range("lr", self.lr, 0.0, float("inf"), open_left=True)
        _check_range("weight_decay", self.weight_decay, 0.0, float("inf"))
        _check_range("momentum", self.momentum, 0.0, 1.0)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise TaskError(f"Task.batch_size must be an integer >= 1, got {self.batch_size!r}.")
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise TaskError(f"Task.epochs must be an integer >= 0, got {self.epochs!r}.")
        if self.optimizer not in {"sgd", "adam", "adamw"}:
            raise TaskError(f"Task.optimizer must be 'sgd', 'adam' or 'adamw', got {self.optimizer!r}.")

    def batch_iter(self, seed: int = 0) -> Iterator[Batch]:
        """One pass over the data; the same order for the same seed where ``batches`` takes one.

        Args:
            seed: given to ``batches`` if it has a parameter of that name.

        Returns:
            An iterator over batches.

        Raises:
            TaskError: if there is no batch at all.
        """
        iterator = iter(self.batches(seed=seed) if _takes_seed(self.batches) else self.batches())
        try:
            first = next(iterator)
        except StopIteration:
            raise TaskError(
                f"Task {self.name!r}: batches() gave no batch. It must return a fresh iterator at every call; "
                "an exhausted generator object or an empty data set are the usual causes."
            ) from None
        return itertools.chain([first], iterator)

    def first_batch(self) -> Batch:
        """The first batch of pass 0; used for tracing and checks.

        Returns:
            One batch.
        """
        return next(self.batch_iter())

    def check(self) -> Float[Tensor, " n"]:
        """Evaluate the loss on one batch and verify the contract.

        Returns:
            The per-sample losses of the first batch, detached.

        Raises:
            TaskError: if the loss is not a 1-d tensor with one finite value per sample.
        """
        batch = self.first_batch()
        with torch.no_grad():
            value = self.loss(self.model, batch)
        n = _n_samples(batch)
        if not isinstance(value, Tensor):
            raise TaskError(
                f"Task {self.name!r}: loss(model, batch) must return a tensor (n,), got {type(value).__name__}."
            )
        if value.ndim != 1 or (n is not None and value.shape[0] != n):
            wanted = f"({n},)" if n is not None else "(n,)"
            raise TaskError(
                f"Task {self.name!r}: the loss must be per sample and unreduced, shape {wanted}, "
                f"got {tuple(value.shape)}. Pass reduction='none', and average over token positions if there are any."
            )
        bad = ~torch.isfinite(value)
        if bad.any():
            i = int(bad.nonzero()[0])
            raise TaskError(
                f"Task {self.name!r}: the loss of sample {i} is {value[i].item()} ({int(bad.sum())} of {len(value)} "
                "are not finite). Check the data for NaN, and the learning rate if the model was trained."
            )
        return value.detach()


def load_task(target: str, *, data_dir: str | Path | None = None, seed: int = 0) -> Task:
    """Make a task from a name.

    Args:
        target: a built-in name (see `builtin_tasks`), ``"package.module:factory"`` where ``factory()`` returns a
            `Task` (it is called with ``seed=`` and ``data_dir=`` if it takes them), or ``"hf:NAME"`` or ``"hf:FOLDER"``
            for transformers models (see `gaugefix.hub.hub_model`).
        data_dir: folder with data files such as ``mnist.npz``; default the environment variable
            ``GAUGEFIX_DATA``.
        seed: seed of the initial weights and the data order.

    Returns:
        The task, checked on one batch.

    Raises:
        TaskError: if the name is unknown, the module or factory cannot be imported, the factory returns
            something else than a `Task`, or the task fails `Task.check`.

    Example:
        >>> load_task("digits-mlp").batch_size
        480
    """
    from gaugefix.builtin import BUILTIN  # late: needs scikit-learn for the data

    folder = Path(data_dir or os.environ.get("GAUGEFIX_DATA", "."))
    if target in BUILTIN:
        task = BUILTIN[target](seed=seed, data_dir=folder)
    elif target.startswith("hf:"):
        from gaugefix.hub import hub_task  # late: needs transformers

        task = hub_task(target, seed=seed, data_dir=folder)
    elif ":" in target:
        task = _from_factory(target, folder, seed)
    else:
        raise TaskError(
            f"Unknown task {target!r}. Built in: {', '.join(sorted(BUILTIN))}. "
            "For your own, give 'package.module:factory' where factory() returns a gaugefix.Task."
        )
    task.check()
    return task


def _from_factory(target: str, data_dir: Path, seed: int) -> Task:
    module_name, _, factory_name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # so that a script next to the user is found, as `python -m` would
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(
            f"{target!r}: cannot import module {module_name!r} ({error}). Run from the folder that contains it."
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise TaskError(
            f"{target!r}: module {module_name!r} has no function {factory_name!r}. "
            f"It has: {', '.join(sorted(names)[:12]) or 'no function'}."
        )
    options: dict[str, Any] = {"seed": seed, "data_dir": data_dir}
    task = factory(**{k: v for k, v in options.items() if _takes(factory, k)})
    if not isinstance(task, Task):
        raise TaskError(f"{target!r}: the factory must return a gaugefix.Task, got {type(task).__name__}.")
    return task


def _takes(function: Callable[..., Any], name: str) -> bool:
    import inspect

    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _takes_seed(batches: Callable[..., Any]) -> bool:
    return _takes(batches, "seed")


def _n_samples(batch: Batch) -> int | None:
    tensors = [batch] if isinstance(batch, Tensor) else []
    if isinstance(batch, tuple | list):
        tensors = [t for t in batch if isinstance(t, Tensor)]
    elif isinstance(batch, dict):
        tensors = [t for t in batch.values() if isinstance(t, Tensor)]
    return int(tensors[0].shape[0]) if tensors and tensors[0].ndim else None


def _check_range(name: str, value: float, low: float, high: float, *, open_left: bool = False) -> None:
    bracket = "(" if open_left else "["
    ok = isinstance(value, int | float) and (low < value if open_left else low <= value) and value < high
    if not ok:
        raise TaskError(f"Task.{name} must be a number in {bracket}{low:g}, {high:g}), got {value!r}.")
