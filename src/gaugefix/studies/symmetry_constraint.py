"""Every mirror symmetry of a loss is a trap and a regulariser.

If the loss of every sample is unchanged by a reflection I − 2OOᵀ of the parameters, then on the plane Oᵀθ = 0 the
gradient has no normal component, and weight decay or gradient noise can pull a run onto that plane: units die, become
copies of each other, or lose rank. How fast, and from which weight decay λ or learning rate on, follows from one small
block of the Hessian, H_O = OᵀHO.

The study checks this on models small enough to be solved: a tanh network with two twin neurons, regression through a
product uw, and a matrix factorisation. Weight decay is PyTorch's, (λ/2)‖θ‖².

Source: Liu Ziyin, "Symmetry Induces Structure and Constraint of Learning", arXiv 2309.16932.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.measure import o_hessian
from gaugefix.studies.constraint_solvers import convex_solutions
from gaugefix.studies.ensembles import Ensemble, descend, map_members, polish
from gaugefix.studies.figures import MEASURED, PREDICTED, draw_against, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.noise_collapse import noise_exponents
from gaugefix.studies.registry import study
from gaugefix.symmetry import find_symmetries
from gaugefix.task import Task
from gaugefix.theory.matrix_factorization import gram_rank, gram_spectrum
from gaugefix.theory.mirror_plane import growth_rates
from gaugefix.theory.product_regression import product_growth, product_minimum, relearning_slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LR = 0.05
TWIN_DECAYS = (0.002, 0.006, 0.02, 0.06, 0.2)  # λ of the tanh network
TWIN_LR = 0.02  # below 2/λ_max(H) at every stationary point met, else the run would not stay there
KICK, KICK_STEPS = 1e-8, 400  # how far from the plane, and for how many steps
PRODUCT_DECAYS = (0.0, 0.28, 0.7, 0.97, 1.25, 1.67)  # λ of the product regression, in units of 2|E xy|
SPECTRUM = (3.0, 2.0, 1.5, 1.0, 0.6, 0.3, 0.1, 0.05)  # of the matrix to factorise
RANK_DECAYS = (0.04, 0.2, 0.5, 1.2, 2.2)  # λ of the factorisation
COLLAPSE_STEPS = (50, 100, 200, 400, 800, 3200)
COLLAPSE_DECAY = 0.6  # λ while there is nothing to learn, and afterwards


@study("2309.16932")
def symmetry_constraint() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "growth-rate",
            "Two twin neurons part or merge at the rate log(1 − lr·(λ_min(H_O) + λ)) per step.",
            twin_growth_rates,
            Tolerance("the rate is local: terms of second order in z, and rounding", absolute=1e-5),
            draw_against("weight decay λ", log=True),
            unit="log growth per step",
        ),
        Claim(
            "soft-threshold",
            "Weight decay on two factors is an L1 penalty on their product, zero from λ = 2|E xy| on.",
            product_solutions,
            Tolerance("gradient descent stops at a finite time", absolute=1e-6),
            draw_against("weight decay / critical weight decay"),
            unit="uw",
        ),
        Claim(
            "noise-collapse",
            "Gradient noise alone pulls SGD onto a saddle: the exponent changes sign at a learning rate.",
            noise_exponents,
            Tolerance("four standard errors of the mean over 4000 chains and 3000 steps", absolute=5e-4),
            draw_against("learning rate / critical learning rate"),
            unit="exponent per step",
        ),
        Claim(
            "rank",
            "The rank of a factorised matrix is the number of its eigenvalues above the weight decay.",
            ranks,
            Tolerance("a rank is an integer"),
            draw_against("weight decay λ", log=True, step=True),
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
            unit="steps per step",
        ),
        Claim(
            "constraints",
            "A constraint imposed by factors and weight decay has the solution of the convex problem.",
            convex_solutions,
            Tolerance("L-BFGS stops at a finite time, near zero as the square root of its precision", absolute=1e-6),
            unit="relative deviation",
        ),
    )


# Two twin neurons in a tanh network 3-3-1: do they merge?


def twin_growth_rates(setting: Setting) -> Evidence:
    """Train on the mirror plane to a stationary point, push off along the softest normal mode, follow the mode."""
    x, y = (torch.stack(parts)[:, None] for parts in zip(*map(_sine_data, setting.seeds), strict=True))
    decay = torch.tensor(TWIN_DECAYS, dtype=torch.float64)
    cells = len(x), len(decay)
    swap = next(m for m in find_symmetries(_module(), (x[0, 0],)).mirrors() if m.kind == "swap")
    nets = map_members(lambda _, i: _tanh_network(setting.seeds[i[0]] + 1), {}, cells)
    for _ in range(60):
        nets = map_members(lambda net, _: swap.project(net), nets, cells)  # rounding would leave an unstable plane
        nets = descend(lambda p: _tanh_loss(p, x, y), nets, lr=TWIN_LR, weight_decay=decay, steps=200)

    predicted, modes = np.empty(cells), {}

    def settle_and_kick(net: Ensemble, i: tuple[int, ...]) -> Ensemble:
        def loss(p: Ensemble) -> Tensor:
            return _tanh_loss(p, x[i[0], 0], y[i[0], 0])

        net = swap.project(polish(loss, swap.project(net), weight_decay=TWIN_DECAYS[i[1]]))
        normal = o_hessian(_as_task(net, x[i[0], 0], y[i[0], 0]), swap)
        predicted[i] = growth_rates(normal.eigenvalues[:1], lr=TWIN_LR, weight_decay=TWIN_DECAYS[i[1]])[0]
        modes[i] = torch.from_numpy(normal.eigenvectors[:, 0])
        return net | {k: net[k] + d for k, d in swap.embed(KICK * modes[i], net).items()}

    nets = map_members(settle_and_kick, nets, cells)
    nets = descend(lambda p: _tanh_loss(p, x, y), nets, lr=TWIN_LR, weight_decay=decay, steps=KICK_STEPS)
    measured = np.empty(cells)
    for i, mode in modes.items():
        z = swap.coordinates({k: v[i] for k, v in nets.items()}) @ mode
        measured[i] = math.log(abs(float(z)) / KICK) / KICK_STEPS
    return Evidence(predicted, measured, labels("λ", TWIN_DECAYS), {"x": decay.numpy()})


def _sine_data(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2


def _tanh_network(seed: int) -> Ensemble:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 3), "2.weight": (1, 3)}
    return {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}


def _tanh_loss(nets: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of every network of an ensemble, ``(...)``."""
    out = (torch.tanh(x @ nets["0.weight"].mT) @ nets["2.weight"].mT).squeeze(-1)
    return (out - y).square().mean(-1)


