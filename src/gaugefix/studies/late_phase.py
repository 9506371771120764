"""The late phase of training under an exponential loss, for the last claims of `gaugefix.studies.equivariance_toolbox`.

A ReLU network of two layers is homogeneous of degree k = 2. From identity Hθ = k E[Jᵀℓ''f] + (k − 1)∇L, equal margins q
of the samples that count and θ along −∇L it follows that the gradient is an eigenvector of the Hessian with eigenvalue
(kq − k + 1)‖∇L‖/‖θ‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.toolbox_networks import HIDDEN, INPUTS, SAMPLES

LOSSES = (1e-3, 1e-5, 1e-8, 1e-11, 1e-15)  # where the run is looked at
GAP, START = 1.0, 0.3  # distance of the data from the boundary; size of the first weights


@cache
def late_phase(seeds: tuple[int, ...]) -> np.ndarray:
    """Gradient descent on the logarithm of the loss, which follows the path of the loss itself.

    Args:
        seeds: of data and first weights.

    Returns:
        ``(2, seeds, losses)``: curvature along the gradient over what is predicted, and the cosine of H∇L with ∇L.
    """
    found = np.empty((2, len(seeds), len(LOSSES)))
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        x, way = rng.standard_normal((SAMPLES, INPUTS)), rng.standard_normal(INPUTS)
        y = np.sign(x @ way)
        x += GAP * y[:, None] * way / np.linalg.norm(way)
        w, u = START * rng.standard_normal((HIDDEN, INPUTS)), START * rng.standard_normal(HIDDEN)
        column, longest = 0, (x**2).sum(1).max()
        while column < len(LOSSES):
            before = x @ w.T
            hidden = np.maximum(before, 0)
            margins = y * (hidden @ u)
            weights = np.exp(margins.min() - margins)
            if np.log(weights.mean()) - margins.min() < math.log(LOSSES[column]):
                found[:, row, column] = _curvature(x, y, w, u, margins)
                column += 1
            pull = weights / weights.sum() * y
            rate = 1 / (longest * ((w**2).sum() + (u**2).sum()))
            w, u = w + rate * ((pull[:, None] * (before > 0) * u).T @ x), u + rate * (pull @ hidden)
    return found


def _curvature(x: np.ndarray, y: np.ndarray, w: np.ndarray, u: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """Curvature along the gradient over (kq − k + 1)‖∇L‖/‖θ‖ for k = 2, and the cosine of Hg and g; L is scaled."""
    inputs, signs = torch.from_numpy(x), torch.from_numpy(y)
    weights = np.exp(margins.min() - margins)
    mean_margin = float((weights * margins).sum() / weights.sum())

    def loss(point: list[Tensor]) -> Tensor:
        return torch.exp(float(margins.min()) - signs * ((inputs @ point[0].mT).relu() @ point[1])).mean()

    point = [torch.from_numpy(w), torch.from_numpy(u)]
    leaves = [p.clone().requires_grad_() for p in point]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(leaves), leaves)])
    image = dense_hessian(loss, point) @ gradient
    size = math.sqrt(sum(float(p.square().sum()) for p in point))
    predicted = (2 * mean_margin - 1) * float(gradient.norm()) / size
    along = float(image @ gradient / gradient.square().sum())
    return along / predicted, float(image @ gradient / (image.norm() * gradient.norm()))


def dense_hessian(loss: Callable[[list[Tensor]], Tensor], point: list[Tensor]) -> Tensor:
    """Hessian over the stacked entries of a few tensors.

    Args:
        loss: of the tensors.
        point: where.

    Returns:
        ``(P, P)``.
    """
    shapes = [p.shape for p in point]

    def flat_loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        return loss([part.reshape(s) for part, s in zip(parts, shapes, strict=True)])

    hessian: Tensor = torch.func.hessian(flat_loss)(torch.cat([p.reshape(-1) for p in point]))
    return hessian
