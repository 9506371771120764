"""The ends of the Hessian's spectrum, of all parameters or of a block of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import ConvergenceWarning, MeasurementError
from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.eigenpairs import Which, extreme_eigenpairs
from gaugefix.measure.records import Record
from gaugefix.symmetry import Units
from gaugefix.task import Task

_RESIDUAL = 1e-6


@dataclass(frozen=True, eq=False)
class HessianExtremes(Record):
    """Eigenvalues at one end of the spectrum of the data-loss Hessian, or of a block of it.

    Attributes:
        which: "LA", "SA" or "LM".
        block: names of the parameters, or of the class of units; "all" for everything.
        eigenvalues: ``(k,)``, the most extreme first.
        residuals: ``(k,)`` ‖Hv − hv‖ relative to the largest |h| found; an eigenvalue lies within that of each.
        residual: the largest of them.
        converged: whether all that were asked for were found with residuals below 1e-6.
        hvps: Hessian-vector products used.
        size: dimension of the block.
        n_samples: number of samples in the loss.
        eigenvectors: ``(size, k)`` columns in the order of the block, see `tangents`.
    """

    which: str
    block: str
    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    residual: float
    converged: bool
    hvps: int
    size: int
    n_samples: int
    eigenvectors: Float[np.ndarray, "size k"] = field(repr=False)
    masks: Mapping[str, Tensor] = field(repr=False)

    def tangents(self) -> list[dict[str, Tensor]]:
        """The eigenvectors by parameter name.

        Returns:
            One dictionary per eigenvalue; zero outside the block.
        """
        return [_unpack(v, self.masks) for v in self.eigenvectors.T]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the eigenvectors.

        Returns:
            One key per other field.
        """
        return {k: v for k, v in super().to_dict().items() if k not in {"eigenvectors", "masks"}}


def hessian_extremes(
    task: Task | HessianOperator,
    *,
    which: Which = "LA",
    k: int = 1,
    block: Iterable[str] | Units | None = None,
    max_samples: int = 2048,
    seed: int = 0,
) -> HessianExtremes:
    """Extreme eigenvalues of the Hessian of the mean data loss (without weight decay), by Lanczos.

    With a block, those of its diagonal block H_bb, the curvature when nothing else moves.

    Args:
        task: gives model, loss and data; or an operator that is there already.
        which: "LA" largest (sharpness), "SA" smallest (the direction of escape from a saddle), "LM" largest modulus.
        k: how many.
        block: names of parameters, or a class of units (every entry of its slices); default all parameters.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the start vector.

    Returns:
        The eigenvalues with residuals. Lanczos starts from one vector: an eigenvalue of multiplicity m may be found
        once. Cost: a few tens of HVPs; blocks up to 64 entries are formed.

    Raises:
        MeasurementError: if ``which`` or ``k`` is out of range, or the block names no trainable parameter.

    Warns:
        ConvergenceWarning: if the residuals are too large.

    Example:
        >>> from torch import nn
        >>> class Saddle(nn.Module):  # the spectrum is -10, 2
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(2))
        ...     def forward(self, x):
        ...         return x * (self.w[1] ** 2 - 5 * self.w[0] ** 2)
        >>> task = Task(Saddle(), lambda m, b: m(b), lambda: [torch.ones(4)],
        ...             lr=0.1, weight_decay=0.0, batch_size=4)
        >>> [float(hessian_extremes(task, which=w).eigenvalues[0]) for w in ("LA", "SA", "LM")]
        [2.0, -10.0, -10.0]
    """
    if which not in {"LA", "SA", "LM"}:
        raise MeasurementError(f"hessian_extremes: which must be 'LA', 'SA' or 'LM', got {which!r}.")
    h = task if isinstance(task, HessianOperator) else HessianOperator(task, max_samples=max_samples, seed=seed)
    name, masks = _block(h, block)
    size = sum(int(m.sum()) for m in masks.values())
    if not 1 <= k <= size:
        raise MeasurementError(f"hessian_extremes: k must be between 1 and {size}, the size of the block, got {k!r}.")
    used = 0

    def product(z: np.ndarray) -> np.ndarray:
        nonlocal used
        used += 1
        image = h @ _unpack(z, masks)
        return torch.cat([image[n][m] for n, m in masks.items()]).double().cpu().numpy()

    values, vectors, residuals = extreme_eigenpairs(product, size, k, which, seed=seed)
    residual = float(residuals.max())
    converged = len(values) == k and residual < _RESIDUAL
    if not converged:
        warnings.warn(
            f"hessian_extremes: {len(values)} of {k} eigenvalues, residual {residual:.1e} after {used} products.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return HessianExtremes(which, name, values, residuals, residual, converged, used, size, h.n_samples, vectors, masks)


def lambda_min(task: Task, *, max_samples: int = 2048, seed: int = 0) -> tuple[float, float]:
    """The lowest eigenvalue of the whole data-loss Hessian, by Lanczos.

    Args:
        task: gives model, loss and data.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the start vector.

    Returns:
        The eigenvalue and its relative residual ‖Hv − hv‖ / |h|.
    """
    found = hessian_extremes(task, which="SA", max_samples=max_samples, seed=seed)
    return float(found.eigenvalues[0]), found.residual


def _block(h: HessianOperator, block: Iterable[str] | Units | None) -> tuple[str, dict[str, Tensor]]:
    """Name of a block and the mask of its entries in every parameter it has some of."""
    shapes = {k: g for k, g in h.gradient().items()}
    if block is None:
        return "all", {k: torch.ones_like(g, dtype=torch.bool) for k, g in shapes.items()}
    names = list(block.parameters) if isinstance(block, Units) else [block] if isinstance(block, str) else list(block)
    missing = [n for n in names if n not in shapes]
    if missing or not names:
        raise MeasurementError(
            f"hessian_extremes: {(missing or names)!r} is not in the trainable parameters {', '.join(shapes)}."
        )
    if not isinstance(block, Units):
        return ", ".join(names), {n: torch.ones_like(shapes[n], dtype=torch.bool) for n in dict.fromkeys(names)}
    masks = {n: torch.zeros_like(shapes[n], dtype=torch.bool) for n in names}
    for s in block.slices:
        masks[s.param] = s.put(masks[s.param], torch.ones_like(s.take(masks[s.param])))
    return block.name, masks


def _unpack(z: np.ndarray, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector over the block as tensors by name."""
    parts = torch.as_tensor(z, dtype=torch.float64).split([int(m.sum()) for m in masks.values()])
    out = {n: torch.zeros(m.shape, dtype=torch.float64, device=m.device) for n, m in masks.items()}
    for (n, m), part in zip(masks.items(), parts, strict=True):
        out[n][m] = part.to(m.device)
    return out
