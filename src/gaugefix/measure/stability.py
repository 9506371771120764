"""Does SGD with its noise fall onto a mirror plane or leave it? Lyapunov exponents of live runs."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure.records import Record
from gaugefix.measure.tangent_path import Directions, TangentPath, as_mirror, plain_sgd_only
from gaugefix.symmetry import DenseMirror, Mirror, Symmetries
from gaugefix.task import Task
from gaugefix.theory import LyapunovAccumulator, verdict

Mode = Literal["path", "frozen"]

_TYPE_2 = 1e-5
_SCANNED = 2000


@dataclass(frozen=True)
class MirrorExponent(Record):
    """Lyapunov exponent of one mirror plane.

    Attributes:
        name: of the mirror.
        mode: "path" or "frozen".
        value: Λ, mean growth of log‖z‖ per step; negative: SGD falls onto the plane.
        stderr: its standard error, from blocks of successive steps.
        verdict: "collapses", "escapes", or "undecided" below two standard errors.
        steps: that were counted.
        lr: learning rate.
        weight_decay: λ.
        batch_size: samples per step.
        momentum: heavy-ball momentum.
        distance: relative distance of the model to the plane before it was projected.
        type2_residual: largest ‖Oᵀ∇ℓ_B‖/‖∇ℓ_B‖; rounding if the gradient of every batch lies in the plane.
        stationarity: relative force along the plane in frozen mode, nan in path mode.
        valid: whether the linear equation of z is the right one.
        reason: why not, or "".
    """

    name: str
    mode: Mode
    value: float
    stderr: float
    verdict: str
    steps: int
    lr: float
    weight_decay: float
    batch_size: int
    momentum: float
    distance: float
    type2_residual: float
    stationarity: float
    valid: bool
    reason: str


@dataclass(frozen=True)
class LyapunovReport(Record):
    """Exponents of the planes that a model is closest to.

    Attributes:
        mirrors: one per symmetry that has mirrors, the nearest of each.
        skipped: what was not measured, and why.
    """

    mirrors: tuple[MirrorExponent, ...]
    skipped: tuple[str, ...]


def lyapunov_exponent(
    task: Task,
    directions: Directions,
    *,
    mode: Mode = "path",
    steps: int = 1000,
    burn_in: int = 100,
    weight_decay: float | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> MirrorExponent:
    """Growth per step of the distance z to a mirror plane, Λ = lim (1/t) log‖z_t‖, under minibatch SGD.

    The model is projected on the plane and z is carried along infinitesimally, z ← z − lr·(OᵀH_B O + λ)z, by one
    Hessian-vector product per step. SGD converges to the plane in probability if Λ < 0, which neither the Hessian of
    the mean loss nor any moment of z decides.

    In "path" mode θ keeps training along the plane with the same batches: this is the default, since the exponent of
    a snapshot can be wrong by an order of magnitude and in sign. In "frozen" mode θ stays, which is right only at a
    stationary point of the penalised loss on the plane; other points are refused. Dropout and the statistics of batch
    norm are frozen.

    Args:
        task: gives model, loss, data and settings of SGD; nothing of it is changed.
        directions: a mirror from `Symmetry.mirrors`, or a matrix ``(P, k)`` whose columns span the normal space, over
            the stacked trainable parameters.
        mode: see above.
        steps: that are counted.
        burn_in: steps before, in which z turns to the leading direction and the run relaxes on the plane.
        weight_decay: λ instead of the task's.
        tolerance: largest relative force ‖∇L + λθ‖ at which frozen mode takes a point for stationary.
        seed: of the data order and the first z.

    Returns:
        The exponent. Cost: five to six gradients per step, measured on small networks.

    Raises:
        MeasurementError: if ``steps`` < 40, the optimiser is not SGD, the point is not stationary in frozen mode, or
            the run on the plane diverges.

    Source: arXiv 2303.13093.

    Example:
        >>> import torch
        >>> class Product(torch.nn.Module):  # f = u·w, at its origin
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.uw = torch.nn.Parameter(torch.zeros(2))
        >>> batches = lambda: iter(torch.tensor([[2.0], [-1.0], [-1.0], [2.0]]))  # targets
        >>> task = Task(Product(), lambda m, y: (m.uw.prod() - y) ** 2 / 2, batches,
        ...             lr=0.6, weight_decay=0.0, batch_size=1)
        >>> found = lyapunov_exponent(task, torch.tensor([[1.0], [1.0]]), mode="frozen", steps=400)
        >>> round(found.value, 4), found.verdict  # ½ log|(1 + 2 lr)(1 − lr)|
        (-0.0639, 'collapses')
    """
    if steps < 40 or burn_in < 0:
        raise MeasurementError(
            f"lyapunov_exponent: steps must be at least 40 for an error bar and burn_in >= 0, got {steps!r} and "
            f"{burn_in!r}."
        )
    if mode not in {"path", "frozen"}:
        raise MeasurementError(f"lyapunov_exponent: mode must be 'path' or 'frozen', got {mode!r}.")
    plain_sgd_only(task, "A Lyapunov exponent", momentum=True)
    mirror = as_mirror(directions, task)
    run = TangentPath(task, mirror, weight_decay=weight_decay, frozen=mode == "frozen", seed=seed)
    stationarity = math.nan
    if mode == "frozen" and (stationarity := run.stationarity()) > tolerance:
        raise MeasurementError(
            f"lyapunov_exponent: {mirror.name!r} is not at a stationary point on its plane: the relative force is "
            f"{stationarity:.2g}, at most {tolerance:g} is allowed. Use mode='path', or give a point polished by "
            "full-batch descent on the plane (gaugefix.measure.settle)."
        )
    total = LyapunovAccumulator(burn_in=burn_in)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(burn_in + steps):
            total.add(run.step())
    found = total.result()
    value, stderr = float(found.value), float(found.stderr)
    reason = ""
    if run.type2_residual > _TYPE_2:
        reason = (
            f"the gradient leaves the plane (relative normal part {run.type2_residual:.1e}): noise acts on z itself, "
            "and no exponent decides"
        )
        warnings.warn(f"{mirror.name}: {reason}", ValidityWarning, stacklevel=2)
    return MirrorExponent(
        name=mirror.name,
        mode=mode,
        value=value,
        stderr=stderr,
        verdict="undecided" if reason else verdict(value, stderr),
        steps=found.steps,
        lr=task.lr,
        weight_decay=task.weight_decay if weight_decay is None else weight_decay,
        batch_size=task.batch_size,
        momentum=task.momentum,
        distance=run.distance,
        type2_residual=run.type2_residual,
        stationarity=stationarity,
        valid=not reason,
        reason=reason,
    )


def lyapunov(
    task: Task, symmetries: Symmetries, *, max_mirrors: int = 4, steps: int = 400, burn_in: int = 100, seed: int = 0
) -> LyapunovReport:
    """Exponents of the planes that a model is closest to: will it fall onto them, or leave them?

    Args:
        task: gives model, loss, data and settings of SGD.
        symmetries: what `find_symmetries` gave.
        max_mirrors: measure at most this many, the nearest first.
        steps: that are counted for each.
        burn_in: steps before.
        seed: of the data order.

    Returns:
        The nearest mirror of every symmetry. Cost: about ``5·max_mirrors·(steps + burn_in)`` minibatch gradients.

    Raises:
        MeasurementError: if the optimiser is not SGD.

    Source: arXiv 2303.13093.
    """  # noqa: DOC502
    plain_sgd_only(task, "A Lyapunov exponent", momentum=True)
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    frozen = {k for k, p in task.model.named_parameters() if not p.requires_grad}
    nearest: list[tuple[float, Mirror | DenseMirror]] = []
    skipped = []
    for symmetry in symmetries:
        some = list(itertools.islice(symmetry.mirrors(), _SCANNED + 1))
        if len(some) > _SCANNED:
            skipped.append(f"{symmetry.name}: mirrors beyond the first {_SCANNED}")
        usable = [m for m in some[:_SCANNED] if not frozen.intersection(m.parameters)]
        if usable:
            nearest.append(min(((m.distance(params), m) for m in usable), key=lambda pair: pair[0]))
    nearest.sort(key=lambda pair: pair[0])
    skipped += [f"{m.name}: only the nearest {max_mirrors} planes were measured" for _, m in nearest[max_mirrors:]]
    found = []
    for _, mirror in nearest[:max_mirrors]:
        try:
            found.append(lyapunov_exponent(task, mirror, steps=steps, burn_in=burn_in, seed=seed))
        except MeasurementError as error:
            skipped.append(str(error))
    return LyapunovReport(tuple(found), tuple(skipped))
