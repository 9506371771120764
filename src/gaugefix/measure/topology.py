"""Can two units of a layer merge, split or pass through each other in one step? Distances before and after.

A unit is the row x_i of all its parameters. Because the loss does not care about the order of units, the difference of
two of them obeys (x_i' − x_j')·(x_i − x_j) = ‖x_i − x_j‖²(1 − lr·R_ij) exactly under gradient descent, with the rate
R_ij = (g_i − g_j)·(x_i − x_j)/‖x_i − x_j‖², and its length changes by a factor within 1 ± lr·K, K = sup‖H‖
(arXiv 2510.02670). Below lr = 1/K the map of units is one to one: they can neither merge nor split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gaugefix.errors import MeasurementError
from gaugefix.measure.batches import batch_gradient, endless
from gaugefix.measure.classes import exact_copy, units_of
from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.curvature_norm import batch_curvature_norm, largest_absolute
from gaugefix.measure.perexample import trainable
from gaugefix.measure.records import Record
from gaugefix.measure.sizes import unit_rows
from gaugefix.measure.tangent_path import plain_sgd_only
from gaugefix.symmetry import Symmetries, Units
from gaugefix.task import Task

MAX_PAIRS = 10_000

_MERGED = 1e-3


@dataclass(frozen=True)
class TopologyStep(Record):
    """What one step, or several in a row, did to the distances within one class of units.

    Attributes:
        name: of the class.
        n_pairs: pairs that were looked at, times steps.
        min_ratio: smallest distance after a step over that before, over pairs that were not at distance zero.
        max_ratio: largest.
        bound: lr·K of the theorem with K = ‖H + λ‖ of the batch at the start of the step; ratios lie within 1 ± bound
            up to the change of H along it. nan if the curvature was not given.
        violations: pairs outside.
        reversals: pairs whose difference turned by more than a right angle: they passed through each other.
        order_breaking: pairs with lr·R_ij > 1, which all reversals are among; −1 without gradients.
        max_rate: largest R_ij; nan without gradients.
        merges: pairs that came closer than 1e-3 of the median distance.
        distinct: units that are farther than that from each other, in the end; as they are, while
            `gaugefix.measure.distinct_units` compares them after scales and signs are taken out.
    """

    name: str
    n_pairs: int
    min_ratio: float
    max_ratio: float
    bound: float
    violations: int
    reversals: int
    order_breaking: int
    max_rate: float
    merges: int
    distinct: int


@dataclass(frozen=True)
class OrderBreaking(Record):
    """Learning rates below which no two units of a class change places.

    Attributes:
        name: of the class.
        critical_lr: 1/‖H + λ‖, below which nothing can merge or split: sufficient, not necessary, and with the
            curvature of the present point in place of its supremum.
        pairwise_lr: 1/max R_ij, above which some pair of the present units passes through each other; inf if no pair
            approaches.
        max_rate: the largest R_ij.
        curvature: ‖H + λ‖, largest absolute eigenvalue.
        residual: of that eigenvalue, relative.
        converged: whether the residual is below 1e-2.
        n_pairs: pairs that were looked at.
    """

    name: str
    critical_lr: float
    pairwise_lr: float
    max_rate: float
    curvature: float
    residual: float
    converged: bool
    n_pairs: int


def unit_pairs(units: Units, *, max_pairs: int = MAX_PAIRS, seed: int = 0) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of interchangeable units: all of them, or a random sample.

    Args:
        units: the class; units of different fibers are not interchangeable.
        max_pairs: sample if there are more.
        seed: of the sample.

    Returns:
        Row numbers in the order of `Units.rows`, ``i < j``.
    """
    n, fibers = units.size, units.fibers
    total = fibers * n * (n - 1) // 2
    if total <= max_pairs:
        i, j = np.triu_indices(n, 1)
        shift = n * np.arange(fibers)[:, None]
        return np.stack([(i + shift).ravel(), (j + shift).ravel()], axis=1)
    rng = np.random.default_rng(seed)
    fiber = rng.integers(0, fibers, max_pairs) * n
    i = rng.integers(0, n, max_pairs)
    j = (i + rng.integers(1, n, max_pairs)) % n
    return np.sort(np.stack([fiber + i, fiber + j], axis=1), axis=1)


