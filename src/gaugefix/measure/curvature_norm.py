"""The norm of a Hessian: its largest eigenvalue in absolute value, by Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.measure.batches import batch_gradient
from gaugefix.measure.perexample import trainable
from gaugefix.task import Batch, Task


def batch_curvature_norm(task: Task, batch: Batch, seed: int = 0) -> float:
    """‖H_B + λ‖, the largest absolute eigenvalue of the Hessian of one batch with its weight decay.

    Args:
        task: gives model, loss and λ.
        batch: one batch.
        seed: of the start vector.

    Returns:
        The norm; nan if the iteration did not converge. Cost: some tens of HVPs.
    """
    params = trainable(task.model)
    _, gradient = batch_gradient(task, batch, params, create_graph=True)

    def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [k for k, g in gradient.items() if g.requires_grad]
        if not names:
            return {k: task.weight_decay * x for k, x in v.items()}
        with sdpa_kernel(SDPBackend.MATH):
            image = torch.autograd.grad(
                [gradient[k] for k in names],
                list(params.values()),
                [v[k] for k in names],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return {k: h + task.weight_decay * v[k] for k, h in zip(params, image, strict=True)}

    return largest_absolute(product, {k: p.detach() for k, p in params.items()}, seed)[0]


def largest_absolute(
    product: Callable[[dict[str, Tensor]], dict[str, Tensor]], like: Mapping[str, Tensor], seed: int = 0
) -> tuple[float, float]:
    """Largest absolute eigenvalue of a symmetric operator on parameters, by Lanczos.

    Args:
        product: the operator.
        like: tensors of the shapes it acts on.
        seed: of the start vector.

    Returns:
        The eigenvalue and its relative residual; (nan, inf) if the iteration did not converge.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    sizes = [t.numel() for t in like.values()]
    first = next(iter(like.values()))

    def matvec(x: np.ndarray) -> np.ndarray:
        parts = torch.as_tensor(x, dtype=first.dtype, device=first.device).split(sizes)
        image = product({k: p.reshape(t.shape) for (k, t), p in zip(like.items(), parts, strict=True)})
        return np.asarray(torch.cat([image[k].reshape(-1) for k in like]).double().cpu().numpy())

    n = sum(sizes)
    if n < 3:
        matrix = np.stack([matvec(e) for e in np.eye(n)])
        return float(np.abs(np.linalg.eigvalsh((matrix + matrix.T) / 2)).max()), 0.0
    operator = LinearOperator((n, n), matvec=matvec, dtype=np.dtype(float))
    start = np.random.default_rng(seed).standard_normal(n)
    try:
        values, vectors = eigsh(operator, k=1, which="LM", v0=start, tol=1e-6, maxiter=300)
    except ArpackNoConvergence:
        return math.nan, math.inf
    residual = float(np.linalg.norm(matvec(vectors[:, 0]) - values[0] * vectors[:, 0]))
    return abs(float(values[0])), residual / max(abs(float(values[0])), 1e-300)
