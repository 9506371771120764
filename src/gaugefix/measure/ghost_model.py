"""The loss as a function of ghosts: units of zero size added to a class of a copy of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.errors import MeasurementError
from gaugefix.measure.perexample import LossModule
from gaugefix.measure.settle import first_samples
from gaugefix.measure.widening import scaled_scores, widened_copy
from gaugefix.symmetry import Slice, Units
from gaugefix.symmetry.units import Role
from gaugefix.task import Batch, Task

_SAME = 1e-9  # relative change of the losses by widening, in float64
_SAME_SINGLE = 1e-5


class GhostModel:
    """A task whose model has ``n`` ghosts in every fiber of a class.

    Args:
        copy: from `exact_copy`.
        model: a model with the ghosts in it, at zero.
        slices: of the ghosts alone, ``(fibers, n, entries)``.
        score_scale: see `gaugefix.measure.widening.Wide`.
        max_samples: stop after the batch that reaches this number.

    Attributes:
        shape: ``(fibers, n, d)`` of the coordinates, d entries for each ghost in the order of the slices.
        n_samples: number of samples.
        score_scale: as given.
    """

    def __init__(
        self,
        copy: Task,
        model: nn.Module,
        slices: Sequence[Slice],
        *,
        score_scale: float = 1.0,
        max_samples: int = 4096,
    ) -> None:
        self._batches = list(first_samples(copy, max_samples))
        self.score_scale = score_scale
        self.module = LossModule(model, copy.loss)
        self.params = {k: p.detach() for k, p in model.named_parameters()}
        self.slices = tuple(slices)
        blocks = [s.take(self.params[s.param]) for s in self.slices]
        self._blocks = [b.shape for b in blocks]
        self._sizes = [math.prod(b[2:]) for b in self._blocks]
        self.shape = (*self._blocks[0][:2], sum(self._sizes))
        self.dtype, self.device = blocks[0].dtype, blocks[0].device
        self.n_samples = len(self.each(self.zero()))

    @classmethod
    def widened(cls, copy: Task, units: Units, n: int, *, max_samples: int = 4096) -> GhostModel:
        """Ghosts in a widened copy of the model.

        Args:
            copy: from `exact_copy`.
            units: the class.
            n: ghosts in each fiber.
            max_samples: stop after the batch that reaches this number.

        Returns:
            The ghost model.

        Raises:
            MeasurementError: if the model cannot be widened: it does not run, or computes something else.
        """
        batch = copy.first_batch()
        with torch.no_grad():
            here = copy.loss(copy.model, batch)
        wide = widened_copy(copy.model, units, n)
        change = _change(copy, wide.model, batch, here)
        if change and not units.outgoing:
            wide = scaled_scores(wide, units)
            change = _change(copy, wide.model, batch, here)
        if change:
            raise MeasurementError(f"{units.name}: {change}")
        slices = wide.growth.added.slices
        return cls(copy, wide.model, slices, score_scale=wide.score_scale, max_samples=max_samples)

    def columns(self, role: Role) -> np.ndarray:
        """Positions of the entries of one role among the d coordinates of a ghost."""
        at = np.concatenate([[0], np.cumsum(self._sizes)])
        parts = [np.arange(at[i], at[i + 1]) for i, s in enumerate(self.slices) if s.role == role]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=int)

    def zero(self) -> Tensor:
        """Coordinates of ghosts of zero size."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def losses(self, z: Tensor) -> Iterator[Tensor]:
        """Per-sample losses of every batch with the ghosts at ``z``.

        Args:
            z: ``(fibers, n, d)``.

        Yields:
            ``(batch,)``; differentiable in z.
        """
        params = dict(self.params)
        for s, shape, part in zip(self.slices, self._blocks, z.split(self._sizes, dim=2), strict=True):
            params[s.param] = s.put(params[s.param], part.reshape(shape))
        named = {f"model.{k}": p for k, p in params.items()}
        with sdpa_kernel(SDPBackend.MATH):
            for batch in self._batches:
                yield functional_call(self.module, named, (batch,))

    def mean(self, z: Tensor) -> Tensor:
        """The mean loss."""
        return torch.stack([part.sum() for part in self.losses(z)]).sum() / self.n_samples

    def gradient(self, z: Tensor) -> Tensor:
        """Gradient of the mean loss at ``z``."""
        at = z.detach().requires_grad_()
        return torch.autograd.grad(self.mean(at), at)[0]

    def each(self, z: Tensor) -> Tensor:
        """Per-sample losses, ``(n_samples,)``."""
        with torch.no_grad():
            return torch.cat(list(self.losses(z)))


def _change(copy: Task, model: nn.Module, batch: Batch, here: Tensor) -> str:
    """Why a widened model is not the same function, or ""."""
    try:
        with torch.no_grad():
            there = copy.loss(model, batch)
    except Exception as error:  # a module with a built-in size raises whatever its operations raise
        first = str(error).strip().splitlines()
        return f"the model does not run at another width ({first[0][:80] if first else type(error).__name__})"
    bar = _SAME if here.dtype == torch.float64 else _SAME_SINGLE
    change = float((there - here).norm() / here.norm().clamp(min=1e-30))
    return "" if change <= bar else f"the widened model computes something else (relative change {change:.1e})"
