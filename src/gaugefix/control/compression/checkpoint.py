"""Checkpoints of a run: one safetensors file with tensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import ControlError
from gaugefix.files import write_atomically

_KEY, _FORMAT = "gaugefix.checkpoint", 1
Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """Everything that a run needs to go on as if nothing had happened.

    Attributes:
        settings: of the run; a checkpoint of other settings is refused.
        state: what is not a tensor: where the run is, its losses, settings of the optimizer, generators.
        tensors: of model, optimizer and generators.
    """

    settings: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it.

        Args:
            path: of the file; an older one is replaced in one move.
        """
        from safetensors.torch import save

        head = {"format": _FORMAT, "settings": self.settings, "state": self.state}
        separate = {name: t.detach().cpu().clone().contiguous() for name, t in self.tensors.items()}
        write_atomically(path, save(separate, metadata={_KEY: json.dumps(head)}))


def load_checkpoint(path: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a run that was interrupted.

    Args:
        path: of the file.
        settings: of the run that wants to go on.

    Returns:
        The checkpoint, None if there is no file.

    Raises:
        ControlError: if the file is no checkpoint, or one of another run.
    """
    from safetensors import SafetensorError, safe_open

    for left in path.parent.glob(f".{path.name}.*"):  # a write that was killed; the file itself is whole
        left.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ControlError(f"{path} is no checkpoint of a compression. Move it away, or name another file.") from error
    if head["format"] != _FORMAT:
        raise ControlError(f"{path} was written by another version (format {head['format']}). Start afresh.")
    wanted = json.loads(json.dumps(settings))
    for key in sorted({*wanted, *head["settings"]}):
        there, here = head["settings"].get(key), wanted.get(key)
        if there != here and key == "shapes":
            raise ControlError(f"{path} belongs to a run of another model: its parameters have other names or shapes.")
        if there != here:
            raise ControlError(
                f"{path} belongs to another run: {key} is {there!r} there and {here!r} here. "
                "Go on with its settings, name another checkpoint, or start afresh with restart."
            )
    return Checkpoint(head["settings"], head["state"], tensors)


def pack(tensors: Tensors, prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Move the tensors of a nested dictionary to a flat one.

    Args:
        tensors: where they go, under ``prefix/path``.
        prefix: of their names.
        values: nested dictionaries and lists.

    Returns:
        The same nesting with ``{"tensor": name}`` in their place, and tuples marked, ready for JSON.
    """

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            return {"items": [[k, walk(v, f"{name}/{k}")] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [walk(v, f"{name}/{i}") for i, v in enumerate(value)]}
        return value

    packed: dict[str, Any] = walk(values, prefix)
    return packed


def unpack(tensors: Tensors, packed: Any) -> Any:
    """The inverse of `pack`.

    Args:
        tensors: from the checkpoint.
        packed: what `pack` returned.

    Returns:
        The nested dictionary.
    """
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {k: unpack(tensors, v) for k, v in content}
    values = [unpack(tensors, v) for v in content]
    return tuple(values) if kind == "tuple" else values


def generators() -> dict[str, Any]:
    """States of the global generators of torch (with CUDA), numpy and Python, for `pack`."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002, what a user's code may draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put the generators back.

    Args:
        state: from `generators`.
    """
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Global generators that start at a seed; afterwards they are as before.

    Args:
        seed: of all of them.

    Yields:
        Nothing.
    """
    before = generators()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        set_generators(before)
