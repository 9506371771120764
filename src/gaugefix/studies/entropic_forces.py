"""SGD with a finite step descends another loss: L + (λ/2)‖θ‖² + (lr/4)E‖ĝ‖². Its last term is an entropy.

A step of size lr is, to second order, a flow on ℓ + (lr/4)‖∇ℓ‖², and the mean over minibatches adds the size of the
noise. The force of this term vanishes on nothing that leaves gradients as they are, so permutations and rotations stay
symmetries, and is strictly convex along every rescaling: it picks one point of each such orbit, where gradients are
balanced between layers. From gradient norms alone this predicts the norms of the layers of a trained network.

The study measures orders of the step size on a tanh network, trains ReLU networks on random data and on digits until
they are stationary, and shows where the entropic loss does *not* give the drift: in a valley that no symmetry makes,
with batches drawn anew in every step. Weight decay is PyTorch's λ; the paper's γ is λ/2.

Source: Liu Ziyin, Yizhou Xu and Isaac Chuang, "Neural Thermodynamics (I): Entropic Forces in Deep and Universal
Representation Learning", arXiv 2505.12387.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure import backward_error_loss
from gaugefix.studies.balanced_layers import digits_norms, layer_balance
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance
from gaugefix.studies.registry import study
from gaugefix.theory.noise_equilibrium import rescaling_equilibrium
from gaugefix.theory.valley_drift import valley_drift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
LRS, SUBSTEPS, FACTORS = (0.01, 0.005, 0.0025), (2, 4, 16), (0.0, 0.125, 0.25, 0.375)
VALLEY_STD, VALLEY_LR, VALLEY_STEPS, VALLEY_START = (1.0, 0.3), 0.02, 2000, 0.3

Params = Mapping[str, Tensor]


@study("2505.12387")
def entropic_forces() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "one-step",
            "n small steps on ℓ + (lr/4)(1 − 1/n)‖∇ℓ‖² do what one step does on ℓ, up to third order in lr.",
            substep_orders,
            Tolerance("higher orders at finite learning rates", absolute=0.15),
            unit="order of the difference",
        ),
        Claim(
            "one-epoch",
            "Averaged over the orders of the batches an epoch is a flow on L + c·lr·E‖ĝ‖² with c = ¼, not another c.",
            epoch_orders,
            Tolerance("higher orders at finite learning rates", absolute=0.2),
            draw_orders,
            unit="order of the difference",
        ),
        Claim(
            "orbit",
            "The entropy ignores permutations and rotations; along a rescaling it is least at a computed point.",
            orbit_of_units,
            Tolerance("rounding", absolute=1e-6),
            unit="as labelled",
        ),
        Claim(
            "balance",
            "At the end of training lr·E‖ĝ_i‖² − 2λ‖W_i‖² is the same for all layers.",
            layer_balance,
            Tolerance("means over 2700 steps", relative=0.02),
            unit="z of a layer / mean",
        ),
        Claim(
            "digits",
            "So gradient norms predict by how much the layers of a network on digits differ in norm.",
            digits_norms,
            Tolerance("gradients still grow slowly, and sizes follow them 1/(2·lr·λ) steps later", relative=0.05),
            draw_identity,
            unit="‖W_i‖² − ‖W_j‖²",
        ),
        Claim(
            "validity",
            "Where no symmetry helps, the entropic loss is right for reshuffled batches but not for fresh ones.",
            valley_ends,
            Tolerance("finite learning rate, and 400 runs", absolute=0.015),
            draw_valley,
            unit="position in the valley",
        ),
    )


# Orders of the step size, on a tanh network 6-5-3


@cache
def _network(seed: int) -> tuple[Params, list[Callable[[Params], Tensor]]]:
    """Weights, and the losses of four batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(4, 16, n, generator=generator, dtype=F64) for n in (6, 3))
    weights = {k: 0.6 * torch.randn(*s, generator=generator, dtype=F64) for k, s in (("w", (5, 6)), ("u", (3, 5)))}

    def loss(batch: int, p: Params) -> Tensor:
        return ((x[batch] @ p["w"].T).tanh() @ p["u"].T - y[batch]).square().sum(1).mean()

    return weights, [partial(loss, b) for b in range(4)]


def _step(loss: Callable[[Params], Tensor], p: Params, lr: float) -> Params:
    gradient = torch.func.grad(loss)(p)
    return {k: v - lr * gradient[k] for k, v in p.items()}


def _distance(a: Params, b: Params) -> float:
    return float(torch.sqrt(sum((a[k] - b[k]).square().sum() for k in a)))  # type: ignore[arg-type]


def _orders(errors: np.ndarray) -> np.ndarray:
    """Slope between the two smallest learning rates, which are the last dimension."""
    return np.asarray(np.log2(errors[..., -2] / errors[..., -1]))


