r"""Every mirror symmetry of a loss is a trap and a regulariser.

If the loss of every sample is unchanged by a reflection :math:`I - 2OO^\top` of the parameters, then on the plane
:math:`O^\top\theta = 0` the gradient has no normal component, and weight decay or gradient noise can pull a run onto
that plane: units die, become copies of each other, or lose rank. How fast, and from which weight decay λ or learning
rate on, follows from one small block of the Hessian,
:math:`H_O = O^\top H O`.

The study checks this on models small enough to be solved: a tanh network with two twin neurons, regression through a
product :math:`uw`, and a matrix factorisation. Weight decay is PyTorch's, :math:`(\lambda/2)\|\theta\|^2`.

Source: Liu Ziyin, "Symmetry Induces Structure and Constraint of Learning", arXiv 2309.16932.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_identity, errorbars, rings
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance
from gaugefix.studies.registry import study
from gaugefix.symmetry import Mirror, Slice
from gaugefix.theory.matrix_factorization import gram_rank, gram_spectrum
from gaugefix.theory.multiplicative_noise import critical_lr, gaussian_regression_exponent
from gaugefix.theory.product_regression import product_growth, product_minimum, relearning_slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LR = 0.05
TWIN_DECAYS = (0.002, 0.006, 0.02, 0.06, 0.2)  # λ of the tanh network
PRODUCT_DECAYS = (0.0, 0.4, 1.0, 1.4, 1.8, 2.4)  # λ of the product regression
SPECTRUM = (3.0, 2.0, 1.5, 1.0, 0.6, 0.3, 0.1, 0.05)  # of the matrix to factorise
RANK_DECAYS = (0.04, 0.2, 0.5, 1.2, 2.2)  # λ of the factorisation
NOISE_SLOPE = 0.12  # y = slope·x + ξ
NOISE_LRS = (0.5, 0.8, 0.95, 1.1, 1.3, 1.6)  # in units of the critical learning rate
COLLAPSE_STEPS = (50, 100, 200, 400, 800, 3200)
COLLAPSE_DECAY = 0.6  # λ while there is nothing to learn, and afterwards


@study("2309.16932", missing=("constraints imposed by symmetry (DCS) have the solutions of the convex solvers",))
def symmetry_constraint() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "growth-rate",
            "Two twin neurons part or merge at the rate log(1 − lr·(λ_min(H_O) + λ)) per step.",
            twin_growth_rates,
            Tolerance("the rate is local: terms of second order in z, and rounding", absolute=1e-5),
            draw_growth,
            unit="log growth per step",
        ),
        Claim(
            "soft-threshold",
            "Weight decay on u and w acts on the product uw like an L1 penalty: a sharp threshold at λ = 2|E xy|.",
            product_solutions,
            Tolerance("gradient descent stops at a finite time", absolute=1e-6),
            draw_threshold,
            unit="uw",
        ),
        Claim(
            "noise-collapse",
            "Gradient noise alone pulls SGD onto a saddle: the exponent changes sign at a learning rate.",
            noise_exponents,
            Tolerance("four standard errors of the median over the chains", absolute=6e-4),
            draw_noise,
            unit="exponent per step",
        ),
        Claim(
            "rank",
            "The rank of a factorised matrix is the number of its eigenvalues above the weight decay.",
            ranks,
            Tolerance("a rank is an integer"),
            draw_rank,
            unit="rank",
        ),
        Claim(
            "spectrum",
            "Its eigenvalues are those of the target minus λ, as under a nuclear norm.",
            spectra,
            Tolerance("gradient descent stops at a finite time", absolute=1e-5),
            draw_identity,
            unit="eigenvalue",
        ),
        Claim(
            "plasticity",
            "Relearning takes longer in proportion to the time spent collapsed.",
            relearning,
            Tolerance("a time is a whole number of steps, and the ends of the run are not exponential", relative=0.02),
            draw_relearning,
            unit="relearning steps per collapsed step",
        ),
    )


# Two twin neurons in a tanh network 3-3-1: stable or not?


def twin_growth_rates(setting: Setting) -> Evidence:
    """Train on the mirror plane to a stationary point, push off along the softest normal mode, follow the mode."""
    data = [_sine_data(seed) for seed in setting.seeds]
    x, y = torch.stack([d[0] for d in data])[:, None], torch.stack([d[1] for d in data])[:, None]
    decay = torch.tensor(TWIN_DECAYS, dtype=torch.float64)
    swap = Mirror("0: 0 = 1", _HIDDEN_SLICES, 0, np.array([1.0, -1.0, 0.0]) / math.sqrt(2), "swap")

    start = [swap.project(_tanh_network(seed + 1)) for seed in setting.seeds]
    nets = {k: torch.stack([p[k] for p in start])[:, None].repeat(1, len(decay), 1, 1) for k in start[0]}
    nets = _stationary_point(nets, x, y, decay)

    predicted, modes = np.empty((len(data), len(decay))), {}
    for s, c in np.ndindex(predicted.shape):
        net = {k: v[s, c] for k, v in nets.items()}
        values, vectors = torch.linalg.eigh(_normal_hessian(net, swap, x[s, 0], y[s, 0]))
        predicted[s, c] = math.log(1 - LR * (values[0].item() + TWIN_DECAYS[c]))
        modes[s, c] = vectors[:, 0]
        for k, kick in swap.embed(1e-8 * modes[s, c], net).items():
            nets[k][s, c] += kick
    steps = 200
    nets = _descend(nets, x, y, decay, steps)
    size = {i: float(swap.coordinates({k: v[i] for k, v in nets.items()}) @ mode) for i, mode in modes.items()}
    measured = np.array([[math.log(abs(size[s, c]) / 1e-8) / steps for c in range(len(decay))] for s in range(len(x))])
    return Evidence(predicted, measured, tuple(f"λ = {d:g}" for d in TWIN_DECAYS))


_HIDDEN_SLICES = (
    Slice("0.weight", 0, np.arange(3).reshape(1, 3, 1), "write"),
    Slice("2.weight", 1, np.arange(3).reshape(1, 3, 1), "read"),
)


def _sine_data(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2


def _tanh_network(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 3), "2.weight": (1, 3)}
    return {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}


def _tanh_loss(nets: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of every network of an ensemble, ``(...)``."""
    out = (torch.tanh(x @ nets["0.weight"].mT) @ nets["2.weight"].mT).squeeze(-1)
    return (out - y).square().mean(-1)


