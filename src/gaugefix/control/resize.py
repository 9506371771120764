"""Resizing a module in place: parameters, buffers and the attributes that say how wide it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice
from typing import Any

from torch import Tensor, nn

from gaugefix.errors import ControlError

#: names of attributes that count units of a class, of the stream around it, and of attributes that count no units
_WIDTH = re.compile(r"head|dim|size|channel|feature|hidden|width|group|inner|unit|expert|planes|^n_|^d_|^num_")
_OTHER = re.compile(r"embed|hidden_size|d_model|layer|idx|index|depth|length|position|vocab")
_INDEX = re.compile(r"idx|index|layer|depth|seed")


def _linear(m: Any) -> dict[str, object]:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _conv(m: Any) -> dict[str, object]:
    rows, columns = m.weight.shape[:2]
    if m.transposed:
        return {"in_channels": rows, "out_channels": columns * m.groups}
    if m.groups > 1 and columns == 1 and m.groups == m.in_channels:  # depthwise: the groups are the channels
        groups = rows // max(m.out_channels // m.in_channels, 1)
        return {"groups": groups, "in_channels": groups, "out_channels": rows}
    return {"out_channels": rows, "in_channels": columns * m.groups}


def _features(m: Any) -> dict[str, object]:
    like = m.weight if m.weight is not None else m.running_mean
    return {} if like is None else {"num_features": len(like)}


def _normalized(m: Any) -> dict[str, object]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


def _group_norm(m: Any) -> dict[str, object]:
    return {} if m.weight is None else {"num_channels": len(m.weight)}


def _embedding(m: Any) -> dict[str, object]:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


def _bilinear(m: Any) -> dict[str, object]:
    out, first, second = m.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


#: attributes of a module that follow from the shapes of its parameters; the first type that fits counts
ATTRIBUTES: tuple[tuple[type[nn.Module], Callable[[Any], dict[str, object]]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _conv),
    (nn.modules.batchnorm._NormBase, _features),
    (nn.LayerNorm, _normalized),
    (nn.RMSNorm, _normalized),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.Bilinear, _bilinear),
    (nn.PReLU, lambda m: {"num_parameters": m.weight.numel()}),
)


def width_attributes(module: nn.Module) -> dict[str, object]:
    """Attributes of one module as the shapes of its parameters have them.

    Args:
        module: of a type in `ATTRIBUTES`, or with the attributes ``nx`` and ``nf`` of transformers' Conv1D.

    Returns:
        Names and values; empty for other modules.

    Example:
        >>> width_attributes(nn.Linear(3, 5))
        {'out_features': 5, 'in_features': 3}
    """
    for kind, attributes in ATTRIBUTES:
        if isinstance(module, kind):
            return attributes(module)
    weight = getattr(module, "weight", None)
    if hasattr(module, "nx") and hasattr(module, "nf") and isinstance(weight, Tensor):
        return {"nx": weight.shape[0], "nf": weight.shape[1]}
    return {}


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by tensors of any shape, wherever they are shared, and update the attributes.

    Args:
        model: changed in place.
        tensors: by dotted name; a name that does not exist becomes a new parameter (a bias that was None).

    Raises:
        ControlError: if the module of a name does not exist.
    """
    known = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()]}
    swap: dict[int, Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, new in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner not in modules:
            raise ControlError(f"There is no module {owner!r} to hold {name!r}.")
        old = known.get(name)
        if isinstance(old, nn.Parameter) or old is None:
            value: Tensor = nn.Parameter(new.detach().clone(), requires_grad=old is None or old.requires_grad)
        else:
            value = new.detach().clone()
        if old is None:
            modules[owner].register_parameter(leaf, value)
        else:
            swap[id(old)] = value
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for leaf, old in table.items():
                if old is not None and id(old) in swap:
                    table[leaf] = swap[id(old)]  # type: ignore[assignment]
        for attribute, width in width_attributes(module).items():
            if getattr(module, attribute, width) != width:
                setattr(module, attribute, width)


def attribute_edits(
    model: nn.Module, params: list[str], widths: Mapping[int, int], *, most: int = 24
) -> Iterator[dict[tuple[str, str], int]]:
    """Ways to tell the modules around some parameters that a width has changed.

    A forward pass of one's own may read a width from an integer attribute (``num_heads``, ``head_dim``, …). Which one
    it reads cannot be seen, but it can be tried: every set of integer attributes, of the modules that hold the
    parameters and of their parents, whose value is the old width. Attributes that are named like a width of a class
    of units come first, all together; then none, then others in growing numbers.

    Args:
        model: the module.
        params: names of the parameters that changed.
        widths: new width by old one.
        most: upper limit of sets.

    Yields:
        ``{(module name, attribute): new value}``, no set twice.
    """
    modules = dict(model.named_modules())
    owners: dict[str, None] = {}
    for name in params:
        owner = name.rpartition(".")[0]
        for _ in range(3):
            owners[owner] = None
            owner = owner.rpartition(".")[0]
    found: list[tuple[tuple[str, str], int]] = []
    for owner in owners:
        module = modules.get(owner)
        if module is None or width_attributes(module):
            continue
        for attribute, value in vars(module).items():
            if type(value) is int and value in widths and not attribute.startswith("_"):
                found.append(((owner, attribute), widths[value]))
    likely = {key: value for key, value in found if _WIDTH.search(key[1]) and not _OTHER.search(key[1])}
    found = [item for item in found if not _INDEX.search(item[0][1])]
    seen: list[dict[tuple[str, str], int]] = []
    subsets = (dict(chosen) for size in range(1, len(found) + 1) for chosen in combinations(found, size))
    for edits in (likely, {}, dict(found), *islice(subsets, most)):
        if edits not in seen:
            seen.append(edits)
            yield edits


def set_attributes(model: nn.Module, edits: Mapping[tuple[str, str], int]) -> None:
    """Apply one of `attribute_edits`.

    Args:
        model: changed in place.
        edits: values by module name and attribute.
    """
    for (owner, attribute), value in edits.items():
        setattr(model.get_submodule(owner), attribute, value)
