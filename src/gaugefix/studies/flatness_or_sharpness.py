"""SGD seeks neither flat nor sharp minima: it seeks the one whose gradients fluctuate least.

A deep linear network W_D…W₁x has a whole manifold of minima. Gradient noise drifts along it to the point of least
𝒮 = E‖∇ℓ‖², which has a closed form, and so has its sharpness T = Tr ∇²L. If the labels of all outputs are equally
noisy that point is the flattest of all. If they are not it is sharper, by a factor that grows with the imbalance: a
flat network sharpens, a sharp one flattens, and full-batch descent does neither.

The study minimises the fluctuation numerically, runs SGD on ensembles of three-layer networks, and trains a ReLU
network on digits with noise of one total size, spread equally over the outputs or not. The loss is ½‖y − f‖².

Source: Yizhou Xu, Pierfrancesco Beneventano, Isaac Chuang and Liu Ziyin, "Does SGD Seek Flatness or Sharpness? An
Exactly Solvable Model", arXiv 2602.05065.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_against, draw_cells, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.linear_networks import train_linear
from gaugefix.studies.noisy_digits import digits_ratio, draw_digits
from gaugefix.studies.registry import study
from gaugefix.theory.deep_linear_hessian import initial_sharpness, layer_sum
from gaugefix.theory.deep_linear_sharpness import DeepLinearSharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
DEPTHS, OUT, IN = (2, 3, 4), 3, 3  # of random problems
RATIOS = (1.0, 0.6, 0.4, 0.3)  # noise of output 2 relative to output 1; V = Σ_x = 1, three layers of width 2
LRS, BATCH, STEPS, REPLICAS = (0.12, 0.06), 10, 16_000, 4
SHARP = 2.0  # the sharp start: first layer scaled up by this, last layer down


@study("2602.05065")
def flatness_or_sharpness() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "closed-form",
            "The minimum of least gradient fluctuation has a closed-form sharpness, at any depth.",
            least_fluctuation,
            Tolerance("where L-BFGS stops", relative=1e-5),
            draw_identity,
            unit="sharpness",
        ),
        Claim(
            "selected",
            "SGD goes there from flat and from sharp starts; the more unequal the label noise, the sharper.",
            selected_sharpness,
            Tolerance("extrapolated linearly from learning rates 0.12 and 0.06: second order is left", relative=0.06),
            draw_selected,
            unit="sharpness after SGD",
        ),
        Claim(
            "whitened",
            "With equal noise, here from the loss ½rᵀΣ⁻¹r, it is the flattest minimum of all.",
            whitened_sharpness,
            Tolerance("learning rates 0.12 and 0.06, extrapolated to zero", relative=0.03),
            draw_whitened,
            unit="sharpness / least sharpness",
        ),
        Claim(
            "full-batch",
            "The drift needs noise: full-batch descent from the same points keeps its sharpness.",
            full_batch_drift,
            Tolerance("none: these points are minima of the loss", absolute=1e-9),
            draw_full_batch,
            unit="change of sharpness",
        ),
        Claim(
            "largest",
            "The largest eigenvalue of the Hessian is predicted too.",
            largest_eigenvalues,
            Tolerance("rounding", relative=1e-9),
            draw_identity,
            unit="largest eigenvalue",
        ),
        Claim(
            "initial",
            "The sharpness at random initial weights is known, so whether training will sharpen or flatten is as well.",
            initial_traces,
            Tolerance("a mean over 4000 draws", relative=0.04),
            draw_against("depth"),
            unit="sharpness at the start",
        ),
        Claim(
            "digits",
            "A ReLU network on digits ends sharper with unequal label noise than with equal noise of the same total.",
            digits_ratio,
            Tolerance("an inequality", relation=">="),
            draw_digits,
            unit="ratio of sharpness",
        ),
    )


# Closed forms


@cache
def _random_models(seeds: tuple[int, ...]) -> list[list[DeepLinearSharpness]]:
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        signal, x, noise = rng.standard_normal((OUT, IN)), rng.standard_normal((IN, 8)), rng.standard_normal((OUT, 8))
        found.append([DeepLinearSharpness(signal, x @ x.T / 8, noise @ noise.T / 8, d) for d in DEPTHS])
    return found


def least_fluctuation(setting: Setting) -> Evidence:
    """L-BFGS on the fluctuation over all minima, W₁ = M₁, W_k = M_k M_{k−1}⁻¹, W_D = V M_{D−1}⁻¹, from random M."""
    models = _random_models(setting.seeds)
    measured = [[_minimise(m, seed) for m in row] for seed, row in zip(setting.seeds, models, strict=True)]
    return Evidence(np.array([[m.trace for m in row] for row in models]), np.array(measured), labels("D", DEPTHS))


def _minimise(model: DeepLinearSharpness, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    moment, noise, signal = map(torch.from_numpy, (model.input_cov, model.noise_cov, model.signal))
    eye = torch.eye(IN, dtype=F64)
    maps = (eye + 0.3 * torch.randn(model.depth - 1, IN, IN, generator=generator, dtype=F64)).requires_grad_()
    solver = torch.optim.LBFGS(
        [maps], max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def minimum() -> tuple[list[Tensor], list[Tensor]]:
        """B_k and A_k: at a minimum they are M_{k−1} and V M_k⁻¹."""
        return [eye, *maps], [*(signal @ torch.linalg.inv(maps)), torch.eye(OUT, dtype=F64)]

    def closure() -> float:
        solver.zero_grad()
        pairs = zip(*minimum(), strict=True)
        value = torch.stack([(a.T @ noise @ a).trace() * (b @ moment @ b.T).trace() for b, a in pairs]).sum()
        value.backward()
        return float(value.detach())

    solver.step(closure)
    below, above = ([t.detach() for t in side] for side in minimum())
    return sum(float(a.square().sum() * (b @ moment @ b.T).trace()) for b, a in zip(below, above, strict=True))


def largest_eigenvalues(setting: Setting) -> Evidence:
    """Of JᵀJ for the Jacobian J of the outputs, by automatic differentiation at the predicted weights."""
    models = _random_models(setting.seeds)
    measured = np.array([[_jacobian_norm(m) for m in row] for row in models])
    return Evidence(np.array([[m.lambda_max for m in row] for row in models]), measured, labels("D", DEPTHS))


def _jacobian_norm(model: DeepLinearSharpness) -> float:
    root = torch.linalg.cholesky(torch.from_numpy(model.input_cov))

    def outputs(*weights: Tensor) -> Tensor:
        product: Tensor = root
        for w in weights:
            product = w @ product
        return product.flatten()

    blocks = torch.autograd.functional.jacobian(outputs, tuple(map(torch.from_numpy, model.weights(width=4))))
    jacobian = torch.cat([b.flatten(1) for b in blocks], dim=1)
    return float(torch.linalg.matrix_norm(jacobian, 2) ** 2)


def initial_traces(setting: Setting) -> Evidence:
    """Weights N(0, 1/d), all layers d wide, 4000 networks for each depth."""
    width, depths = 6, (2, 3, 4)
    measured = np.empty((len(setting.seeds), len(depths)))
    for row, seed in enumerate(setting.seeds):
        rng = np.random.default_rng(seed)
        for column, depth in enumerate(depths):
            weights = rng.standard_normal((depth, 4000, width, width)) / np.sqrt(width)
            measured[row, column] = layer_sum(list(weights), np.eye(width), np.eye(width)).mean()
    predicted = [initial_sharpness((width,) * (d + 1), (1 / width,) * d, np.eye(width)) for d in depths]
    return Evidence(np.array(predicted), measured, labels("D", depths), {"x": np.array(depths)})


# SGD


def _models() -> list[DeepLinearSharpness]:
    """One for each ratio of the noises, and the second one with the loss ½rᵀΣ⁻¹r."""
    found = [DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1.0, r**2]), 3) for r in RATIOS]
    return [*found, found[1].whitened()]


def _starts(seeds: tuple[int, ...]) -> list[Tensor]:
    """The flattest minimum, and one that is `SHARP`, of every model: ``(cells, seeds, replicas, 2, 2)`` per layer."""
    both = []
    for first, middle, last in (m.flattest().weights(2) for m in _models()):
        both += [(first, middle, last), (SHARP * first, middle, last / SHARP)]
    layers = [torch.from_numpy(np.stack(layer))[:, None, None] for layer in zip(*both, strict=True)]
    return [w.expand(-1, len(seeds), REPLICAS, -1, -1) for w in layers]


@cache
def _runs(seeds: tuple[int, ...], steps: int, batch: int) -> np.ndarray:
    """Sharpness ``(records, lrs, models, starts, seeds)``, mean over the replicas; SGD with a batch, else descent."""
    models = _models()
    weights = [torch.cat([w] * len(LRS)) for w in _starts(seeds)]
    signals, roots = (
        torch.from_numpy(np.stack(found)).repeat_interleave(2, 0).repeat(len(LRS), 1, 1)[:, None, None]
        for found in ([m.signal for m in models], [np.sqrt(m.noise_cov) for m in models])
    )
    lrs = torch.tensor(LRS, dtype=F64).repeat_interleave(2 * len(models)).reshape(-1, 1, 1, 1, 1)

    def sharpness(weights: list[Tensor]) -> Tensor:
        return torch.from_numpy(layer_sum([w.numpy() for w in weights], np.eye(2), np.eye(2))).mean(-1)

    _, records = train_linear(
        weights, signals, torch.eye(2, dtype=F64), roots, lr=lrs, batch=batch, steps=steps, seeds=seeds,
        every=max(1, steps // 160), watch=sharpness,
    )  # fmt: skip
    records = torch.cat([sharpness(weights)[None], records])
    return records.reshape(len(records), len(LRS), len(models), 2, len(seeds)).numpy()


def _selected(setting: Setting) -> np.ndarray:
    """Mean over the last quarter, extrapolated linearly to learning rate zero, ``(models, starts, seeds)``."""
    runs = _runs(setting.seeds, setting.choose(STEPS, 6 * STEPS), BATCH)
    large, small = runs[-len(runs) // 4 :].mean(0)
    return np.asarray(small + (small - large) * LRS[1] / (LRS[0] - LRS[1]))


def selected_sharpness(setting: Setting) -> Evidence:
    """After SGD from both starts."""
    models = _models()[: len(RATIOS)]
    measured = _selected(setting)[: len(RATIOS)].reshape(-1, len(setting.seeds)).T
    cells = tuple(f"σ₂/σ₁ = {r:g}, {start}" for r in RATIOS for start in ("flat", "sharp"))
    grid = np.linspace(0.22, 1.0, 40)
    line = [DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1.0, r**2]), 3).trace for r in grid]
    start = [float(models[0].trace_at(s)) for s in zip(*(w[:2, 0, 0].numpy() for w in _starts((0,))), strict=True)]
    curves = {"grid": grid, "line": np.array(line), "least": np.array([models[0].trace_min]), "start": np.array(start)}
    return Evidence(np.repeat([m.trace for m in models], 2), measured, cells, curves)


def draw_selected(axes: Axes, result: Comparison) -> None:
    """From where to where, over the ratio of the noises."""
    axes.plot(result.curves["grid"], result.curves["line"], color=PREDICTED, label="predicted")
    axes.axhline(result.curves["least"][0], color=NEUTRAL, ls=":", label="flattest minimum")
    mean, start = result.mean.reshape(-1, 2), result.curves["start"]
    for i, ratio in enumerate(RATIOS):
        for k, marker in enumerate("^v"):
            x = ratio + (k - 0.5) * 0.014
            axes.annotate(
                "", (x, mean[i, k]), (x, start[k]), arrowprops={"arrowstyle": "-", "color": NEUTRAL, "lw": 0.8}
            )
            axes.plot(x, start[k], marker, mfc="white", mec=NEUTRAL, ms=5)
            label = ("SGD from a flat start", "SGD from a sharp start")[k] if not i else None
            axes.errorbar(
                x, mean[i, k], result.stderr[2 * i + k], fmt=marker, ms=5.5, color=MEASURED, label=label, zorder=3
            )
    axes.set(xlabel="noise of label 2 / noise of label 1", ylabel="sharpness Tr ∇²L")
    axes.legend()


def whitened_sharpness(setting: Setting) -> Evidence:
    """Unequal noise again, with the loss that makes it equal."""
    model = _models()[-1]
    measured = _selected(setting)[-1].T / model.trace_min
    return Evidence(
        np.full(2, model.ratio), measured, ("flat start", "sharp start"), {"without": np.array([_models()[1].ratio])}
    )


def draw_whitened(axes: Axes, result: Comparison) -> None:
    """Beside what the plain loss ends at."""
    draw_cells(axes, result)
    axes.axhline(result.curves["without"][0], color=NEUTRAL, ls="-.", lw=0.9, label="with the loss ½r², predicted")
    axes.set_ylim(0.95, 1.1)
    axes.legend()


def full_batch_drift(setting: Setting) -> Evidence:
    """2000 steps without noise."""
    runs = _runs(setting.seeds, 2000, 0)[:, 0, : len(RATIOS)]
    cells = tuple(f"σ₂/σ₁ = {r:g}, {start}" for r in RATIOS for start in ("flat", "sharp"))
    noisy = _selected(setting)[: len(RATIOS)] - runs[0]
    curves = {"sgd": noisy.mean(-1).ravel()}
    return Evidence(np.zeros(len(cells)), (runs[-1] - runs[0]).reshape(len(cells), -1).T, cells, curves)


def draw_full_batch(axes: Axes, result: Comparison) -> None:
    """Beside the change by SGD."""
    axes.plot(result.curves["sgd"], "x", color=NEUTRAL, label="by SGD")
    draw_cells(axes, result)
