"""Linear layers of low rank as two thin ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from gaugefix.control.folding.thresholds import threshold


def factor_linears(
    model: nn.Module, tolerance: float | None, eps: float, accept: Callable[[nn.Module], str]
) -> tuple[nn.Module, list[str], dict[str, str]]:
    """Replace every Linear of rank r with r(in + out) < in·out by Linear(in, r) and Linear(r, out).

    Args:
        model: left as it is.
        tolerance: singular values below this part of the largest count as zero; None looks for a gap.
        eps: rounding unit of the model's own precision.
        accept: says why a candidate is not to be had, or "".

    Returns:
        The new model, names of the layers that were replaced, and why others were not.
    """
    done: list[str] = []
    left: dict[str, str] = {}
    shared = _shared(model)
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or not name:
            continue
        pair = _thin_pair(module, tolerance, eps)
        if pair is None:
            continue
        if id(module.weight) in shared:
            left[name] = "its weight has low rank, but is tied to another layer's"
            continue
        candidate = copy.deepcopy(model)
        candidate.set_submodule(name, pair)
        reason = accept(candidate)
        if reason:
            left[name] = f"of low rank, but not as two layers: {reason}"
        else:
            model = candidate
            done.append(name)
    return model, done, left


def _shared(model: nn.Module) -> set[int]:
    """Parameters that occur under two names."""
    seen: dict[int, int] = {}
    for _, p in model.named_parameters(remove_duplicate=False):
        seen[id(p)] = seen.get(id(p), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _thin_pair(layer: nn.Linear, tolerance: float | None, eps: float) -> nn.Sequential | None:
    """The two layers, balanced, if they have fewer parameters than the one."""
    weight = layer.weight.detach()
    out, into = weight.shape
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    values = np.asarray(s.cpu())
    if not len(values) or values[0] == 0:
        return None
    rank = max(int((values > threshold(values, tolerance, eps * max(into, out) ** 0.5) * values[0]).sum()), 1)
    if rank * (into + out) >= into * out:
        return None
    like = {"dtype": weight.dtype, "device": weight.device}
    first = nn.Linear(into, rank, bias=False, **like)
    second = nn.Linear(rank, out, bias=layer.bias is not None, **like)
    root = s[:rank].sqrt()
    with torch.no_grad():
        first.weight.copy_(root[:, None] * vt[:rank])
        second.weight.copy_(u[:, :rank] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    pair = nn.Sequential(first, second).train(layer.training)
    return pair.requires_grad_(layer.weight.requires_grad)
