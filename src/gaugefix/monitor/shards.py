"""Tensors that are spread over processes: the local part, where it lies in the whole, and sums over all of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Local:
    """What one process holds of a tensor.

    Attributes:
        tensor: the local part; the tensor itself if it is not spread.
        offsets: where it starts in every dimension of the whole.
        spread: mesh and placements over which sums have to be added up; None if every process has all of it.
    """

    tensor: Tensor
    offsets: tuple[int, ...]
    spread: tuple[Any, tuple[Any, ...]] | None = None


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor; without importing what would be needed to make one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Local:
    """The part that this process holds; a layout without simple blocks is gathered.

    Args:
        tensor: plain or DTensor (FSDP2, tensor parallel).

    Returns:
        The part.
    """
    if not is_distributed(tensor):
        return Local(tensor, (0,) * tensor.ndim)
    from torch.distributed.tensor import Replicate, Shard

    d: Any = tensor
    if not all(type(p) in {Replicate, Shard} for p in d.placements):
        whole = d.full_tensor()
        return Local(whole, (0,) * whole.ndim)
    if all(type(p) is Replicate for p in d.placements):
        return Local(d.to_local(), (0,) * tensor.ndim)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(d.shape, d.device_mesh, d.placements)
    return Local(d.to_local(), tuple(int(o) for o in offsets), (d.device_mesh, tuple(d.placements)))


def add_up(vector: Tensor, spread: tuple[Any, tuple[Any, ...]] | None) -> Tensor:
    """Sum the local contributions of all processes; one collective.

    Args:
        vector: what this process contributes.
        spread: as in `Local`.

    Returns:
        The sum, the same on every process.
    """
    if spread is None:
        return vector
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh, placements = spread
    kinds = [Partial() if isinstance(p, Shard) else p for p in placements]
    return torch.as_tensor(DTensor.from_local(vector, mesh, kinds, run_check=False).full_tensor())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on this process; gathers a DTensor (every process must call it)."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def is_first_process() -> bool:
    """Whether this process writes: rank 0, or there is only one."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
