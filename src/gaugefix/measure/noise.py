"""Gradient noise: moments of the per-sample gradients."""

from __future__ import annotations

from dataclasses import dataclass

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
    """(being built)."""
    raise NotImplementedError
