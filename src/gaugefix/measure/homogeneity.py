"""Whether a model is homogeneous in its parameters, and of which degree (arXiv 2512.21447)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure.classes import exact_copy, map_tensors
from gaugefix.measure.records import Record
from gaugefix.task import Task

_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Homogeneity(Record):
    """Degree k of a model that is homogeneous in its trainable parameters, f(cθ) = c^k f(θ).

    Attributes:
        degree: slope of log‖f(cθ)‖ over log c, nan if the output vanishes.
        residual: largest relative deviation ‖f(cθ) − c^k f(θ)‖/‖c^k f(θ)‖ over the scales, k rounded if that is near.
        homogeneous: whether the residual is below 1e-8.
        scales: values of c.
    """

    degree: float
    residual: float
    homogeneous: bool
    scales: tuple[float, ...]


def homogeneity_degree(task: Task, *, scales: Sequence[float] = (0.5, 0.8, 1.25, 2.0)) -> Homogeneity:
    """Degree of homogeneity of a model's output in its trainable parameters, f(cθ) = c^k f(θ).

    A bias-free ReLU network of depth D has k = D; biases, norms with shifts and tanh make it inhomogeneous.

    Args:
        task: gives the model and one batch of inputs.
        scales: values of c to try.

    Returns:
        The degree with its residual. Cost: one forward pass per scale.

    Raises:
        MeasurementError: if a scale is not positive, or is 1.

    Warns:
        ValidityWarning: if the model is not homogeneous: then the degree is a slope and no more.
    """
    if not scales or any(not c > 0 or c == 1 for c in scales):
        raise MeasurementError(f"homogeneity_degree: scales must be positive and not 1, got {tuple(scales)!r}.")
    copy = exact_copy(task)
    inputs = copy.inputs(copy.first_batch())
    params = {k: p.detach() for k, p in copy.model.named_parameters() if p.requires_grad}

    def output(c: float) -> np.ndarray:
        found: list[Tensor] = []
        with torch.no_grad():
            result = functional_call(copy.model, {k: c * p for k, p in params.items()}, inputs)
        map_tensors(found.append, result if isinstance(result, Tensor | tuple | list | dict) else vars(result))
        return torch.cat([t.double().reshape(-1) for t in found if t.is_floating_point()]).cpu().numpy()

    base, moved = output(1.0), {c: output(c) for c in scales}
    norm = float(np.linalg.norm(base))
    if norm == 0 or any(not np.linalg.norm(m) > 0 for m in moved.values()):
        return Homogeneity(math.nan, math.nan, False, tuple(scales))
    logs = np.array([[math.log(c), math.log(float(np.linalg.norm(m)) / norm)] for c, m in moved.items()])
    degree = float((logs[:, 0] @ logs[:, 1]) / (logs[:, 0] @ logs[:, 0]))
    degree = float(round(degree)) if abs(degree - round(degree)) < 1e-6 else degree
    residual = max(float(np.linalg.norm(m - c**degree * base)) / (c**degree * norm) for c, m in moved.items())
    if residual >= _TOLERANCE:
        warnings.warn(
            f"homogeneity_degree: not homogeneous, f(cθ) differs from c^{degree:.3g} f(θ) by {residual:.1e}.",
            ValidityWarning,
            stacklevel=2,
        )
    return Homogeneity(degree, residual, residual < _TOLERANCE, tuple(scales))
