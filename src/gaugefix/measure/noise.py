"""Gradient noise: moments of the per-sample gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy, units_of
from gaugefix.measure.moments import collect_moments
from gaugefix.measure.perexample import Moments, trainable
from gaugefix.measure.records import Record
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task


@dataclass(frozen=True)
class NoiseGroup(Record):
    """Moments of the per-sample gradients ∇ℓᵢ of a group of parameters.

    Attributes:
        name: of the parameter, or "total".
        trace: Tr C = mean ‖∇ℓᵢ‖² − ‖mean ∇ℓᵢ‖², for batch size 1.
        mean_sq: ‖∇L‖², squared norm of the mean gradient, without weight decay.
        snr: signal-to-noise ratio of one minibatch, ‖∇L‖² / (Tr C / batch_size); nan if there is no noise.
    """

    name: str
    trace: float
    mean_sq: float
    snr: float


@dataclass(frozen=True)
class GradientNoise(Record):
    """Gradient noise of a model at its present parameters.

    Attributes:
        groups: one per trainable parameter.
        total: all of them.
        n_samples: number of samples used.
        stderr: standard error of ``total.trace`` over the samples.
        temperature: lr / batch_size.
        method: "ghost norms", "vmap" or "loop", joined by ", " where parameters went different ways.
    """

    groups: tuple[NoiseGroup, ...]
    total: NoiseGroup
    n_samples: int
    stderr: float
    temperature: float
    method: str


def gradient_noise(task: Task, *, max_samples: int = 2048, seed: int = 0) -> GradientNoise:
    """Trace of the gradient covariance, Tr C = (1/n) Σ ‖∇ℓᵢ‖² − ‖∇L‖², in total and for every parameter.

    C is the covariance of the gradients of single samples (batch size 1) without weight decay; a minibatch of S has
    C/S (arXiv 2102.05375, E0). The average is over the samples used, so the numbers are exact when ``max_samples``
    covers the data; below that ‖∇L‖² is high by about Tr C / n. The model is evaluated in evaluation mode: dropout
    and the coupling of samples by batch norm are left out.

    Args:
        task: gives model, loss, data, lr and batch size.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The moments. Cost: about one forward and backward pass where the norms can be read off the autograd graph
        (matrix products, convolutions, embeddings, norms, attention, what is added or multiplied entry by entry, and
        weights that are used several times); for the parameters of other operations the gradients of all samples by
        vmap in chunks, else one backward pass per sample. Every parameter's norms are held against backward passes
        of single samples before they are used, once for a task.

    Raises:
        MeasurementError: if no parameter is trainable or ``max_samples`` < 1.

    Example:
        >>> from gaugefix import load_task
        >>> noise = gradient_noise(load_task("digits-mlp"), max_samples=480)
        >>> noise.n_samples, noise.method
        (480, 'ghost norms')
    """
    if max_samples < 1:
        raise MeasurementError(f"gradient_noise: max_samples must be at least 1, got {max_samples!r}.")
    if not trainable(task.model):
        raise MeasurementError(f"gradient_noise: no parameter of task {task.name!r} has requires_grad=True.")
    moments = collect_moments(exact_copy(task, read_only=True), max_samples=max_samples, seed=seed)
    return _summary(moments, task)


@dataclass(frozen=True, eq=False)
class UnitNoise(Record):
    """Gradient noise of every unit of a class (n = fibers * size), for batch size 1.

    Attributes:
        name: of the class.
        incoming: ``(n,)`` trace of the covariance over the incoming slices of the unit.
        outgoing: ``(n,)`` over its outgoing slices.
        gains: ``(n,)`` over its gains and shifts.
        incoming_mean_sq: ``(n,)`` squared norm of the mean gradient of the incoming slices.
        outgoing_mean_sq: ``(n,)`` of the outgoing slices.
        n_samples: number of samples used.
    """

    name: str
    incoming: np.ndarray
    outgoing: np.ndarray
    gains: np.ndarray
    incoming_mean_sq: np.ndarray
    outgoing_mean_sq: np.ndarray
    n_samples: int


def unit_noise(
    task: Task, symmetries: Symmetries | Sequence[Units], *, max_samples: int = 2048, seed: int = 0
) -> tuple[UnitNoise, ...]:
    """Trace of the gradient covariance of every unit, Tr C_w and Tr C_u of its two sides (arXiv 2308.06671).

    A unit whose two sides can be rescaled is in balance where Tr C_u = Tr C_w.

    Args:
        task: gives model, loss and data.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        One entry per class whose parameters are all trainable. Cost: `gradient_noise` and, where inputs have
        positions, the gradients of single samples in small blocks.
    """
    moments = collect_moments(exact_copy(task, read_only=True), max_samples=max_samples, seed=seed, diagonal=True)
    n, found = moments.count, []
    mean_sq = {k: (t / n).square() for k, t in moments.total.items()}
    trace = {k: (d / n - mean_sq[k]).clamp(min=0) for k, d in (moments.diagonal or {}).items()}
    for u in units_of(symmetries):
        if not u.slices or any(p not in trace for p in u.parameters):
            continue
        sides = [u.rows(trace, role).sum(1).double().cpu().numpy() for role in ("write", "read", "gain")]
        means = [u.rows(mean_sq, role).sum(1).double().cpu().numpy() for role in ("write", "read")]
        found.append(UnitNoise(u.name, sides[0], sides[1], sides[2], means[0], means[1], n))
    return tuple(found)


def _summary(moments: Moments, task: Task) -> GradientNoise:
    n, names = moments.count, list(trainable(task.model))
    squares = torch.stack([torch.cat(moments.squares[k]) for k in names])  # (parameters, n)
    norms = torch.stack([torch.linalg.vector_norm(moments.total[k]) for k in names])
    mean_sq = [(norm / n) ** 2 for norm in norms.tolist()]
    per_sample = squares.sum(0)
    found = zip(names, squares.mean(1).tolist(), mean_sq, strict=True)
    groups = tuple(_group(k, mean, square, task.batch_size) for k, mean, square in found)
    total = _group("total", float(per_sample.mean()), sum(mean_sq), task.batch_size)
    stderr = float(per_sample.std()) / math.sqrt(n) if n > 1 else math.nan
    return GradientNoise(groups, total, n, stderr, task.lr / task.batch_size, ", ".join(moments.methods))


def _group(name: str, mean_of_squares: float, mean_sq: float, batch_size: int) -> NoiseGroup:
    trace = max(0.0, mean_of_squares - mean_sq)
    return NoiseGroup(name, trace, mean_sq, mean_sq * batch_size / trace if trace > 0 else math.nan)
