"""What gradient noise does to a run at rest: how far it scatters, what that costs, and whether it is at rest at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, endless
from gaugefix.measure.classes import exact_copy
from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.extremes import hessian_extremes
from gaugefix.measure.moments import collect_moments
from gaugefix.measure.noise_operator import NoiseOperator, directional_variance
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.settle import settle
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.task import Task
from gaugefix.theory import LyapunovAccumulator, stationary_covariance

_AT_REST = 0.05


@dataclass(frozen=True, eq=False)
class SgdNoiseReport(Record):
    """Stationary fluctuation of SGD along the sharpest directions.

    Attributes:
        curvatures: ``(k,)`` largest eigenvalues of the Hessian, weight decay included.
        noise: ``(k,)`` variance of the minibatch gradient along the eigenvectors.
        variances: ``(k,)`` predicted variance of the iterates; nan beyond the limit and where h ≤ 0.
        relaxation: ``(k,)`` steps in which a deviation fades by a factor e; a run much shorter has another variance.
        excess_loss: ½Σ h·variance, by which the noise in these directions raises the mean loss; inf if not stable.
        lr_limit: 2(1 + μ)/h_max.
        stable: whether lr is below it.
        force: ‖∇L + λθ‖ of the full batch relative to that of a minibatch, √(‖·‖² + Tr C/B).
        residual: of the eigenvectors.
        n_samples: number of samples used.
        valid: whether the point is stationary and the eigenvectors converged.
        reason: why not, or "".
        eigenvectors: ``(P, k)`` columns over the stacked trainable parameters.
    """

    curvatures: Float[np.ndarray, " k"]
    noise: Float[np.ndarray, " k"]
    variances: Float[np.ndarray, " k"]
    relaxation: Float[np.ndarray, " k"]
    excess_loss: float
    lr_limit: float
    stable: bool
    force: float
    residual: float
    n_samples: int
    valid: bool
    reason: str
    eigenvectors: Float[np.ndarray, "P k"] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the eigenvectors.

        Returns:
            One key per other field.
        """
        return {k: v for k, v in super().to_dict().items() if k != "eigenvectors"}


@dataclass(frozen=True, eq=False)
class FluctuationCheck(Record):
    """The fluctuation–dissipation identity of a run, parameter by parameter.

    Attributes:
        names: of the parameters.
        ratio: E[θ·g]/((lr/2)·E‖g‖²) of each, g with the weight decay; 1 at rest.
        stderr: standard error from blocks of successive steps.
        at_rest: whether all are within 3 standard errors or 5 % of 1.
        steps: that were counted.
    """

    names: tuple[str, ...]
    ratio: Float[np.ndarray, " p"]
    stderr: Float[np.ndarray, " p"]
    at_rest: bool
    steps: int


def sgd_noise_report(
    task: Task, *, k: int = 10, settle_steps: int = 200, max_samples: int = 2048, seed: int = 0
) -> SgdNoiseReport:
    """Predict how far SGD scatters along the k sharpest directions at the minimum it is in, without training.

    The iterate of SGD has the wrong gradient and Hessian, so a copy is polished by full-batch descent first. Then the
    Hessian's leading eigenvectors, the variance of the per-sample gradients along them, and the exact discrete-time
    law `gaugefix.theory.stationary_covariance` in each.

    Args:
        task: gives model, loss, data and settings of SGD; nothing of it is changed. Averages of iterates are a better
            start than the last one.
        k: how many directions.
        settle_steps: full-batch steps of the polish.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The report; batches are taken to be drawn with replacement. Cost: ``settle_steps`` gradients, a few tens of
        Hessian-vector products, 2k forward passes.

    Raises:
        MeasurementError: if the optimiser is not SGD.

    Source: arXiv 2102.05375 (E1, algorithm).

    Example:
        >>> from torch import nn
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> y = x.sum(1) + torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
        >>> task = Task(nn.Linear(2, 1, bias=False).double(), lambda m, b: (m(b[0])[:, 0] - b[1]) ** 2 / 2,
        ...             lambda: [(x, y)], lr=0.1, weight_decay=0.0, batch_size=4)
        >>> found = sgd_noise_report(task, k=2)
        >>> found.valid, found.stable, bool(0.8 < (found.noise / found.curvatures).mean() * 4 < 1.2)
        (True, True, True)
    """  # noqa: DOC502
    plain_sgd_only(task, "sgd_noise_report", momentum=True)
    settled = settle(exact_copy(task), steps=settle_steps, max_samples=max_samples, seed=seed)
    hessian = HessianOperator(settled.task, max_samples=max_samples, seed=seed)
    k = min(k, sum(p.numel() for p in hessian.gradient().values()))
    found = hessian_extremes(hessian, which="LA", k=k)
    operator = NoiseOperator(settled.task, max_samples=max_samples, seed=seed)
    noise = directional_variance(operator, found.tangents()).variance / task.batch_size
    curvatures = found.eigenvalues + task.weight_decay
    rising = curvatures > 0
    law = stationary_covariance(curvatures[rising], noise[rising], task.lr, task.momentum)
    variances = np.full(len(curvatures), np.nan)
    variances[rising] = law.covariance
    force, residual = _force(settled.task, hessian), found.residual
    reasons = [settled.reason] if settled.reason else []
    if force > _AT_REST:
        reasons.append(f"not at a stationary point: the full-batch force is {force:.2g} of a minibatch's")
    if not found.converged:
        reasons.append(f"the eigenvectors have a residual of {residual:.1e}")
    with np.errstate(divide="ignore"):
        relaxation = (1 - task.momentum) / (task.lr * curvatures)
    return SgdNoiseReport(
        curvatures, noise, variances, relaxation, law.excess_loss, law.lr_limit, law.stable, force, residual,
        hessian.n_samples, not reasons, "; ".join(reasons), found.eigenvectors,
    )  # fmt: skip


