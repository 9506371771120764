"""Birth threshold of any class of units: the Hessian of the data loss in the coordinates of a ghost."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.modules.conv import _ConvNd

from gaugefix.measure.classes import single_precision_copy
from gaugefix.measure.eigenpairs import extreme_eigenpairs
from gaugefix.measure.ghost_model import GhostModel
from gaugefix.measure.records import Record
from gaugefix.symmetry import Units
from gaugefix.task import Task
from gaugefix.theory import Ascent, ascend

_CHUNK = 32  # ghosts of one Hessian-vector product
_DENSE = 1024  # entries of a ghost up to which its block is formed
_TOLERANCE, _TOLERANCE_SINGLE = 1e-6, 1e-3
_STEP = 1e-4  # size of the ghosts that tell a kink from a slope
_N_STARTS = 16
_MAX_ITER = 60  # of an ascent; each step costs a product of the Hessian
_GAIN = 1e-5  # relative gain per step below which an ascent has arrived


@dataclass(frozen=True, eq=False)
class GhostBlock(Record):
    """What a ghost of a class would do.

    Attributes:
        kappa: growth rate κ of the best ghost per unit of lr × steps, before weight decay; nan if there is none.
        spectra: ``(fibers, modes)`` growth rates of the independent modes of every fiber, descending: singular values
            of its signal matrix. Empty for classes with a kink.
        fiber: the one with the largest κ.
        direction: ``(d,)`` the best ghost, of norm 1, incoming and outgoing entries of equal norm.
        degree: 1 for a unit of two factors (κ and a threshold); 2 if the ghost enters with three factors (gated units):
            then κ = 0.
        kink: whether the class is positively homogeneous and not smooth at zero.
        residual: of the block, or relative gain of the last step of the ascent.
        converged: whether that is small.
        method: "block", "lanczos", "ascent" or "dead modes".
        reason: why there is no threshold, or "".
        incoming: ``(d_in,)`` incoming weights of the best ghost of a class with a kink, else None.
        model: the widened model, None if there is none.
    """

    kappa: float
    spectra: np.ndarray
    fiber: int
    direction: np.ndarray
    degree: int
    kink: bool
    residual: float
    converged: bool
    method: str
    reason: str = ""
    incoming: np.ndarray | None = None
    model: GhostModel | None = field(default=None, repr=False)

    def curvatures(self) -> np.ndarray:
        """Curvature of every sample along the best ghost, ``(n_samples,)``; its mean is −κ.

        Returns:
            The second derivatives d²ℓ_i/dt² along the direction, by differences. Empty if there is no widened model, or
            if the mean misses −κ by more than 1 % because the model rounds inside. Cost: three passes for each of up to
            three steps.
        """
        if self.model is None or not len(self.direction):
            return np.zeros(0)
        at = self.model.zero()
        at[self.fiber % len(at), 0] = torch.as_tensor(self.direction, dtype=at.dtype)
        here = self.model.each(0 * at)
        for step in (1e-3, 1e-2, 1e-1):
            up = self.model.each(step * at)
            down = up if self.kink else self.model.each(-step * at)
            values: np.ndarray = ((up + down - 2 * here) / step**2 / self.model.score_scale).double().cpu().numpy()
            if abs(float(values.mean()) + self.kappa) <= 1e-2 * self.kappa:
                return values
        return np.zeros(0)


def ghost_block(
    copy: Task, units: Units, *, max_samples: int = 4096, seed: int = 0, near: np.ndarray | None = None
) -> GhostBlock:
    """Birth threshold of a class by widening a copy of the model with ghosts.

    A smooth unit: κ = −λ_min of the Hessian in the 2-factor coordinates (w, u) of one ghost, [[0, −Cᵀ], [−C, 0]] at
    zero size, so the modes are the singular values of the signal matrix C. Ghosts do not see each other to second
    order, so one product of the Hessian with many ghosts gives as many columns. A unit with a kink (ReLU): ascent of
    ‖∂L/∂u‖ at u = 0 over ‖w‖ = 1.

    Args:
        copy: from `exact_copy`; it is not changed.
        units: the class.
        max_samples: stop after the batch that reaches this number.
        seed: of directions and starts.
        near: incoming weights known to be nearly the best: the ascent of a class with a kink then starts there alone.

    Returns:
        The threshold. Cost: d/32 Hessian-vector products for a ghost of d entries, a few tens above d = 1024 and for
        the ascent.

    Raises:
        MeasurementError: if the model cannot be widened, and no mode of the class is dead in its place.

    Source: arXiv 2309.16932, weight decay; arXiv 2205.12510.
    """  # noqa: DOC502
    copy = quick_precision(copy)
    degree, kink, reason = 1, False, ""
    if "linear" not in units.flags and units.activation != "identity":
        degree, kink, reason = _shape_at_zero(copy, units, max_samples, seed)
    if reason:
        empty = np.zeros((units.fibers, 0))
        return GhostBlock(np.nan, empty, 0, np.zeros(0), degree, kink, np.nan, True, "", reason)
    if degree > 1:
        empty = np.zeros((units.fibers, 0))
        return GhostBlock(0.0, empty, 0, np.zeros(0), degree, kink, 0.0, True, "block")
    if kink:
        return _ascent(copy, units, max_samples, seed, near)
    return _block(copy, units, max_samples, seed)


def _shape_at_zero(copy: Task, units: Units, max_samples: int, seed: int) -> tuple[int, bool, str]:
    """Order of the pull on u in the size of w, whether it has a kink, and why there is no threshold."""
    model = GhostModel.widened(copy, units, 4, max_samples=min(max_samples, 256))
    w, u = model.columns("write"), model.columns("read")
    if not len(w) or not len(u):
        return 1, False, ""
    rng = np.random.default_rng(seed)
    direction = torch.as_tensor(rng.standard_normal((units.fibers, len(w))) / len(w) ** 0.5, dtype=model.dtype)
    step = _STEP if model.dtype == torch.float64 else 100 * _STEP
    z = model.zero()
    for ghost, size in enumerate((step, -step, 2 * step, 0.0)):
        z[:, ghost, w] = size * direction
    pull = -model.gradient(z)[:, :, u]
    up, down, twice, none = (pull[:, i] for i in range(4))
    scale = max(float(up.norm()), float(down.norm()))
    if float(none.norm()) > 1e-3 * scale:
        return 1, False, f"a unit without incoming weights is not zero ({units.activation}): it has no collapsed state"
    if scale == 0:
        return 1, False, "nothing pulls on the class"
    ratio = float(twice.norm()) / max(float(up.norm()), 1e-300)
    if ratio > 3:
        return 2, False, ""
    return 1, float((up + down).norm()) > 1e-2 * (float(up.norm()) + float(down.norm())), ""


def _block(copy: Task, units: Units, max_samples: int, seed: int) -> GhostBlock:
    """Dense blocks of all fibers, or the lowest modes of each."""
    model = GhostModel.widened(copy, units, 1, max_samples=max_samples)
    d = model.shape[2]
    if d > _DENSE:
        return _lowest(model, seed)
    n = min(d, _CHUNK)
    wide = model if n == 1 else GhostModel.widened(copy, units, n, max_samples=max_samples)
    return dense_block(model, wide, seed, "block")


def dense_block(model: GhostModel, wide: GhostModel, seed: int, method: str) -> GhostBlock:
    """All modes; ``wide`` has as many ghosts as one product treats, ``model`` has one."""
    fibers, n, d = wide.shape
    at = wide.zero().requires_grad_()
    (gradient,) = torch.autograd.grad(wide.mean(at), at, create_graph=True)
    blocks = np.zeros((fibers, d, d))
    for start in range(0, d, n):
        count = min(n, d - start)
        tangent = wide.zero()
        tangent[:, torch.arange(count), start + torch.arange(count)] = 1.0
        (image,) = torch.autograd.grad((gradient * tangent).sum(), at, retain_graph=True)
        blocks[:, start : start + count] = image[:, :count].double().cpu().numpy()
    blocks /= wide.score_scale
    residual = _misfit(model, blocks, seed)
    values, vectors = np.linalg.eigh((blocks + blocks.transpose(0, 2, 1)) / 2)
    return _from_modes(model, values, vectors, residual, method)


def _misfit(model: GhostModel, blocks: np.ndarray, seed: int) -> float:
    """Relative error of the blocks against one product with a single ghost, all fibers at once."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal((len(blocks), blocks.shape[1]))
    image = _product(model, vector) / model.score_scale
    expected = np.einsum("fij,fj->fi", blocks, vector)
    scale = float(np.linalg.norm(expected))
    return float(np.linalg.norm(image - expected)) / scale if scale else float(np.linalg.norm(image))


