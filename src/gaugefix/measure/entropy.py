"""The loss that SGD with a finite step really descends, and the forces that its last term exerts.

A step of size η is the flow of ℓ + (η/4)‖∇ℓ‖² to second order, and the mean over minibatches gives

    F(θ) = L(θ) + (λ/2)‖θ‖² + S(θ),    S = (η/4) E_B‖∇ℓ_B‖² = (η/4)(‖∇L‖² + Tr C/B),

the entropic loss (arXiv 2505.12387; its γ is λ/2). S is the same on rotations and permutations of the weights and
strictly convex along rescalings: it picks one point of every such orbit, where the gradients are in balance.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure.batches import batch_gradient, first_batches, gradient_and_product, squared_norm
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.perexample import differentiable_attention, trainable
from gaugefix.measure.records import Record
from gaugefix.task import Batch, Task

Sampling = Literal["reshuffle", "online"]

_ONLINE = (
    "with batches drawn anew in every step the entropic loss gives the drift along symmetry directions only; elsewhere "
    "noise that is not proportional to the Hessian pushes differently"
)


@dataclass(frozen=True)
class EntropicLoss(Record):
    """F = loss + penalty + entropy at one point.

    Attributes:
        loss: L, mean over the batches used.
        penalty: (λ/2)‖θ‖².
        entropy: S = (η/4) E_B‖∇ℓ_B‖².
        total: F.
        mean_sq: ‖∇L‖² of the mean gradient of these batches; S is no smaller than (η/4) of it.
        noise: E_B‖∇ℓ_B‖² − ‖∇L‖², the part that noise adds; nan with one batch.
        stderr: standard error of the entropy over batches; nan with one.
        n_batches: how many were used.
        valid: whether there were at least two batches and plain SGD.
        reason: why not, or "".
    """

    loss: float
    penalty: float
    entropy: float
    total: float
    mean_sq: float
    noise: float
    stderr: float
    n_batches: int
    valid: bool
    reason: str


@dataclass(frozen=True, eq=False)
class EntropicForce(Record):
    """−∇S = −(η/2) E_B[H_B ∇ℓ_B].

    Attributes:
        force: by parameter name.
        norm: of all of it.
        relative: norm relative to ‖∇L + λθ‖; large where only noise still moves the weights.
        n_batches: how many were used.
        valid: whether the force is that of the sampling asked about in every direction.
        reason: why not, or "".
    """

    force: dict[str, Tensor] = field(repr=False)
    norm: float
    relative: float
    n_batches: int
    valid: bool
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, the norm of every parameter's force in place of the tensors."""
        return {**super().to_dict(), "force": {k: float(v.norm()) for k, v in self.force.items()}}


