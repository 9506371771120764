"""Where the boundary of stability lies: learning rate, weight decay and batch size at which a plane starts to attract.

At a stationary point the Hessians of single samples, restricted to the k normal directions of a mirror, are all that
stability depends on. They are computed once; every setting is then a product of small matrices on the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import joined
from gaugefix.measure.classes import exact_copy, map_tensors
from gaugefix.measure.perexample import LossModule, trainable
from gaugefix.measure.records import Record
from gaugefix.measure.settle import first_samples
from gaugefix.measure.tangent_path import Directions, TangentPath, as_mirror, plain_sgd_only
from gaugefix.task import Batch, Task
from gaugefix.theory import Exponents, critical_lr_estimate, product_exponent

_LIMIT = 160
_CHUNK_NUMBERS = 4_000_000
_POINTS = 17
_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class NormalBlocks(Record):
    """Hessians of single samples normal to a plane.

    Attributes:
        name: of the mirror.
        blocks: ``(n, k, k)`` OᵀH_iO of the data loss.
        stationarity: relative force along the plane; the blocks decide only where it is small.
        distance: relative distance of the model to the plane before it was projected.
    """

    name: str
    blocks: np.ndarray = field(repr=False)
    stationarity: float
    distance: float

    def batches(self, batch_size: int, steps: int, seed: int = 0) -> np.ndarray:
        """Means over minibatches drawn with replacement.

        Args:
            batch_size: samples in each; a smaller size takes the first samples of the same draws.
            steps: number of batches.
            seed: of the draws.

        Returns:
            ``(steps, k, k)``.
        """
        n, k, _ = self.blocks.shape
        rng = np.random.default_rng(seed)
        drawn = np.stack([rng.integers(0, n, steps) for _ in range(batch_size)], axis=1)
        flat = self.blocks.reshape(n, -1)
        if batch_size * 4 < n:
            total = sum((flat[column] for column in drawn.T), np.zeros((steps, k * k)))
        else:
            counts = np.zeros((steps, n))
            np.add.at(counts, (np.arange(steps)[:, None], drawn), 1.0)
            total = counts @ flat
        return np.asarray((total / batch_size).reshape(steps, k, k))


@dataclass(frozen=True)
class StabilityLimits(Record):
    """Boundaries of the region in which a plane attracts, one setting changed at a time.

    Attributes:
        name: of the mirror.
        value: Λ at the present settings, batches drawn with replacement.
        stderr: its standard error.
        curvature: lowest eigenvalue of the mean block: what gradient descent without noise would feel.
        critical_lr: smallest learning rate that attracts; 0 if every small one does, inf if none.
        critical_lr_stderr: its standard error.
        critical_decay: smallest weight decay that attracts, PyTorch's λ; 0 if none is needed.
        critical_decay_stderr: its standard error.
        critical_batch: largest batch that attracts; 0 if not even single samples do, inf if gradient descent does.
        stationarity: relative force along the plane.
        valid: whether the point was stationary.
        reason: why not, or "".
    """

    name: str
    value: float
    stderr: float
    curvature: float
    critical_lr: float
    critical_lr_stderr: float
    critical_decay: float
    critical_decay_stderr: float
    critical_batch: float
    stationarity: float
    valid: bool
    reason: str


def normal_blocks(
    task: Task, directions: Directions, *, max_samples: int = 512, tolerance: float = 1e-2, seed: int = 0
) -> NormalBlocks:
    """Per-sample Hessians OᵀH_iO normal to a plane, at the projection of the model onto it.

    Args:
        task: gives model, loss and data; nothing of it is changed.
        directions: as for `lyapunov_exponent`, with at most 160 normal directions.
        max_samples: number of samples.
        tolerance: largest relative force along the plane at which the point counts as stationary.
        seed: of the data order.

    Returns:
        The blocks. Cost: k forward derivatives of per-sample gradients; the batch size does not matter.

    Raises:
        MeasurementError: if there are too many directions, the point is not stationary, or the loss cannot be
            differentiated sample by sample.
    """
    mirror = as_mirror(directions, task)
    run = TangentPath(task, mirror, frozen=True, seed=seed)  # projects, and knows how stationary the point is
    stationarity = run.stationarity()
    if stationarity > tolerance:
        raise MeasurementError(
            f"normal_blocks: {mirror.name!r} is not at a stationary point on its plane: the relative force is "
            f"{stationarity:.2g}, at most {tolerance:g} is allowed. Polish the point by full-batch descent "
            "(gaugefix.measure.settle), or measure the run itself with lyapunov_exponent(mode='path')."
        )
    params = {k: p.detach() for k, p in run.params.items()}
    k = mirror.codim(params)
    if k > _LIMIT:
        raise MeasurementError(
            f"normal_blocks: {mirror.name!r} has {k} normal directions, at most {_LIMIT} are supported. "
            "Use lyapunov_exponent, which needs none of the blocks."
        )
    copy = exact_copy(task)
    unit = torch.eye(k, dtype=next(iter(params.values())).dtype)
    basis = [mirror.embed(e, params) for e in unit]
    found: list[Tensor] = []
    try:
        for batch in joined(first_samples(copy, max_samples, seed)):
            left = max_samples - sum(map(len, found))
            found.append(_blocks(copy, map_tensors(lambda t, n=left: t[:n] if t.ndim else t, batch), params, basis))
    except (RuntimeError, ValueError, IndexError) as error:
        raise MeasurementError(
            f"normal_blocks: the loss of task {task.name!r} cannot be differentiated sample by sample ({error}). "
            "Use lyapunov_exponent, which takes whole batches."
        ) from error
    blocks = torch.cat(found).double().cpu().numpy()
    return NormalBlocks(mirror.name, (blocks + blocks.transpose(0, 2, 1)) / 2, stationarity, run.distance)


def stability_limits(
    task: Task,
    directions: Directions | NormalBlocks,
    *,
    steps: int = 2000,
    burn_in: int = 100,
    max_samples: int = 512,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> StabilityLimits:
    """Learning rate, weight decay and batch size at which a plane starts to attract SGD.

    Roots of the exponent Λ(lr, λ, B) of the product of the matrices 1 − lr(OᵀH_BO + λ), one setting at a time and all
    on the same draws. What is left of the statistical error is that of the finite sample and of the finite product.

    Args:
        task: gives model, loss, data and settings; its optimizer must be SGD without momentum.
        directions: as for `lyapunov_exponent`, or the result of `normal_blocks`.
        steps: length of the products.
        burn_in: steps before, in which the vector turns to the leading direction.
        max_samples: as for `normal_blocks`.
        tolerance: as for `normal_blocks`.
        seed: of the draws.

    Returns:
        The limits. Cost: that of `normal_blocks`, and about 150 products of ``steps`` matrices.

    Raises:
        MeasurementError: as `normal_blocks`.

    Source: arXiv 2303.13093 (algorithm D), 2309.16932.
    """  # noqa: DOC502
    plain_sgd_only(task, "A limit of stability")
    known = (
        directions
        if isinstance(directions, NormalBlocks)
        else normal_blocks(task, directions, max_samples=max_samples, tolerance=tolerance, seed=seed)
    )
    lr, decay, length = task.lr, task.weight_decay, steps + burn_in

    def exponent(rates: np.ndarray | float, decays: np.ndarray | float, products: np.ndarray) -> Exponents:
        return product_exponent(products, rates, decays, burn_in=burn_in, seed=seed)

    products = known.batches(task.batch_size, length, seed)
    mean = known.blocks.mean(0)
    values, vectors = np.linalg.eigh(mean)
    curvature = float(values[0])
    scale = max(float(np.abs(np.linalg.eigvalsh(products[: min(length, 400)])).max()), 1e-30)
    now = exponent(lr, decay, products)
    soft = np.einsum("i,tij,j->t", vectors[:, 0], products, vectors[:, 0]) + decay
    estimate = critical_lr_estimate(curvature + decay, float((soft**2).mean()) or 1.0)
    rates = np.geomspace(min(1e-2 / scale, estimate / 10) or 1e-30, 1e1 / scale, _POINTS)
    critical_lr = (
        (0.0, 0.0) if curvature + decay >= 0 else _first_negative(lambda r: exponent(r, decay, products), rates)
    )
    decays = np.linspace(0.0, min(2 * scale, 1 / lr), _POINTS)
    critical_decay = _first_negative(lambda d: exponent(lr, d, products), decays)
    reason = "" if known.stationarity <= tolerance else f"not at a stationary point: force {known.stationarity:.2g}"
    return StabilityLimits(
        name=known.name,
        value=float(now.value),
        stderr=float(now.stderr),
        curvature=curvature,
        critical_lr=critical_lr[0],
        critical_lr_stderr=critical_lr[1],
        critical_decay=critical_decay[0],
        critical_decay_stderr=critical_decay[1],
        critical_batch=_critical_batch(known, lambda p: float(exponent(lr, decay, p).value), mean, length, seed),
        stationarity=known.stationarity,
        valid=not reason,
        reason=reason,
    )


def _blocks(task: Task, batch: Batch, params: dict[str, Tensor], basis: list[dict[str, Tensor]]) -> Tensor:
    """``(n, k, k)`` of one batch, in chunks."""
    module = LossModule(task.model, task.loss)
    fixed = {k: v.detach() for k, v in task.model.named_parameters() if k not in trainable(task.model)}

    def gradient(values: dict[str, Tensor], sample: Batch) -> dict[str, Tensor]:
        def loss(moving: dict[str, Tensor]) -> Tensor:
            one = map_tensors(lambda t: t.unsqueeze(0), sample)
            named = {f"model.{k}": v for k, v in {**fixed, **moving}.items()}
            return functional_call(module, named, (one,)).sum()  # type: ignore[no-any-return]

        return grad(loss)(values)  # type: ignore[no-any-return]

    names = list(basis[0])
    stacked = {name: torch.stack([b[name].reshape(-1) for b in basis]) for name in names}  # (k, numel)
    zero = {k: torch.zeros_like(v) for k, v in params.items()}
    size = max(1, _CHUNK_NUMBERS // sum(p.numel() for p in params.values()))
    sizes: list[int] = []
    map_tensors(lambda t: sizes.append(len(t)), batch)
    parts = []
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, sizes[0], size):
            some = map_tensors(lambda t, a=start: t[a : a + size], batch)

            def each(values: dict[str, Tensor], some: Batch = some) -> dict[str, Tensor]:
                return vmap(gradient, in_dims=(None, 0), randomness="different")(values, some)

            columns = []
            for direction in basis:
                image = jvp(each, (params,), ({**zero, **direction},))[1]
                columns.append(sum((image[name].flatten(1) @ stacked[name].T for name in names), torch.zeros(())))
            parts.append(torch.stack(columns, dim=2).detach())
    return torch.cat(parts)


def _first_negative(exponent: Callable[[np.ndarray], Exponents], grid: np.ndarray) -> tuple[float, float]:
    """First point of a grid range at which Λ turns negative, refined, with its standard error."""
    for _ in range(_ROUNDS):
        found = exponent(grid)
        negative = np.flatnonzero(found.value < 0)
        if not negative.size:
            return math.inf, math.nan
        i = int(negative[0])
        if i == 0:
            return (0.0, 0.0) if grid[0] == 0 else (float(grid[0]), math.nan)
        a, b, stderr = grid[i - 1], grid[i], found.stderr[i - 1]
        slope = (found.value[i] - found.value[i - 1]) / (b - a)
        grid = np.linspace(a, b, _POINTS)
    return float((a + b) / 2), float(abs(stderr / slope)) if slope else math.nan


def _critical_batch(
    known: NormalBlocks, exponent: Callable[[np.ndarray], float], mean: np.ndarray, length: int, seed: int
) -> float:
    """Largest batch size with a negative exponent."""
    if exponent(np.broadcast_to(mean, (length, *mean.shape))) <= 0:
        return math.inf
    low, high = 0, 1
    while exponent(known.batches(high, length, seed)) < 0:
        low, high = high, 2 * high
        if high > 16 * len(known.blocks):
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        if exponent(known.batches(middle, length, seed)) < 0:
            low = middle
        else:
            high = middle
    return float(low)