def _descend(nets: dict[str, Tensor], x: Tensor, y: Tensor, decay: Tensor, steps: int) -> dict[str, Tensor]:
    """Gradient descent with weight decay of all networks at once."""
    for _ in range(steps):
        nets = {k: v.detach().requires_grad_() for k, v in nets.items()}
        gradients = torch.autograd.grad(_tanh_loss(nets, x, y).sum(), list(nets.values()))
        nets = {k: v - LR * (g + decay[:, None, None] * v) for (k, v), g in zip(nets.items(), gradients, strict=True)}
    return {k: v.detach() for k, v in nets.items()}


def _stationary_point(nets: dict[str, Tensor], x: Tensor, y: Tensor, decay: Tensor) -> dict[str, Tensor]:
    """Descend, then polish by Newton steps; both keep the mirror plane, by symmetry."""
    nets = _descend(nets, x, y, decay, 8000)
    for s, c in np.ndindex(len(x), len(decay)):
        theta, lam = torch.cat([v[s, c].reshape(-1) for v in nets.values()]), decay[c]

        def objective(t: Tensor, s: int = s, lam: Tensor = lam) -> Tensor:
            net = {"0.weight": t[:9].reshape(3, 3), "2.weight": t[9:].reshape(1, 3)}
            return _tanh_loss(net, x[s, 0], y[s, 0]) + lam / 2 * t.square().sum()

        for _ in range(6):
            theta = theta - torch.linalg.solve(torch.func.hessian(objective)(theta), torch.func.grad(objective)(theta))
        residual = float(torch.func.grad(objective)(theta).abs().max())
        if not residual < 1e-11:
            raise RuntimeError(f"no stationary point at seed {s}, λ = {lam:g}: the gradient is still {residual:.1e}")
        nets["0.weight"][s, c], nets["2.weight"][s, c] = theta[:9].reshape(3, 3), theta[9:].reshape(1, 3)
    return nets


def _normal_hessian(net: dict[str, Tensor], mirror: Mirror, x: Tensor, y: Tensor) -> Tensor:
    """H_O of the loss without weight decay, ``(k, k)``."""

    def along_normal(z: Tensor) -> Tensor:
        return _tanh_loss(net | {k: net[k] + d for k, d in mirror.embed(z, net).items()}, x, y)

    zero = torch.zeros(mirror.codim(net), dtype=torch.float64)
    return torch.autograd.functional.hessian(along_normal, zero)  # type: ignore[no-untyped-call,no-any-return]


