"""Has a linear layer formed a canonical representation? Alignment of its features, its gradients and its weights.

For a layer h_b = W h_a and per-sample gradients g_b = −∂ℓ/∂h_b, g_a = Wᵀg_b, six relations may hold (arXiv 2410.03006):

    output side: H_b ∝ G_b (RGA), H_b ∝ WWᵀ (RWA), G_b ∝ WWᵀ (GWA); input side: the same with H_a, G_a, WᵀW,

where H and G are second moments. Weight decay in balance with gradient noise brings them about; which of them hold
fixes power laws between the spectra (`gaugefix.theory.canonical_exponents`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.measure.classes import exact_copy, to_dtype
from gaugefix.measure.records import Record
from gaugefix.measure.settle import first_samples
from gaugefix.measure.similarity import pearson
from gaugefix.task import Batch, Loss, Task

RELATIONS = ("rga_out", "rwa_out", "gwa_out", "rga_in", "rwa_in", "gwa_in")

_NULL_DRAWS = 8


@dataclass(frozen=True, eq=False)
class AlignmentReport(Record):
    """The six relations of one linear layer.

    Attributes:
        name: of the module.
        shape: (outputs, inputs).
        rga_out: Pearson correlation over all matrix entries of H_b with G_b, in [−1, 1]; nan for a single output.
        rwa_out: of H_b with WWᵀ.
        gwa_out: of G_b with WWᵀ.
        rga_in: of H_a with G_a.
        rwa_in: of H_a with WᵀW.
        gwa_in: of G_a with WᵀW.
        null: the same six after a random rotation of the first matrix, mean over draws: what a dominant diagonal alone
            gives. Small layers have large ones.
        null_std: standard deviation over the draws.
        n_samples: rows that were used, samples times positions.
        normalized: whether rows were divided by their norms and means subtracted.
        z: ``(r,)`` squared singular values of W, descending.
        h: ``(r,)`` E(v_k·h_a)² along the right singular vectors, not normalised.
        g: ``(r,)`` E(u_k·g_b)² along the left ones.
        reason: what makes the numbers unreliable, or "".
    """

    name: str
    shape: tuple[int, int]
    rga_out: float
    rwa_out: float
    gwa_out: float
    rga_in: float
    rwa_in: float
    gwa_in: float
    null: dict[str, float]
    null_std: dict[str, float]
    n_samples: int
    normalized: bool
    z: np.ndarray = field(repr=False)
    h: np.ndarray = field(repr=False)
    g: np.ndarray = field(repr=False)
    reason: str


@dataclass(frozen=True, eq=False)
class AlignmentSummary(Record):
    """Alignment of every linear layer of a task.

    Attributes:
        layers: in the order of the modules.
        skipped: what was not measured, and why.
    """

    layers: tuple[AlignmentReport, ...]
    skipped: tuple[str, ...]


def measure_alignment(
    model: nn.Module,
    batches: Iterable[Batch] | Callable[[], Iterable[Batch]],
    loss_fn: Loss,
    layers: Sequence[str] | None = None,
    normalize: bool = True,
    *,
    max_features: int = 2048,
    seed: int = 0,
) -> dict[str, AlignmentReport]:
    """The six alignment relations of linear layers, in one forward and backward pass over the data.

    The bias is left out of h_b. Positions of a sequence count as samples. The model is measured in evaluation mode;
    use held-out data, ten samples or more per feature.

    Args:
        model: any module; it is not changed.
        batches: data, or a function that returns it.
        loss_fn: ``loss_fn(model, batch) -> (n,)``, per sample and unreduced.
        layers: names of `nn.Linear` modules; default all that are used and not too large.
        normalize: divide every h and g by its norm and subtract the mean, which makes the numbers robust against
            outliers; else raw second moments.
        max_features: larger layers are left out, or refused if named in ``layers``.
        seed: of the rotations of the null level.

    Returns:
        One report per layer. Cost: a gradient, and n² per row and n³ per layer for n features.

    Raises:
        MeasurementError: if a name is no `nn.Linear` or too large, a named layer is not used, there is no layer at
            all, or the loss is not per sample.

    Source: arXiv 2410.03006.

    Example:
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> found = measure_alignment(nn.Linear(4, 3), [x], lambda m, b: m(b).square().sum(1))
        >>> round(found[""].rga_out, 3)  # the gradient of ½‖h‖² is h: aligned, but for the bias
        0.9...
    """  # noqa: DOC502
    held = list(batches() if callable(batches) else batches)
    task = Task(model, loss_fn, lambda: held, lr=1.0, weight_decay=0.0, batch_size=1, name="alignment")
    found, _ = _measure(task, held, layers, normalize, max_features, seed)
    return {report.name: report for report in found}


def alignment_report(
    task: Task, *, max_samples: int = 2048, max_features: int = 1024, seed: int = 0
) -> AlignmentSummary:
    """`measure_alignment` of all linear layers of a task, for an audit; it needs no symmetries.

    Args:
        task: gives model, loss and data.
        max_samples: stop after the batch that reaches this number.
        max_features: larger layers are left out.
        seed: of the data order and the null level.

    Returns:
        Reports, and which layers were left out.

    Raises:
        MeasurementError: if there is no linear layer.
    """  # noqa: DOC502
    found, skipped = _measure(task, list(first_samples(task, max_samples, seed)), None, True, max_features, seed)
    return AlignmentSummary(tuple(found), tuple(skipped))


class _Moments:
    """Sums of outer products of the four kinds of rows of one layer."""

    def __init__(self, layer: nn.Linear, normalize: bool) -> None:
        self.weight, self.normalize = layer.weight.detach(), normalize
        self.second: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.count = 0
        self.raw = {"h": torch.zeros(()), "g": torch.zeros(())}
        self.left, self.values, self.right = torch.linalg.svd(self.weight, full_matrices=False)

    def add(self, h: Tensor, g: Tensor) -> None:
        rows = {"h_a": h, "h_b": h @ self.weight.T, "g_b": g, "g_a": g @ self.weight}
        self.raw["h"] = self.raw["h"].to(h) + (h @ self.right.T).square().sum(0)
        self.raw["g"] = self.raw["g"].to(g) + (g @ self.left).square().sum(0)
        for name, value in rows.items():
            unit = nn.functional.normalize(value, dim=1, eps=1e-300) if self.normalize else value
            self.second[name] = self.second.get(name, 0.0) + unit.T @ unit
            self.first[name] = self.first.get(name, 0.0) + unit.sum(0)
        self.count += len(h)

    def matrix(self, name: str) -> Tensor:
        """Second moment, or covariance of the normalised rows."""
        mean = self.first[name] / self.count
        return self.second[name] / self.count - (torch.outer(mean, mean) if self.normalize else 0.0)


def _measure(
    task: Task, batches: list[Batch], layers: Sequence[str] | None, normalize: bool, max_features: int, seed: int
) -> tuple[list[AlignmentReport], list[str]]:
    copy = exact_copy(task)
    chosen, skipped = _choose(copy.model, layers, max_features)
    moments = {name: _Moments(module, normalize) for name, module in chosen.items()}
    dtype = next(iter(chosen.values())).weight.dtype
    with torch.random.fork_rng(devices=[]):
        for batch in batches:
            _add(copy, to_dtype(batch, dtype), chosen, moments)
    reports = []
    for name, found in moments.items():
        if found.count:
            reports.append(_report(name, found, seed))
        elif layers is not None:
            raise MeasurementError(f"measure_alignment: layer {name!r} is not used in the forward pass.")
        else:
            skipped.append(f"{name}: not used in the forward pass")
    if not reports:
        raise MeasurementError("measure_alignment: no linear layer is used in the forward pass.")
    return reports, skipped


def _choose(
    model: nn.Module, layers: Sequence[str] | None, max_features: int
) -> tuple[dict[str, nn.Linear], list[str]]:
    known = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    if unknown := set(layers or ()) - known.keys():
        raise MeasurementError(
            f"measure_alignment: {sorted(unknown)[0]!r} is no nn.Linear of this model. "
            f"There are: {', '.join(map(repr, list(known)[:12])) or 'none'}."
        )
    wanted = {k: m for k, m in known.items() if layers is None or k in layers}
    large = [k for k, m in wanted.items() if max(m.weight.shape) > max_features]
    if layers is not None and large:
        raise MeasurementError(
            f"measure_alignment: {large[0]!r} has {max(wanted[large[0]].weight.shape)} features, more than "
            f"max_features = {max_features}; its moments would take n² numbers. Raise max_features to measure it."
        )
    chosen = {k: m for k, m in wanted.items() if k not in large}
    if not chosen:
        raise MeasurementError(
            "measure_alignment: there is no nn.Linear layer to measure"
            + (f"; {len(large)} are larger than max_features = {max_features}." if large else " in this model.")
        )
    return chosen, [f"{k}: more than {max_features} features" for k in large]


def _add(task: Task, batch: Batch, chosen: dict[str, nn.Linear], moments: dict[str, _Moments]) -> None:
    """One forward and backward pass, with hooks for its time."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            calls.append((name, args[0].detach(), probe))
            return output + probe

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in chosen.items()]
    try:
        losses = task.loss(task.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if losses.ndim != 1:
        raise MeasurementError(
            f"measure_alignment: the loss must be per sample and unreduced, shape (n,), got {tuple(losses.shape)}. "
            "Pass reduction='none'."
        )
    if not calls:
        return
    pulls = torch.autograd.grad(losses.sum(), [c[2] for c in calls], allow_unused=True, materialize_grads=True)
    for (name, h, _), pull in zip(calls, pulls, strict=True):
        rows, grads = h.reshape(-1, h.shape[-1]), -pull.reshape(-1, pull.shape[-1])
        if not (torch.isfinite(rows).all() and torch.isfinite(grads).all()):
            raise MeasurementError(f"measure_alignment: features or gradients of layer {name!r} are not finite.")
        moments[name].add(rows, grads)


def _report(name: str, found: _Moments, seed: int) -> AlignmentReport:
    w = found.weight
    matrices = {k: found.matrix(k) for k in ("h_a", "h_b", "g_a", "g_b")}
    out, inner = w @ w.T, w.T @ w
    pairs = {
        "rga_out": (matrices["h_b"], matrices["g_b"]),
        "rwa_out": (matrices["h_b"], out),
        "gwa_out": (matrices["g_b"], out),
        "rga_in": (matrices["h_a"], matrices["g_a"]),
        "rwa_in": (matrices["h_a"], inner),
        "gwa_in": (matrices["g_a"], inner),
    }
    generator = torch.Generator().manual_seed(seed)
    rotations: dict[int, list[Tensor]] = {len(m): [] for m in (out, inner)}
    for n, some in rotations.items():
        for _ in range(_NULL_DRAWS):
            some.append(torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0].to(w))
    nulls = {k: [pearson(q @ a @ q.T, b) for q in rotations[len(a)]] for k, (a, b) in pairs.items()}
    few = found.count < 10 * max(w.shape)
    return AlignmentReport(
        name,
        (w.shape[0], w.shape[1]),
        **{k: pearson(a, b) for k, (a, b) in pairs.items()},
        null={k: float(np.mean(v)) for k, v in nulls.items()},
        null_std={k: float(np.std(v, ddof=1)) for k, v in nulls.items()},
        n_samples=found.count,
        normalized=found.normalize,
        z=found.values.square().double().cpu().numpy(),
        h=(found.raw["h"] / found.count).double().cpu().numpy(),
        g=(found.raw["g"] / found.count).double().cpu().numpy(),
        reason=f"{found.count} rows for {max(w.shape)} features: the moments are noisy" if few else "",
    )