def fdr_check(task: Task, *, steps: int = 2000, burn_in: int = 0, seed: int = 0) -> FluctuationCheck:
    """Is this run at rest? At stationarity E[θ·g] = (lr/2)·E‖g‖² for every parameter, any loss and any noise.

    The identity says that E‖θ‖² of the parameter no longer changes. g is the gradient of the minibatch with the
    weight decay. A ratio above 1 says that the norm is falling, below that it grows.

    Args:
        task: gives model, loss, data and settings of plain SGD; a copy is trained.
        steps: that are counted.
        burn_in: steps before.
        seed: of the data order.

    Returns:
        The ratios with error bars. Cost: one minibatch gradient per step.

    Raises:
        MeasurementError: if the optimiser is not SGD without momentum, or the run diverges.

    Source: arXiv 2102.05375 (E11).

    Example:
        >>> from gaugefix import load_task
        >>> found = fdr_check(load_task("digits-mlp"), steps=40)  # has only begun
        >>> found.names[0], found.at_rest
        ('0.weight', False)
    """
    plain_sgd_only(task, "fdr_check")
    copy = exact_copy(task)
    params, lr = trainable(copy.model), task.lr
    total, stream = LyapunovAccumulator(burn_in=burn_in), endless(copy, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(burn_in + steps):
            _, data = batch_gradient(copy, next(stream), params)
            rows = []
            with torch.no_grad():
                for name, p in params.items():
                    g = data[name] + task.weight_decay * p
                    rows.append((float((p * g).sum()), float(g.square().sum()) * lr / 2))
                    p.sub_(g, alpha=lr)
            total.add(np.array([[a - b, b] for a, b in rows]))
    found = total.result()
    if not np.isfinite(found.value).all():
        raise MeasurementError(f"fdr_check: the run diverges at lr = {lr:g}.")
    half = np.maximum(found.value[:, 1], 1e-300)
    ratio, stderr = 1 + found.value[:, 0] / half, found.stderr[:, 0] / half
    at_rest = bool((np.abs(ratio - 1) < np.maximum(3 * stderr, _AT_REST)).all())
    return FluctuationCheck(tuple(params), ratio, stderr, at_rest, found.steps)


def decoupling_ratio(task: Task, *, max_samples: int = 2048, seed: int = 0) -> float:
    """Gradient noise relative to the approximation C ≈ (2L/B)·H, E‖∇ℓ‖²/(E ℓ · E[‖∇ℓ‖²/ℓ]).

    For the squared error of one output ‖∇ℓ‖²/ℓ is 2‖∇f‖², and the ratio is 1 where the loss of a sample says nothing
    about the size of its ‖∇f‖. Above 1 noise is stronger than the loss and the Hessian suggest.

    Args:
        task: gives model, per-sample loss (squared error of a scalar output, with any factor) and data.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order.

    Returns:
        The ratio; nan if the loss of a sample is zero, where ‖∇f‖ cannot be told from ∇ℓ. Cost: that of
        `gradient_noise`.

    Source: arXiv 2105.09557 (P1), 2102.05375 (E5).

    Example:
        >>> from torch import nn
        >>> x, y = torch.tensor([[1.0], [1.0], [2.0], [2.0]]), torch.tensor([1.0, 2.0, 1.0, 2.0])
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> task = Task(model, lambda m, b: (m(b[0])[:, 0] - b[1]) ** 2, lambda: [(x, y)],
        ...             lr=0.1, weight_decay=0.0, batch_size=1)
        >>> round(decoupling_ratio(task), 6)  # inputs and targets are independent
        1.0
    """
    copy = exact_copy(task)
    moments = collect_moments(copy, max_samples=max_samples, seed=seed)
    squares = torch.stack([torch.cat(parts) for parts in moments.squares.values()]).sum(0).double().cpu()
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in copy.batch_iter(seed):
            losses.append(copy.loss(copy.model, batch).double().cpu())
            if sum(map(len, losses)) >= len(squares):
                break
    loss = torch.cat(losses)[: len(squares)]
    if not (loss > 0).all():
        return math.nan
    return float(squares.mean() / (loss.mean() * (squares / loss).mean()))


def _force(task: Task, hessian: HessianOperator) -> float:
    """Full-batch force relative to the root mean square of a minibatch's."""
    params = hessian.params
    full = sum(float((g + task.weight_decay * params[k]).square().sum()) for k, g in hessian.gradient().items())
    moments = collect_moments(task, max_samples=hessian.n_samples)
    mean = sum(float((t / moments.count).square().sum()) for t in moments.total.values())
    each = sum(float(torch.cat(parts).mean()) for parts in moments.squares.values())
    scale = math.sqrt(full + max(each - mean, 0.0) / task.batch_size)
    return math.sqrt(full) / scale if scale > 0 else 0.0