def draw_growth(axes: Axes, result: Comparison) -> None:
    """Rate against weight decay; above zero the twins part."""
    axes.axhline(0, color=NEUTRAL, lw=0.8)
    errorbars(axes, np.array(TWIN_DECAYS), result)
    rings(axes, np.array(TWIN_DECAYS), result.predicted.mean(axis=0))
    axes.set(xscale="log", xlabel="weight decay λ", ylabel=result.unit)
    axes.legend()


# Regression through a product of two weights


def _line_data(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """E x² and E xy of the data of every seed, ``(seeds, 1)`` each."""
    moments = []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(200)
        y = 0.8 * x + 0.3 * rng.standard_normal(200)
        moments.append(((x * x).mean(), (x * y).mean()))
    a, b = np.array(moments).T[:, :, None]
    return a, b


def _product_step(u: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray | float, lr: float, decay: np.ndarray):
    error = 2 * (a * u * w - b)
    return u - lr * (error * w + decay * u), w - lr * (error * u + decay * w)


def product_solutions(setting: Setting) -> Evidence:
    """Gradient descent from u = w = 1 for every weight decay and seed at once."""
    a, b = _line_data(setting)
    decay = np.array(PRODUCT_DECAYS)
    u = w = np.ones((len(a), len(decay)))
    for _ in range(40_000):
        u, w = _product_step(u, w, a, b, 0.1, decay)
    grid = np.linspace(0, decay.max(), 200)
    curves = {"grid": grid, "line": product_minimum(a, b, grid)}
    return Evidence(product_minimum(a, b, decay), u * w, tuple(f"λ = {d:g}" for d in decay), curves)


def draw_threshold(axes: Axes, result: Comparison) -> None:
    """uw against weight decay; one line per seed, for its data."""
    axes.plot(result.curves["grid"], result.curves["line"].T, color=PREDICTED, lw=1, alpha=0.7)
    axes.plot([], [], color=PREDICTED, lw=1, label="predicted, each seed")
    errorbars(axes, np.array(PRODUCT_DECAYS), result)
    axes.set(xlabel="weight decay λ", ylabel=result.unit)
    axes.legend()


def relearning(setting: Setting) -> Evidence:
    """Decay for T₁ steps with nothing to learn, then count the steps until half of the solution is back."""
    a, b = _line_data(setting)
    decay, goal = np.array(COLLAPSE_DECAY), product_minimum(a, b, COLLAPSE_DECAY) / 2
    u, w = np.ones_like(a), np.ones_like(a)
    collapsed = {}
    for step in range(1, max(COLLAPSE_STEPS) + 1):
        u, w = _product_step(u, w, a, 0.0, LR, decay)
        collapsed[step] = (u, w)
    u, w = (np.hstack([collapsed[t][i] for t in COLLAPSE_STEPS]) for i in (0, 1))
    times, limit = np.full(u.shape, np.nan), 3 * max(COLLAPSE_STEPS)
    for step in range(1, limit):
        u, w = _product_step(u, w, a, b, LR, decay)
        times[np.isnan(times) & (u * w > goal)] = step
    slopes = np.array([[np.polyfit(COLLAPSE_STEPS, t, 1)[0]] for t in times])
    shrink = 1 - LR * COLLAPSE_DECAY
    return Evidence(
        relearning_slope(shrink, product_growth(b, LR, COLLAPSE_DECAY)), slopes, ("slope",), {"relearning": times}
    )


def draw_relearning(axes: Axes, result: Comparison) -> None:
    """Relearning time against collapsed time, with the predicted slope through the first point."""
    collapsed, times = np.array(COLLAPSE_STEPS), result.curves["relearning"]
    for slope, measured in zip(result.predicted[:, 0], times, strict=True):
        axes.plot(collapsed, measured[0] + slope * (collapsed - collapsed[0]), color=PREDICTED, lw=1)
        axes.plot(collapsed, measured, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], color=PREDICTED, lw=1, label="predicted slope, each seed")
    axes.set(xlabel="steps spent collapsed", ylabel="steps to relearn")
    axes.legend()


# Gradient noise