def substep_orders(setting: Setting) -> Evidence:
    """Order of the distance after one step, and of that without the added term."""
    errors = np.empty((len(setting.seeds), len(SUBSTEPS) + 1, len(LRS)))
    for row, seed in enumerate(setting.seeds):
        weights, (loss, *_) = _network(seed)
        for column, n in enumerate((*SUBSTEPS, SUBSTEPS[-1])):
            for i, lr in enumerate(LRS):
                modified = backward_error_loss(loss, lr=lr, n_substeps=n) if column < len(SUBSTEPS) else loss
                many = weights
                for _ in range(n):
                    many = _step(modified, many, lr / n)
                errors[row, column, i] = _distance(many, _step(loss, weights, lr))
    cells = (*(f"n = {n}" for n in SUBSTEPS), "nothing added")
    return Evidence(np.array([3.0] * len(SUBSTEPS) + [2.0]), _orders(errors), cells)


def epoch_orders(setting: Setting) -> Evidence:
    """All 24 orders of four batches, against a flow of the same time by the Runge-Kutta method."""
    errors = np.empty((len(setting.seeds), len(FACTORS), len(LRS)))
    for row, seed in enumerate(setting.seeds):
        weights, losses = _network(seed)
        for i, lr in enumerate(LRS):
            ends = []
            for order in permutations(losses):
                end = weights
                for loss in order:
                    end = _step(loss, end, lr)
                ends.append(end)
            mean = {k: torch.stack([e[k] for e in ends]).mean(0) for k in weights}
            for column, factor in enumerate(FACTORS):
                errors[row, column, i] = _distance(mean, _flow(losses, weights, 4 * factor * lr, len(losses) * lr))
    curves = {"lr": np.array(LRS), "errors": errors.mean(0)}
    return Evidence(np.array([2.0, 2.0, 3.0, 2.0]), _orders(errors), tuple(f"c = {c:g}" for c in FACTORS), curves)


def _flow(losses: list[Callable[[Params], Tensor]], start: Params, lr: float, time: float, n: int = 2) -> Params:
    """Gradient flow of the mean of ℓ + (lr/4)‖∇ℓ‖²."""
    modified = [backward_error_loss(loss, lr=lr) for loss in losses] if lr else losses
    slope = torch.func.grad(lambda p: torch.stack([f(p) for f in modified]).mean())
    p, h = start, time / n

    def ahead(step: float, direction: Params) -> Params:
        return {k: v - step * direction[k] for k, v in p.items()}

    for _ in range(n):
        a = slope(p)
        b = slope(ahead(h / 2, a))
        c = slope(ahead(h / 2, b))
        d = slope(ahead(h, c))
        p = ahead(h / 6, {k: a[k] + 2 * b[k] + 2 * c[k] + d[k] for k in p})
    return p


def draw_orders(axes: Axes, result: Comparison) -> None:
    """Distance over learning rate: one coefficient falls faster."""
    for factor, error in zip(FACTORS, result.curves["errors"], strict=True):
        right = factor == 0.25
        label = f"c = {factor:g}" + (", predicted: third order" if right else "")
        axes.loglog(
            result.curves["lr"], error, "o-", color=PREDICTED if right else NEUTRAL, alpha=1 - factor, label=label
        )
    axes.set(xlabel="learning rate", ylabel="distance of mean end and flow")
    axes.set_xticks(LRS, [f"{lr:g}" for lr in LRS])
    axes.minorticks_off()
    axes.legend()


def orbit_of_units(setting: Setting) -> Evidence:
    """ReLU units on 64 samples: S at a permuted and at a rotated point, and the scale at which S is least."""
    measured, predicted = [], []
    for seed in setting.seeds:
        generator = torch.Generator().manual_seed(seed)
        x, y, w, u, q = (
            torch.randn(*s, generator=generator, dtype=F64) for s in ((64, 6), (64, 3), (5, 6), (3, 5), (5, 5))
        )

        def sides(
            w: Tensor, u: Tensor, act: Callable[[Tensor], Tensor] = torch.relu, x: Tensor = x, y: Tensor = y
        ) -> tuple[float, float]:
            """E‖ĝ_u‖² and E‖ĝ_w‖² of single samples."""
            each = torch.func.jacrev(lambda w, u: (act(x @ w.T) @ u.T - y).square().sum(1), argnums=(0, 1))(w, u)
            return float(each[1].square().sum()) / 64, float(each[0].square().sum()) / 64

        now, order, turn = sides(w, u), torch.randperm(5, generator=generator), torch.linalg.qr(q)[0]
        linear = partial(sides, act=lambda z: z)
        scales = np.linspace(-1, 1, 41)
        entropy = [sum(sides(w * np.exp(-c), u * np.exp(c))) for c in scales]
        best = int(np.argmin(entropy[1:-1])) + 1
        # the logarithm of the ratio of the two sides is linear in c: refine from the best point
        left = sides(w * np.exp(-scales[best]), u * np.exp(scales[best]))
        least = scales[best] + np.log(left[0] / left[1]) / 4
        permuted, rotated = sum(sides(w[order], u[:, order])), sum(linear(turn @ w, u @ turn.T))
        measured.append([permuted / sum(now) - 1, rotated / sum(linear(w, u)) - 1, least])
        point = rescaling_equilibrium({1.0: np.array([now[0]]), -1.0: np.array([now[1]])})
        predicted.append([0.0, 0.0, float(point[0])])
    cells = ("ΔS/S, permutation", "ΔS/S, rotation", "log-scale of least S")
    return Evidence(np.array(predicted), np.array(measured), cells)