def _module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()


def _as_task(net: Ensemble, x: Tensor, y: Tensor) -> Task:
    """One member as a module with a loss, for the measurements that take one."""
    model = _module()
    model.load_state_dict(net)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        errors: Tensor = model(batch[0]).squeeze(-1) - batch[1]
        return errors.square()

    return Task(model, loss, lambda: [(x, y)], lr=TWIN_LR, weight_decay=0.0, batch_size=len(x))


# Regression through a product of two weights


def _line_data(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """E x² and E xy of the data of every seed, ``(seeds, 1)`` each."""
    moments = []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        x, noise = rng.standard_normal(200), rng.standard_normal(200)
        moments.append(((x * x).mean(), (x * (0.8 * x + 0.3 * noise)).mean()))
    a, b = np.array(moments).T[:, :, None]
    return a, b


def _product_step(
    u: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray | float, lr: float, decay: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """One step of gradient descent on E(uwx − y)² + (λ/2)(u² + w²)."""
    error = 2 * (a * u * w - b)
    return u - lr * (error * w + decay * u), w - lr * (error * u + decay * w)


def product_solutions(setting: Setting) -> Evidence:
    """Gradient descent from u = w = 1 for every weight decay and seed at once."""
    a, b = _line_data(setting)
    decay = 2 * np.abs(b) * np.array(PRODUCT_DECAYS)
    u = w = np.ones_like(decay)
    for _ in range(20_000):
        u, w = _product_step(u, w, a, b, 0.1, decay)
    grid = np.linspace(0, max(PRODUCT_DECAYS), 200)
    curves = {"x": np.array(PRODUCT_DECAYS), "grid": grid, "line": product_minimum(a, b, 2 * np.abs(b) * grid)}
    return Evidence(product_minimum(a, b, decay), u * w, labels("λ/λ_c", PRODUCT_DECAYS), curves)


def relearning(setting: Setting) -> Evidence:
    """Decay for T₁ steps with nothing to learn, then count the steps until half of the solution is back."""
    a, b = _line_data(setting)
    decay, goal = COLLAPSE_DECAY, product_minimum(a, b, COLLAPSE_DECAY) / 2
    u = w = np.ones_like(a)
    history = [(u, w)]
    for _ in range(max(COLLAPSE_STEPS)):
        history.append(_product_step(*history[-1], a, 0.0, LR, decay))
    u, w = (np.hstack([history[t][i] for t in COLLAPSE_STEPS]) for i in (0, 1))
    times = np.full(u.shape, np.nan)  # stays so, and the claim fails, where it never comes back
    for step in range(1, 3 * max(COLLAPSE_STEPS)):
        u, w = _product_step(u, w, a, b, LR, decay)
        times[np.isnan(times) & (u * w > goal)] = step
    slopes = np.array([[np.polyfit(COLLAPSE_STEPS, t, 1)[0]] for t in times])
    predicted = relearning_slope(product_growth(0.0, LR, decay), product_growth(b, LR, decay))
    return Evidence(predicted, slopes, ("slope",), {"relearning": times})


def draw_relearning(axes: Axes, result: Comparison) -> None:
    """Relearning time against collapsed time, with the predicted slope through the first point."""
    collapsed, times = np.array(COLLAPSE_STEPS), result.curves["relearning"]
    for slope, measured in zip(result.predicted[:, 0], times, strict=True):
        axes.plot(collapsed, measured[0] + slope * (collapsed - collapsed[0]), color=PREDICTED, lw=1)
        axes.plot(collapsed, measured, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], color=PREDICTED, lw=1, label="predicted slope")
    axes.plot([], [], "o", ms=4.5, color=MEASURED, label="measured, each seed")
    axes.set(xlabel="steps spent collapsed", ylabel="steps to relearn")
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
    spectra: np.ndarray = torch.linalg.eigvalsh(weights.mT @ weights).flip(-1).numpy()
    return spectra


def spectra(setting: Setting) -> Evidence:
    """All eigenvalues at all weight decays."""
    measured = _learned_spectra(setting.seeds)
    predicted = np.array([gram_spectrum(np.array(SPECTRUM), d) for d in RANK_DECAYS])
    cells = tuple(f"λ = {d:g}, m = {m:g}" for d in RANK_DECAYS for m in SPECTRUM)
    return Evidence(predicted.reshape(-1), measured.reshape(len(measured), -1), cells)


def ranks(setting: Setting) -> Evidence:
    """Eigenvalues above 1e-4: the nearest prediction that is not zero is 0.01."""
    measured: np.ndarray = (_learned_spectra(setting.seeds) > 1e-4).sum(axis=-1)
    predicted = np.array([gram_rank(np.array(SPECTRUM), d) for d in RANK_DECAYS])
    grid = np.array([0.02, *sorted(SPECTRUM), 4.0])
    curves = {"x": np.array(RANK_DECAYS), "grid": grid, "line": gram_rank(np.array(SPECTRUM), grid[:, None])}
    return Evidence(predicted, measured, labels("λ", RANK_DECAYS), curves)
