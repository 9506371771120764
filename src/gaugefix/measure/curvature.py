"""Curvature: Hessian-vector products, and the block of the Hessian normal to a mirror plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.eigenpairs import extreme_eigenpairs
from gaugefix.measure.forward_hvp import forward_hvp
from gaugefix.measure.perexample import LossModule, differentiable_attention, trainable
from gaugefix.measure.records import Record
from gaugefix.symmetry import DenseMirror, Mirror
from gaugefix.task import Task

_DENSE_LIMIT = 500
_RESIDUAL_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class OHessian(Record):
    """The O-block H_O = OᵀHO of the data-loss Hessian of one mirror.

    Attributes:
        name: of the mirror.
        codim: number k of normal coordinates.
        matrix: ``(k, k)``, or None if only the lowest eigenvalues were computed.
        eigenvalues: ascending, ``(k,)`` or those that were asked for.
        eigenvectors: ``(k, len(eigenvalues))``, columns in the coordinates of `Mirror.embed`.
        residual: largest ‖H_O v − hv‖ relative to the largest |h|; for the dense block its relative asymmetry.
        converged: whether the residual is below 1e-6.
        distance: relative distance of the model to the plane; the block decides stability only on it (0).
        n_samples: number of samples in the loss.
    """

    name: str
    codim: int
    matrix: np.ndarray | None
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    residual: float
    converged: bool
    distance: float
    n_samples: int

    @property
    def lambda_min(self) -> float:
        """The lowest eigenvalue: the plane repels gradient flow without weight decay if it is negative."""
        return float(self.eigenvalues[0])


class HessianOperator:
    """The Hessian of the mean data loss (without weight decay) at one point, by Hessian-vector products.

    The first backward pass is kept as a graph, so that every product costs one more backward pass: 1.4 gradients where
    the first layer dominates, 2 in a deep network, and one gradient more if the graph has to be built. Attention runs
    under the math backend, the one with a second derivative.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Attributes:
        params: the point, detached and in the precision of the measurement.
        n_samples: number of samples in the loss.

    Raises:
        MeasurementError: if no parameter is trainable.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b[0])[:, 0] ** 2, lambda: [(x,)],
        ...             lr=0.1, weight_decay=0.0, batch_size=2)
        >>> HessianOperator(task) @ {"weight": torch.ones(1, 1)}  # 2·mean(x²)
        {'weight': tensor([[10.]], dtype=torch.float64)}
    """

    def __init__(self, task: Task, *, max_samples: int = 2048, seed: int = 0) -> None:
        clone = exact_copy(task)
        self._leaves = {k: p.detach().clone().requires_grad_() for k, p in trainable(clone.model).items()}
        if not self._leaves:
            raise MeasurementError(f"HessianOperator: no parameter of task {task.name!r} has requires_grad=True.")
        self.params = {k: p.detach() for k, p in clone.model.named_parameters()}
        self.n_samples = 0
        module = LossModule(clone.model, clone.loss)
        values = {f"model.{k}": p for k, p in self._leaves.items()}
        total = torch.zeros((), dtype=next(iter(self._leaves.values())).dtype)
        with differentiable_attention():
            for batch in clone.batch_iter(seed):
                losses = functional_call(module, values, (batch,))
                total = total.to(losses.device) + losses.sum()
                self.n_samples += len(losses)
                if self.n_samples >= max_samples:
                    break
            self._gradient = torch.autograd.grad(
                total / self.n_samples,
                list(self._leaves.values()),
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )

    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the mean data loss.

        Returns:
            Detached tensors by name.
        """
        return {k: g.detach() for k, g in zip(self._leaves, self._gradient, strict=True)}

    def __matmul__(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Product with a tangent vector; parameters that the dictionary lacks count as zero."""
        pairs = [
            (g, vector[k].to(g))
            for k, g in zip(self._leaves, self._gradient, strict=True)
            if k in vector and g.requires_grad
        ]
        if not pairs:
            return {k: torch.zeros_like(p) for k, p in self._leaves.items()}
        outputs, weights = zip(*pairs, strict=True)
        with differentiable_attention():
            product = torch.autograd.grad(
                outputs,
                list(self._leaves.values()),
                weights,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return {k: p.detach() for k, p in zip(self._leaves, product, strict=True)}


def hvp(task: Task, vector: Mapping[str, Tensor], *, max_samples: int = 2048, seed: int = 0) -> dict[str, Tensor]:
    """One product of the Hessian of the mean data loss with a tangent vector.

    Args:
        task: gives model, loss and data.
        vector: tensors by parameter name; missing ones are zero.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        Tensors by name for every trainable parameter. Cost: 8 matrix products per layer where a gradient has 3 (a
        backward pass through a forward derivative), or 9 where that derivative is missing or wrong. That is seen on
        two samples in the first product of a task. For several products keep an operator: 6 each.
    """
    found = forward_hvp(exact_copy(task), vector, max_samples=max_samples, seed=seed)
    return found or HessianOperator(task, max_samples=max_samples, seed=seed) @ vector


def o_hessian(
    task: Task,
    mirror: Mirror | DenseMirror,
    *,
    operator: HessianOperator | None = None,
    n_lowest: int = 6,
    dense_limit: int = _DENSE_LIMIT,
    max_samples: int = 2048,
    seed: int = 0,
) -> OHessian:
    """The block H_O = OᵀHO of the data-loss Hessian normal to a mirror plane (arXiv 2309.16932).

    On the plane the Hessian does not couple this block to the rest, and z = Oᵀθ grows along its eigenvectors as
    (1 − η(h_i + λ)) per step. Off the plane the number is the curvature and no more: see ``distance``.

    Args:
        task: gives model, loss and data.
        mirror: from `Symmetry.mirrors`.
        operator: reuse one for several mirrors of one model.
        n_lowest: eigenvalues wanted when the block is not formed.
        dense_limit: largest k for which the whole block is formed, by k products; above it Lanczos.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the Lanczos start.

    Returns:
        The block with its spectrum. Cost: k HVPs, or a few tens times ``n_lowest``.

    Raises:
        MeasurementError: if a parameter of the mirror is frozen.
    """
    h = operator or HessianOperator(task, max_samples=max_samples, seed=seed)
    frozen = [k for k in mirror.parameters if k not in h.gradient()]
    if frozen:
        raise MeasurementError(f"o_hessian: {frozen[0]!r} of mirror {mirror.name!r} has requires_grad=False.")
    codim = mirror.codim(h.params)

    def product(z: np.ndarray) -> np.ndarray:
        tangent = mirror.embed(torch.as_tensor(z, dtype=next(iter(h.params.values())).dtype), h.params)
        image = h @ tangent
        return mirror.coordinates({**h.params, **image}).double().cpu().numpy()

    if codim <= dense_limit:
        columns = np.stack([product(e) for e in np.eye(codim)], axis=1)
        scale = float(np.abs(columns).max()) or 1.0
        residual = float(np.abs(columns - columns.T).max()) / scale
        block = (columns + columns.T) / 2
        matrix: np.ndarray | None = block
        values, vectors = np.linalg.eigh(block)
    else:
        matrix = None
        values, vectors, residuals = extreme_eigenpairs(product, codim, n_lowest, "SA", seed=seed)
        residual = float(residuals.max())
    return OHessian(
        mirror.name,
        codim,
        matrix,
        values,
        vectors,
        residual,
        residual < _RESIDUAL_TOLERANCE,
        mirror.distance(h.params),
        h.n_samples,
    )
