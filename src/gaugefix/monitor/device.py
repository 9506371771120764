"""What happens on the device: fused norms, and one transfer for everything that a logging step needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaugefix.monitor.shards import add_up, local_part

Params = Mapping[str, Tensor]
Optimizers = Sequence[torch.optim.Optimizer]


class Packet:
    """Tensors that make the way to the processor together."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, Tensor]] = []

    def add(self, name: str, *tensors: Tensor) -> None:
        """Take tensors along under a name; none is an empty array."""
        self._parts += [(name, t.detach().reshape(-1)) for t in tensors]
        self._parts += [(name, torch.zeros(0))] * (not tensors)

    def open(self) -> dict[str, np.ndarray]:
        """The only wait for the device: everything as flat float64 arrays."""
        home = next((t.device for _, t in self._parts if t.device.type != "cpu"), torch.device("cpu"))
        wide = home.type != "mps" and any(t.dtype == torch.float64 for _, t in self._parts)
        dtype = torch.float64 if wide else torch.float32
        flat = torch.cat([t.to(home, dtype) for _, t in self._parts]).cpu().double().numpy()
        out: dict[str, list[np.ndarray]] = {}
        at = 0
        for name, t in self._parts:
            out.setdefault(name, []).append(flat[at : at + len(t)])
            at += len(t)
        return {name: np.concatenate(parts) for name, parts in out.items()}


def signature(params: Params) -> dict[str, tuple[Any, ...]]:
    """Shape, type, place and layout of every parameter: what a plan of sums depends on."""
    return {n: (tuple(p.shape), p.dtype, p.device, type(p.data)) for n, p in params.items()}


def momenta(params: Params, optimizers: Optimizers) -> dict[str, Tensor | None]:
    """Momentum buffers by parameter name, None before the first step."""
    states = {id(p): s for o in optimizers for p, s in o.state.items()}
    return {n: states.get(id(p), {}).get("momentum_buffer") for n, p in params.items()}


def squares(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Squared norm of every tensor in their order, by fused kernels; one entry of the list, or none."""
    if not tensors:
        return []
    groups: dict[Any, list[tuple[int, Tensor]]] = {}
    for i, t in enumerate(tensors.values()):
        part = local_part(t.detach())
        dense = part.tensor.to_dense() if part.tensor.is_sparse else part.tensor
        groups.setdefault((part.spread, dense.dtype, dense.device), []).append((i, dense))
    order: list[int] = []
    parts: list[Tensor] = []
    home = next(iter(groups))[2]
    for (spread, dtype, _), members in groups.items():
        wide = torch.float32 if dtype in {torch.float16, torch.bfloat16} else None
        norms = torch._foreach_norm([t for _, t in members], 2, dtype=wide)
        parts.append(add_up(torch.stack(norms).square(), spread).to(home))
        order += [i for i, _ in members]
    flat = torch.cat([s.real if s.is_complex() else s for s in parts])
    return [flat[torch.tensor(np.argsort(order), device=flat.device)] if len(parts) > 1 else flat]