# A valley: outputs (a eᵇ, a e⁻ᵇ), targets that are noise


def _valley(seeds: tuple[int, ...], reshuffled: bool, runs: int = 400) -> np.ndarray:
    """Mean of b over time ``(seeds, steps + 1)``; per sample ½Σ(f − y)², y = ±std."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    b = torch.full((len(seeds), runs), VALLEY_START, dtype=F64)
    a, found = torch.zeros_like(b), [b.mean(1)]
    std = torch.tensor(VALLEY_STD, dtype=F64)[:, None, None]
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=F64)
    for step in range(VALLEY_STEPS):
        if step % 4 == 0:
            rows = torch.stack([torch.rand(runs, 4, generator=g).argsort(1) for g in generators])
            if not reshuffled:
                rows = torch.stack([torch.randint(4, (runs, 4), generator=g) for g in generators])
        e = torch.stack([b.exp(), (-b).exp()])
        error = a * e - std * signs[:, rows[..., step % 4]]
        g_a, g_b = (error * e).sum(0), a * (error[0] * e[0] - error[1] * e[1])
        a, b = a - VALLEY_LR * g_a, b - VALLEY_LR * g_b
        found.append(b.mean(1))
    return torch.stack(found, 1).numpy()


def _entropic_force(b: float) -> float:
    """−∂_b (lr/4)Σ_aa with Σ_aa = σ₁²e^{2b} + σ₂²e^{−2b}."""
    (s, t) = np.square(VALLEY_STD) * np.exp([2 * b, -2 * b])
    return float(-VALLEY_LR / 2 * (s - t))


def _noise_force(b: float) -> float:
    """The drift of fresh batches, from H_aa = e^{2b} + e^{−2b} and its derivative along b."""
    up, down = np.exp([2 * b, -2 * b])
    third = np.zeros((2, 2, 2))
    third[0, 0, 1] = third[0, 1, 0] = third[1, 0, 0] = 2 * (up - down)
    noise = float((np.square(VALLEY_STD) * [up, down]).sum())
    return float(valley_drift(np.diag([up + down, 0.0]), third, np.diag([noise, 0.0]), VALLEY_LR)[1])


def _along(force: Callable[[float], float]) -> np.ndarray:
    path = [VALLEY_START]
    for _ in range(VALLEY_STEPS):
        path.append(path[-1] + VALLEY_LR * force(path[-1]))
    return np.array(path)


def valley_ends(setting: Setting) -> Evidence:
    """400 runs for each seed and way of sampling."""
    measured = [_valley(setting.seeds, reshuffled) for reshuffled in (True, False)]
    predicted = [_along(force) for force in (_entropic_force, _noise_force)]
    every = slice(None, None, 40)
    curves = {"runs": np.array([m.mean(0)[every] for m in measured]), "lines": np.array([p[every] for p in predicted])}
    ends = np.stack([m[:, -1] for m in measured], axis=1)
    return Evidence(np.array([p[-1] for p in predicted]), ends, ("reshuffled", "fresh batches"), curves)


def draw_valley(axes: Axes, result: Comparison) -> None:
    """Position over time, by both ways of sampling, and the two theories."""
    steps = np.arange(len(result.curves["lines"][0])) * 40
    for line, style, label in zip(
        result.curves["lines"], ("-", "--"), ("entropic loss", "drift of fresh noise"), strict=True
    ):
        axes.plot(steps, line, style, color=PREDICTED, label=label)
    for run, face, label in zip(
        result.curves["runs"], (MEASURED, "white"), ("reshuffled", "fresh batches"), strict=True
    ):
        axes.plot(steps[::4], run[::4], "o", ms=4.5, mec=MEASURED, mfc=face, label=f"measured, {label}")
    axes.set(xlabel="step", ylabel=result.unit)
    axes.legend()
