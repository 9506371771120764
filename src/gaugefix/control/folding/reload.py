"""Files of folded models: the weights, and what their smaller module looks like."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.resize import set_tensors
from gaugefix.control.state import save_weights
from gaugefix.errors import ControlError

Changes = dict[str, Any]
_KEY = "gaugefix.folded"


def shape_changes(original: nn.Module, folded: nn.Module) -> Changes:
    """How the modules of a folded model differ from those of the original.

    Args:
        original: plain.
        folded: made from it.

    Returns:
        ``{"factored": [names], "attributes": {module: {attribute: value}}}``, types that JSON knows.
    """
    before = dict(original.named_modules())
    factored, attributes = [], {}
    for name, module in folded.named_modules():
        old = before.get(name)
        if old is None:
            continue
        if isinstance(old, nn.Linear) and isinstance(module, nn.Sequential):
            factored.append(name)
            continue
        changed = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(module).items()
            if not key.startswith("_") and key != "training" and _plain(value) and vars(old).get(key) != value
        }
        if changed:
            attributes[name] = changed
    return {"factored": factored, "attributes": attributes}


def _plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_plain(v) for v in value)
    return isinstance(value, bool | int | float | None)


def save_folded(model: nn.Module, changes: Mapping[str, Any], path: Path | str) -> Path:
    """Write a folded model as safetensors that `load_folded` can read; any reader of safetensors finds the weights.

    Args:
        model: the folded model.
        changes: from `shape_changes`.
        path: of the file.

    Returns:
        The absolute path.
    """
    return save_weights(model, path, metadata={_KEY: json.dumps(changes)})


def is_folded(path: Path | str) -> bool:
    """Whether a file is one of a folded model.

    Args:
        path: of the file.

    Returns:
        True if it is; False if it has plain weights or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_folded(model: nn.Module, path: Path | str) -> nn.Module:
    """The folded model of a file, built from the original module.

    Args:
        model: as it was before folding, with any weights; left as it is.
        path: what `FoldResult.save`, `CompressionResult.save`, ``gaugefix fold --out`` or ``gaugefix compress --out``
            wrote.

    Returns:
        A smaller module in the mode, precision and on the device of ``model``, with the weights of the file.

    Raises:
        ControlError: if the file cannot be read, is not that of a folded model, or belongs to another module.

    Example:
        >>> import tempfile
        >>> from gaugefix.control import fold
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     net[2].weight[:, :3] = 0
        >>> small = fold(net, tolerance=0, example_inputs=torch.randn(5, 4))
        >>> fresh = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_folded(fresh, small.save(Path(folder) / "small.safetensors"))
        >>> x = torch.randn(3, 4)
        >>> again[0], bool(torch.equal(again(x), small.model(x)))
        (Linear(in_features=4, out_features=5, bias=True), True)
    """
    changes, tensors = _read(path)
    out = copy.deepcopy(model)
    modules = dict(out.named_modules())
    unknown = [n for n in (*changes["factored"], *changes["attributes"]) if n not in modules]
    if unknown:
        raise ControlError(f"{path} is a folded model with a module {unknown[0]!r}, which this model does not have.")
    like = next((p for p in out.parameters() if p.is_floating_point()), torch.empty(0))
    tensors = {n: t.to(like.device) for n, t in tensors.items()}
    for name in changes["factored"]:
        if f"{name}.0.weight" not in tensors:
            raise ControlError(f"{path} lacks the weights of {name!r}.")
        out.set_submodule(name, _pair(tensors, name).train(modules[name].training))
    for name, attributes in changes["attributes"].items():
        for key, value in attributes.items():
            setattr(modules[name], key, tuple(value) if isinstance(value, list) else value)
    _put(out, tensors, path)
    return out


def _read(path: Path | str) -> tuple[Changes, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    except (OSError, SafetensorError) as error:
        raise ControlError(f"{path} cannot be read as safetensors ({str(error).splitlines()[0]}).") from error
    if _KEY not in metadata:
        raise ControlError(f"{path} holds weights, but not those of a folded model; use load_state_dict.")
    return json.loads(metadata[_KEY]), tensors


def _pair(tensors: Mapping[str, Tensor], name: str) -> nn.Sequential:
    """The two thin layers that stand for one."""
    first, second = (tensors[f"{name}.{i}.weight"] for i in (0, 1))
    like = {"device": first.device, "dtype": first.dtype}
    bias = f"{name}.1.bias" in tensors
    return nn.Sequential(
        nn.Linear(first.shape[1], first.shape[0], bias=False, **like),
        nn.Linear(second.shape[1], second.shape[0], bias=bias, **like),
    )


def _put(model: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """All tensors of the file into the module, shared ones under the name that the module knows."""
    own = dict(model.named_parameters(remove_duplicate=False))
    first = {id(p): n for n, p in model.named_parameters()}
    known = {n: first[id(p)] for n, p in own.items()}
    named = {known.get(name, name): t for name, t in tensors.items()}
    missing = set(first.values()) - set(named)
    foreign = {n.rpartition(".")[0] for n in named} - set(dict(model.named_modules()))
    if missing or foreign:
        what = f"lacks {min(missing)!r}" if missing else f"has weights for {min(foreign)!r}, which the model lacks"
        raise ControlError(f"{path} {what}: it belongs to another model.")
    set_tensors(model, named)