def _product(model: GhostModel, vector: np.ndarray) -> np.ndarray:
    """Hessian times one ghost in every fiber, ``(fibers, d)``."""
    at = model.zero().requires_grad_()
    (gradient,) = torch.autograd.grad(model.mean(at), at, create_graph=True)
    tangent = torch.as_tensor(vector, dtype=at.dtype, device=at.device)[:, None]
    (image,) = torch.autograd.grad((gradient * tangent).sum(), at)
    product: np.ndarray = image[:, 0].double().cpu().numpy()
    return product


def _lowest(model: GhostModel, seed: int, count: int = 6) -> GhostBlock:
    """The lowest modes of every fiber by Lanczos."""
    fibers, _, d = model.shape
    at = model.zero().requires_grad_()
    (gradient,) = torch.autograd.grad(model.mean(at), at, create_graph=True)
    values, vectors, residual = np.empty((fibers, count)), np.empty((fibers, d, count)), 0.0
    for f in range(fibers):

        def product(v: np.ndarray, fiber: int = f) -> np.ndarray:
            tangent = model.zero()
            tangent[fiber, 0] = torch.as_tensor(v, dtype=tangent.dtype)
            (image,) = torch.autograd.grad((gradient * tangent).sum(), at, retain_graph=True)
            out: np.ndarray = image[fiber, 0].double().cpu().numpy() / model.score_scale
            return out

        values[f], vectors[f], found = extreme_eigenpairs(product, d, count, "SA", seed=seed)
        residual = max(residual, float(found.max()))
    return _from_modes(model, values, vectors, residual, "lanczos")