def topology_step(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    units: Units,
    *,
    lr: float = math.nan,
    gradients: Mapping[str, Tensor] | None = None,
    curvature: float = math.nan,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
) -> TopologyStep:
    """Compare the units of a class before and after one step of any optimiser that treats them alike.

    Args:
        before: parameters by name.
        after: the same after the step.
        units: the class.
        lr: learning rate of gradient descent, for the rates and the bound.
        gradients: of the penalised loss at ``before``, by name.
        curvature: K of the penalised loss.
        max_pairs: sample if there are more pairs.
        seed: of the sample.

    Returns:
        The comparison. Cost: one pass over the pairs.

    Source: arXiv 2510.02670.

    Example:
        >>> from gaugefix.symmetry import Slice
        >>> units = Units("w", 2, 1, (Slice("w", 0, np.arange(2).reshape(1, 2, 1), "write"),))
        >>> step = topology_step({"w": torch.tensor([[0.0], [1.0]])}, {"w": torch.tensor([[0.7], [0.5]])}, units)
        >>> round(step.max_ratio, 3), step.reversals
        (0.2, 1)
    """
    pairs = unit_pairs(units, max_pairs=max_pairs, seed=seed)
    start, end = unit_rows(before, units, None), unit_rows(after, units, None)
    old, new = (rows[pairs[:, 0]] - rows[pairs[:, 1]] for rows in (start, end))
    square = (old**2).sum(1)
    apart = square > 0
    length, later = np.sqrt(square), np.sqrt((new**2).sum(1))
    ratios = later[apart] / length[apart]
    bound = lr * curvature
    rates = np.zeros(0)
    if gradients is not None:
        pull = unit_rows(gradients, units, None)
        rates = ((pull[pairs[:, 0]] - pull[pairs[:, 1]]) * old).sum(1)[apart] / square[apart]
    close = _MERGED * float(np.median(length)) if len(length) else 0.0
    outside = int((np.abs(ratios - 1) > bound * (1 + 1e-9) + 1e-12).sum()) if math.isfinite(bound) else 0
    return TopologyStep(
        name=units.name,
        n_pairs=len(pairs),
        min_ratio=float(ratios.min(initial=math.inf)),
        max_ratio=float(ratios.max(initial=-math.inf)),
        bound=bound,
        violations=outside,
        reversals=int(((old * new).sum(1) < 0).sum()),
        order_breaking=int((lr * rates > 1).sum()) if gradients is not None else -1,
        max_rate=float(rates.max(initial=-math.inf)) if gradients is not None else math.nan,
        merges=int(((later < close) & (length >= close)).sum()),
        distinct=distinct_rows(end, units, close),
    )


def distinct_rows(rows: Float[np.ndarray, "n entries"], units: Units, tolerance: float) -> int:
    """Number of clusters of units, single linkage within every fiber.

    Args:
        rows: parameters of every unit.
        units: the class.
        tolerance: units at most this far from each other are one.

    Returns:
        The number.
    """
    from scipy.sparse import coo_array  # late: slow to import
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    total = 0
    for some in np.split(rows, units.fibers):
        near = cKDTree(some).query_pairs(tolerance, output_type="ndarray")
        graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(some), len(some)))
        total += connected_components(graph, directed=False)[0]
    return total