def noise_exponents(setting: Setting) -> Evidence:
    """Follow the median of |uw| over many chains of SGD with batches of one, close to the saddle u = w = 0."""
    chains, steps = setting.choose(quick=4000, full=40_000), setting.choose(quick=3000, full=4000)
    threshold = critical_lr(lambda lr: gaussian_regression_exponent(NOISE_SLOPE, lr), 0.02, 0.4)
    lr = threshold * torch.tensor(NOISE_LRS, dtype=torch.float64)[:, None, None]
    generators = [torch.Generator().manual_seed(seed) for seed in setting.seeds]
    u = w = torch.full((len(NOISE_LRS), len(setting.seeds), chains), 1e-30, dtype=torch.float64)  # linear throughout
    for _ in range(steps):
        x, noise = torch.stack([torch.randn(2, chains, generator=g, dtype=u.dtype) for g in generators], dim=1)
        error = 2 * lr * x * (u * w * x - NOISE_SLOPE * x - noise)
        u, w = u - error * w, w - error * u
    growth = (u / 1e-30).abs().log() + (w / 1e-30).abs().log()
    measured = growth.median(dim=-1).values.T.numpy() / (2 * steps)
    grid = np.linspace(0.2, 1.8, 33)
    exponents = {r: gaussian_regression_exponent(NOISE_SLOPE, r * threshold) for r in [*NOISE_LRS, *grid.tolist()]}
    return Evidence(
        np.array([exponents[r] for r in NOISE_LRS]),
        measured,
        tuple(f"lr = {r:g} lr_c" for r in NOISE_LRS),
        {"grid": grid, "line": np.array([exponents[r] for r in grid.tolist()])},
    )


def draw_noise(axes: Axes, result: Comparison) -> None:
    """Exponent against learning rate; below zero SGD falls onto the saddle."""
    axes.axhline(0, color=NEUTRAL, lw=0.8)
    axes.plot(result.curves["grid"], result.curves["line"], color=PREDICTED, lw=1.2, label="predicted")
    errorbars(axes, np.array(NOISE_LRS), result)
    axes.set(xlabel="learning rate / critical learning rate", ylabel=result.unit)
    axes.legend()


# Matrix factorisation


@cache
def _learned_spectra(seeds: tuple[int, ...]) -> np.ndarray:
    """Eigenvalues of WᵀW after gradient descent, ``(seeds, decays, 8)``, largest first."""
    n, decay = len(SPECTRUM), torch.tensor(RANK_DECAYS, dtype=torch.float64)[:, None, None]
    targets, starts = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rotation, start = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
        q = torch.linalg.qr(rotation).Q
        targets.append(q @ torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64)) @ q.mT)
        starts.append(start.expand(len(RANK_DECAYS), n, n) / 2)
    target, weights = torch.stack(targets)[:, None], torch.stack(starts)
    for _ in range(20_000):
        weights = weights - LR * (weights @ (weights.mT @ weights - target) + decay * weights)
    return torch.linalg.eigvalsh(weights.mT @ weights).flip(-1).numpy()


def spectra(setting: Setting) -> Evidence:
    """All eigenvalues at all weight decays."""
    measured = _learned_spectra(setting.seeds)
    predicted = np.array([gram_spectrum(np.array(SPECTRUM), d) for d in RANK_DECAYS])
    cells = tuple(f"λ = {d:g}, m = {m:g}" for d in RANK_DECAYS for m in SPECTRUM)
    return Evidence(predicted.reshape(-1), measured.reshape(len(measured), -1), cells)


def ranks(setting: Setting) -> Evidence:
    """Eigenvalues above 1e-4: the nearest prediction that is not zero is 0.01."""
    measured = (_learned_spectra(setting.seeds) > 1e-4).sum(axis=-1)
    predicted = np.array([gram_rank(np.array(SPECTRUM), d) for d in RANK_DECAYS])
    return Evidence(predicted, measured, tuple(f"λ = {d:g}" for d in RANK_DECAYS))


def draw_rank(axes: Axes, result: Comparison) -> None:
    """The staircase."""
    steps = np.array([0.02, *sorted(SPECTRUM), 4.0])
    axes.step(steps, gram_rank(np.array(SPECTRUM), steps[:, None]), where="post", color=PREDICTED, label="predicted")
    errorbars(axes, np.array(RANK_DECAYS), result)
    axes.set(xscale="log", xlabel="weight decay λ", ylabel=result.unit)
    axes.legend()