def entropic_loss(task: Task, *, n_batches: int = 32, seed: int = 0) -> EntropicLoss:
    """F(θ) = L + (λ/2)‖θ‖² + (η/4) E_B‖∇ℓ_B‖², the loss whose flow SGD follows to second order in η.

    Args:
        task: gives model, loss, data and settings; nothing of it is changed.
        n_batches: how many batches the expectation takes; passes follow each other, each in an order of its own.
        seed: of the data order.

    Returns:
        The parts. Cost: one gradient per batch.

    Raises:
        MeasurementError: if ``n_batches`` < 1.

    Source: arXiv 2505.12387.

    Example:
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0], lambda: x.split(1),
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> found = entropic_loss(task, n_batches=2)
        >>> round(found.entropy, 9), round(found.noise, 9)  # 0.1/4·mean(1, 9), and the variance of (1, 3)
        (0.125, 1.0)
    """  # noqa: DOC502
    squares, losses = [], []
    total: dict[str, Tensor] = {}
    copy = exact_copy(task)
    params = trainable(copy.model)
    for batch in first_batches(copy, n_batches, seed):
        loss, gradient = batch_gradient(copy, batch, params)
        losses.append(float(loss))
        squares.append(squared_norm(gradient))
        total = {k: total[k] + g if k in total else g for k, g in gradient.items()}
    n = len(squares)
    mean_sq = squared_norm({k: g / n for k, g in total.items()})
    mean, quarter = float(np.mean(squares)), task.lr / 4
    penalty = task.weight_decay / 2 * squared_norm(params)
    reason = "one batch has no noise" if n < 2 else _optimizer_limits(task)
    return EntropicLoss(
        loss=float(np.mean(losses)),
        penalty=penalty,
        entropy=quarter * mean,
        total=float(np.mean(losses)) + penalty + quarter * mean,
        mean_sq=mean_sq,
        noise=mean - mean_sq if n > 1 else math.nan,
        stderr=quarter * float(np.std(squares, ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        n_batches=n,
        valid=not reason,
        reason=reason,
    )


def backward_error_loss(task: Task, batch: Batch, *, n_substeps: float = math.inf) -> Float[Tensor, ""]:
    """φ_n = ℓ + (η/4)(1 − 1/n)‖∇ℓ‖², on which n small steps η/n go where one step η on ℓ goes.

    Here ℓ is the mean loss of the batch with its penalty (λ/2)‖θ‖². The end points differ by O(η³), those of n small
    steps on ℓ itself by O(η²); n → ∞ is gradient flow. The mean of φ_∞ over batches is the entropic loss, and this is
    its differentiable form: a regulariser that gives small steps the preference of large ones.

    Args:
        task: gives model, loss, learning rate and weight decay.
        batch: one batch.
        n_substeps: n ≥ 1; at 1 it is ℓ.

    Returns:
        A scalar with its graph, for ``backward``. Cost: one gradient; its own gradient takes two more.

    Raises:
        MeasurementError: if ``n_substeps`` < 1.

    Source: arXiv 2505.12387, result 2.

    Example:
        >>> from torch import nn
        >>> task = Task(nn.Linear(1, 1, bias=False), lambda m, b: m(b)[:, 0] ** 2, lambda: [],
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> _ = nn.init.ones_(task.model.weight)
        >>> round(backward_error_loss(task, torch.ones(1, 1)).item(), 6)  # w² + 0.1/4·(2w)²
        1.1
    """
    if not n_substeps >= 1:
        raise MeasurementError(f"backward_error_loss: n_substeps must be at least 1, got {n_substeps!r}.")
    params = list(trainable(task.model).values())
    with differentiable_attention():
        loss = task.loss(task.model, batch).mean()
        if task.weight_decay:
            loss = loss + task.weight_decay / 2 * torch.stack([p.square().sum() for p in params]).sum()
        found = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    square = torch.stack([g.square().sum() for g in found if g is not None]).sum()
    total: Tensor = loss + task.lr / 4 * (1 - 1 / n_substeps) * square
    return total


def entropic_force(
    task: Task, *, sampling: Sampling = "reshuffle", n_batches: int = 32, seed: int = 0
) -> EntropicForce:
    """The entropic force −∇S = −(η/2) E_B[H_B ∇ℓ_B], one Hessian-vector product per batch.

    Args:
        task: gives model, loss, data and learning rate; nothing of it is changed.
        sampling: "reshuffle" if every pass takes all samples in a random order: then the mean over orders follows F.
            With "online" sampling the force is right along symmetry directions only, and a `ValidityWarning` says so.
        n_batches: as for `entropic_loss`.
        seed: of the data order.

    Returns:
        The force. Cost: about three gradients per batch.

    Raises:
        MeasurementError: if ``sampling`` is unknown or ``n_batches`` < 1.

    Source: arXiv 2505.12387.
    """
    if sampling not in {"reshuffle", "online"}:
        raise MeasurementError(f"entropic_force: sampling must be 'reshuffle' or 'online', got {sampling!r}.")
    if sampling == "online":
        warnings.warn(f"entropic_force: {_ONLINE}.", ValidityWarning, stacklevel=2)
    copy = exact_copy(task)
    params = trainable(copy.model)
    force = {k: torch.zeros_like(p) for k, p in params.items()}
    mean = {k: torch.zeros_like(p) for k, p in params.items()}
    n = 0
    for batch in first_batches(copy, n_batches, seed):
        gradient, product = gradient_and_product(copy, batch, params)
        force = {k: f - task.lr / 2 * product[k] for k, f in force.items()}
        mean = {k: m + gradient[k] for k, m in mean.items()}
        n += 1
    force = {k: f / n for k, f in force.items()}
    pull = {k: m / n + task.weight_decay * params[k].detach() for k, m in mean.items()}
    norm, size = squared_norm(force) ** 0.5, squared_norm(pull) ** 0.5
    reason = _ONLINE if sampling == "online" else _optimizer_limits(task)
    return EntropicForce(force, norm, norm / size if size > 0 else math.inf, n, not reason, reason)


def _optimizer_limits(task: Task) -> str:
    if task.optimizer != "sgd":
        return f"{task.optimizer} is not SGD with a fixed learning rate: heuristic"
    return "momentum changes the coefficient of the entropy" if task.momentum else ""