def _from_modes(model: GhostModel, values: np.ndarray, vectors: np.ndarray, residual: float, method: str) -> GhostBlock:
    """Eigenvalues of [[0, −Cᵀ], [−C, 0]] come in pairs ±σ: the lower half are −σ."""
    modes = np.maximum(-values, 0.0)
    w, u = len(model.columns("write")), len(model.columns("read"))
    modes = modes[:, : min(w, u) if u else max(1, (w + 1) // 2)]
    fiber = int(np.argmax(modes[:, 0]))
    bar = _TOLERANCE if model.dtype == torch.float64 else _TOLERANCE_SINGLE
    return GhostBlock(
        float(modes[fiber, 0]), modes, fiber, vectors[fiber, :, 0], 1, False, residual, residual < bar, method,
        model=model,
    )  # fmt: skip


def _ascent(copy: Task, units: Units, max_samples: int, seed: int, near: np.ndarray | None) -> GhostBlock:
    """Best direction of a class with a kink, fiber by fiber."""
    model = GhostModel.widened(copy, units, _N_STARTS if near is None else 1, max_samples=max_samples)
    w, u = model.columns("write"), model.columns("read")
    best: Ascent | None = None
    fiber = 0
    for f in range(units.fibers):
        starts = _starts(copy, units, f, len(w), seed) if near is None else near[None]

        def pull(rows: np.ndarray, at: int = f) -> tuple[np.ndarray, np.ndarray]:
            return _pull(model, rows, at, w, u)[:2]

        found = ascend(pull, starts, max_iter=_MAX_ITER, tolerance=_GAIN)
        if best is None or found.value > best.value:
            best, fiber = found, f
    assert best is not None
    value, _, outgoing = _pull(model, best.direction[None], fiber, w, u)
    z = np.zeros(model.shape[2])
    z[w], z[u] = best.direction, outgoing[0] / max(float(value[0]), 1e-300)
    return GhostBlock(
        best.value, np.zeros((units.fibers, 0)), fiber, z / 2**0.5, 1, True, best.residual, best.converged,
        "ascent", incoming=best.direction, model=model,
    )  # fmt: skip


def _starts(copy: Task, units: Units, fiber: int, d: int, seed: int) -> np.ndarray:
    """Directions of the largest units of a fiber, and random ones."""
    params = {k: p.detach() for k, p in copy.model.named_parameters()}
    own = units.rows(params, "write").double().cpu().numpy()[fiber * units.size : (fiber + 1) * units.size]
    sizes = np.linalg.norm(own, axis=1)
    own = own[np.argsort(-sizes)[: _N_STARTS // 2]]
    own = own[np.linalg.norm(own, axis=1) > 0]
    return np.vstack([own, np.random.default_rng(seed).standard_normal((_N_STARTS - len(own), d))])


def _pull(
    model: GhostModel, rows: np.ndarray, fiber: int, w: np.ndarray, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values ‖∂L/∂u‖ at u = 0 of ghosts with incoming weights ``rows``, gradients of half their squares, pulls."""
    incoming = torch.as_tensor(rows, dtype=model.dtype, device=model.device).requires_grad_()
    outgoing = torch.zeros(len(rows), len(u), dtype=model.dtype, device=model.device, requires_grad=True)
    ghosts = torch.zeros(len(rows), model.shape[2], dtype=model.dtype, device=model.device)
    ghosts = ghosts.index_copy(1, torch.as_tensor(w), incoming).index_copy(1, torch.as_tensor(u), outgoing)
    z = model.zero()
    z = torch.cat([z[:, : len(rows)], z[:, len(rows) :]], dim=1)
    z = z.index_put((torch.tensor(fiber), torch.arange(len(rows))), ghosts)
    (pull,) = torch.autograd.grad(model.mean(z), outgoing, create_graph=True)
    (gradient,) = torch.autograd.grad(pull.square().sum() / 2, incoming)
    values: np.ndarray = pull.detach().norm(dim=1).double().cpu().numpy()
    return values, gradient.double().cpu().numpy(), (-pull).detach().double().cpu().numpy()


def quick_precision(copy: Task) -> Task:
    """A copy in single precision if it has convolutions, whose second derivatives are 40 times slower in double.

    Args:
        copy: from `exact_copy`.

    Returns:
        The task to measure on.
    """
    if not any(isinstance(m, _ConvNd) for m in copy.model.modules()):
        return copy
    return single_precision_copy(copy)
