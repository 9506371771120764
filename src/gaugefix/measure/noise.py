"""Gradient noise: moments of the per-sample gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy, sample_shapes
from gaugefix.measure.perexample import Moments, add_moments, ghost_layouts, trainable
from gaugefix.measure.records import Record
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
        method: "ghost norms", "vmap" or "loop".
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
        The moments. Cost: one forward and backward pass for a stack of Linear layers (ghost norms), else the
        gradients of all samples by vmap in chunks, else one backward pass per sample.

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
    moments = collect_moments(exact_copy(task), max_samples=max_samples, seed=seed)
    return _summary(moments, task)


def collect_moments(copy: Task, *, max_samples: int = 2048, seed: int = 0, diagonal: bool = False) -> Moments:
    """Sums over the samples of their gradients and squared gradients.

    Args:
        copy: from `exact_copy`.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.
        diagonal: also of the squares of every entry.

    Returns:
        The sums.
    """
    moments = Moments(diagonal={} if diagonal else None)
    layouts: dict[tuple[torch.Size, ...], dict[str, tuple[int, ...]]] = {}
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        for batch in copy.batch_iter(seed):
            shape = sample_shapes(batch)
            if shape not in layouts:
                layouts[shape] = ghost_layouts(copy, batch)
            add_moments(copy, batch, moments, layouts[shape])
            if moments.count >= max_samples:
                break
    return moments


def _summary(moments: Moments, task: Task) -> GradientNoise:
    n, names = moments.count, trainable(task.model)
    squares = {k: torch.cat(parts) for k, parts in moments.squares.items()}
    per_sample = torch.stack(list(squares.values())).sum(0)
    mean_sq = {k: float((t / n).square().sum()) for k, t in moments.total.items()}
    groups = tuple(_group(k, float(squares[k].mean()), mean_sq[k], task.batch_size) for k in names)
    total = _group("total", float(per_sample.mean()), sum(mean_sq.values()), task.batch_size)
    stderr = float(per_sample.std()) / math.sqrt(n) if n > 1 else math.nan
    return GradientNoise(groups, total, n, stderr, task.lr / task.batch_size, ", ".join(moments.methods))


def _group(name: str, mean_of_squares: float, mean_sq: float, batch_size: int) -> NoiseGroup:
    trace = max(0.0, mean_of_squares - mean_sq)
    return NoiseGroup(name, trace, mean_sq, mean_sq * batch_size / trace if trace > 0 else math.nan)
