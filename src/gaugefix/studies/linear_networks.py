"""SGD on many deep linear networks at once, for studies that need its stationary state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def train_linear(
    weights: Sequence[Tensor],
    signal: Tensor,
    input_root: Tensor,
    noise_root: Tensor,
    *,
    lr: float | Tensor,
    batch: int,
    steps: int,
    seeds: tuple[int, ...],
    every: int = 0,
    watch: Callable[[list[Tensor]], Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Online SGD on ½‖y − W_D…W₁x‖², y = Vx + ε, with fresh Gaussian samples in every step.

    Weights are ``(cells, seeds, replicas, out, in)``. All cells see the same stream of samples, replicas and seeds
    streams of their own; a gradient needs only the batch's x xᵀ and ε xᵀ. With ``batch`` 0 it is gradient descent on
    the expected loss.

    Args:
        weights: W₁, …, W_D at the start.
        signal: V, one for all cells or ``(cells, 1, 1, d_y, d_x)``.
        input_root: √Σ_x.
        noise_root: √Σ_ε, for each cell ``(cells, 1, 1, d_y, d_y)`` or for all.
        lr: learning rate, or one for each cell ``(cells, 1, 1, 1, 1)``.
        batch: samples per step.
        steps: how many.
        seeds: of the data, one per second dimension.
        every: steps between two records; none if 0.
        watch: what to record, ``(cells, seeds, replicas)`` of the weights.

    Returns:
        The weights at the end, and the records along a new first dimension.
    """
    replicas, (n_out, n_in) = weights[0].shape[2], signal.shape[-2:]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    moment, cross = input_root @ input_root, torch.zeros(n_out, n_in, dtype=signal.dtype)
    weights, records = list(weights), []
    for step in range(1, steps + 1):
        if batch:
            drawn = torch.stack([
                torch.randn(replicas, n_in + n_out, batch, generator=g, dtype=signal.dtype) for g in generators
            ])
            x = input_root @ drawn[:, :, :n_in]
            moment, cross = x @ x.mT / batch, drawn[:, :, n_in:] @ x.mT / batch
        below = [weights[0]]  # W_k…W₁
        for w in weights[1:-1]:
            below.append(w @ below[-1])
        slope = (weights[-1] @ below[-1] - signal) @ moment - noise_root @ cross
        gradients = []
        for k in range(len(weights) - 1, -1, -1):
            gradients.append(slope @ below[k - 1].mT if k else slope)
            slope = weights[k].mT @ slope
        weights = [w - lr * g for w, g in zip(weights, reversed(gradients), strict=True)]
        if every and step % every == 0 and watch is not None:
            records.append(watch(weights))
    return weights, torch.stack(records) if records else torch.empty(0)