def neuron_topology(
    task: Task, symmetries: Symmetries | Sequence[Units], *, steps: int = 5, curvature: bool = True, seed: int = 0
) -> tuple[TopologyStep, ...]:
    """Follow the distances of units over real minibatch steps on a copy of the model.

    Args:
        task: gives model, loss, data and settings; its optimizer must be SGD without momentum.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        steps: number of minibatch steps.
        curvature: also compute ‖H_B + λ‖ of every batch, about 30 gradients each.
        seed: of the data order and the pairs.

    Returns:
        One entry per class of more than one unit, over all steps: extremes of ratios, rates and bounds, sums of counts.

    Raises:
        MeasurementError: if ``steps`` < 1 or the optimizer is not plain SGD.

    Source: arXiv 2510.02670.
    """
    plain_sgd_only(task, "The topology of neurons")
    if steps < 1:
        raise MeasurementError(f"neuron_topology: steps must be at least 1, got {steps!r}.")
    copy = exact_copy(task)
    params = trainable(copy.model)
    classes = _trained(symmetries, params)
    stream = endless(copy, seed)
    history: list[list[TopologyStep]] = [[] for _ in classes]
    for _ in range(steps):
        batch = next(stream)
        norm = batch_curvature_norm(copy, batch, seed) if curvature else math.nan
        _, data = batch_gradient(copy, batch, params)
        before = {k: p.detach().clone() for k, p in params.items()}
        pull = {k: g + task.weight_decay * before[k] for k, g in data.items()}
        with torch.no_grad():
            for k, p in params.items():
                p.sub_(pull[k], alpha=task.lr)
        for units, found in zip(classes, history, strict=True):
            found.append(topology_step(before, params, units, lr=task.lr, gradients=pull, curvature=norm, seed=seed))
    return tuple(map(_join, history))


def order_breaking_lr(
    task: Task, symmetries: Symmetries | Sequence[Units], *, max_samples: int = 2048, seed: int = 0
) -> tuple[OrderBreaking, ...]:
    """Learning rates below which gradient descent keeps the units of a class apart, by curvature and by pairs.

    Args:
        task: gives model, loss, data and weight decay; nothing of it is changed.
        symmetries: what `find_symmetries` gave, or the classes themselves.
        max_samples: stop after the batch that reaches this number.
        seed: of the data order and the pairs.

    Returns:
        One entry per class of more than one unit. Cost: some tens of HVPs; the pairs need a gradient only.

    Source: arXiv 2510.02670.
    """
    operator = HessianOperator(task, max_samples=max_samples, seed=seed)
    decay, params = task.weight_decay, operator.params
    pull = {k: g + decay * params[k] for k, g in operator.gradient().items()}
    value, residual = largest_absolute(lambda v: {k: h + decay * v[k] for k, h in (operator @ v).items()}, pull, seed)
    found = []
    for units in _trained(symmetries, pull):
        same = topology_step(params, params, units, lr=task.lr, gradients=pull, seed=seed)
        pairwise = 1 / same.max_rate if same.max_rate > 0 else math.inf
        critical = 1 / value if value > 0 else math.inf
        found.append(
            OrderBreaking(units.name, critical, pairwise, same.max_rate, value, residual, residual < 1e-2, same.n_pairs)
        )
    return tuple(found)


def _trained(symmetries: Symmetries | Sequence[Units], params: Mapping[str, Tensor]) -> list[Units]:
    """Classes of more than one unit of which every slice is trained."""
    return [u for u in units_of(symmetries) if u.size > 1 and u.slices and params.keys() >= set(u.parameters)]


def _join(steps: list[TopologyStep]) -> TopologyStep:
    last = steps[-1]
    return TopologyStep(
        name=last.name,
        n_pairs=sum(s.n_pairs for s in steps),
        min_ratio=min(s.min_ratio for s in steps),
        max_ratio=max(s.max_ratio for s in steps),
        bound=max(s.bound for s in steps),
        violations=sum(s.violations for s in steps),
        reversals=sum(s.reversals for s in steps),
        order_breaking=sum(s.order_breaking for s in steps),
        max_rate=max(s.max_rate for s in steps),
        merges=sum(s.merges for s in steps),
        distinct=last.distinct,
    )
