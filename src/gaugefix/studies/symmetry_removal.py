"""Weight decay towards a fixed random point removes every mirror symmetry, and with it the traps.

On a mirror plane Oᵀθ = 0 the loss has no normal gradient, and weight decay towards zero has none either. Decay towards
θ₀
has: the force λ‖Oᵀθ₀‖ takes a run off the plane, and a solution that was collapsed rests at (H_O + λ)⁻¹λOᵀθ₀ instead.
What is left of a collapse is small but not zero, so rank is full, and the time to relearn has a ceiling.

The study measures this with `gaugefix.control.remove.SyreDecay` on a tanh network with twin neurons, regression
through a product, a matrix factorisation, and a network for digits under strong weight decay. Weight decay is
PyTorch's, (λ/2)‖θ − θ₀‖².

Source: Liu Ziyin, Yizhou Xu and Isaac Chuang, "Remove Symmetries to Control Model Expressivity and Improve
Optimization", arXiv 2408.15495.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control.remove import SyreDecay
from gaugefix.errors import StudyError
from gaugefix.measure import o_hessian
from gaugefix.studies.digits import digits, network, train_on_digits
from gaugefix.studies.figures import draw_identity
from gaugefix.studies.framework import Claim, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.symmetry import find_symmetries
from gaugefix.task import Task
from gaugefix.theory.anchored_decay import collapsed_columns, relearning_ceiling
from gaugefix.theory.matrix_factorization import gram_rank
from gaugefix.theory.product_regression import product_minimum

TWIN_DECAYS, TWIN_SIGMAS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.2), (5e-4, 2e-3)  # λ, σ₀ of the tanh network
LR, DECAY = 0.05, 0.6  # of the product regression
FLOORS, COLLAPSED_STEPS = (1e-2, 1e-3), (800, 3200)
SPECTRUM, RANK_DECAY, RANK_SIGMA = (3.0, 2.0, 1.5, 0.8, 0.6, 0.3, 0.1, 0.05), 1.0, 1e-3
DIGITS_DECAY, DIGITS_SIGMA, DIGITS_LR, WIDTH = 0.06, 0.05, 0.2, 64


@study("2408.15495")
def symmetry_removal() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "escape-force",
            "On a mirror plane the force off it is λ|Oᵀθ₀|.",
            escape_forces,
            Tolerance("rounding", relative=1e-9),
            draw_identity,
            unit="force",
        ),
        Claim(
            "displacement",
            "A collapsed solution moves to (H_O + λ)⁻¹λOᵀθ₀.",
            displacements,
            Tolerance("first order in θ₀", relative=0.02),
            draw_identity,
            unit="distance from the plane",
        ),
        Claim(
            "ceiling",
            "Relearning after a collapse takes no longer than a fixed time, however long the collapse was.",
            relearning_times,
            Tolerance("growth slows down near the target, which the estimate leaves out", relative=0.12),
            draw_identity,
            unit="steps to relearn",
        ),
        Claim(
            "rank",
            "A factorised matrix loses rank under weight decay and keeps all of it under decay to a random point.",
            ranks,
            Tolerance("a rank is an integer"),
            unit="rank",
        ),
        Claim(
            "columns",
            "Columns that would be zero rest at a length proportional to the anchor, (SSᵀ + λ − m)⁻¹λA.",
            column_norms,
            Tolerance("first order in the anchor", relative=0.01),
            draw_identity,
            unit="length of a column",
        ),
        Claim(
            "network-rank",
            "A network under strong weight decay has full rank again.",
            lambda setting: _network(setting)[0],
            Tolerance("a rank is an integer"),
            unit="numerical rank of 64",
        ),
        Claim(
            "network-accuracy",
            "It classifies better.",
            lambda setting: _network(setting)[1],
            Tolerance("an inequality on the mean over seeds", relation=">=", per_seed=False),
            unit="gain of test accuracy",
        ),
    )


# Twin neurons in a tanh network 3-3-1


def _twins(seed: int) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, (x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2)


def _losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    errors: Tensor = model(batch[0]).squeeze(-1) - batch[1]
    return errors.square()


def _rest(model: nn.Module, data: tuple[Tensor, Tensor], syre: SyreDecay) -> None:
    """L-BFGS on loss and penalty, to rest."""
    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-13, tolerance_change=1e-16
    )

    def closure() -> float:
        solver.zero_grad()
        value = _losses(model, data).mean() + syre.penalty()
        value.backward()
        return float(value.detach())

    solver.step(closure)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@cache
def _moved_twins(seeds: tuple[int, ...]) -> np.ndarray:
    """Predicted and measured force, predicted and measured distance, ``(4, seeds, sigmas)``."""
    out = np.empty((4, len(seeds), len(TWIN_SIGMAS)))
    for row, seed in enumerate(seeds):
        for column, sigma in enumerate(TWIN_SIGMAS):
            out[:, row, column] = _move_twins(seed, sigma)
    return out


def _move_twins(seed: int, sigma: float) -> tuple[float, float, float, float]:
    """Settle on the first plane that attracts, at the smallest weight decay; then go on with decay to θ₀ from there."""
    start, data = _twins(seed)
    swaps = [m for m in find_symmetries(start, (data[0],)).mirrors() if m.kind == "swap"]
    for decay, swap in product(TWIN_DECAYS, swaps):
        model = _twins(seed)[0]
        model.load_state_dict(swap.project(_parameters(model)))
        _rest(model, data, SyreDecay(model, decay, sigma0=0.0))
        model.load_state_dict(swap.project(_parameters(model)))  # rounding
        syre = SyreDecay(model, decay, sigma0=sigma, absolute=True, seed=seed)
        task = Task(model, _losses, lambda: [data], lr=0.1, weight_decay=decay, batch_size=64)
        block = o_hessian(task, swap)
        predicted = syre.predicted_displacement(swap, block)
        if not predicted.valid or block.lambda_min + decay < decay / 3:  # close to critical, first order is not enough
            continue
        model.zero_grad()
        (_losses(model, data).mean() + syre.penalty()).backward()
        gradient = swap.coordinates({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        force = float(syre.escape_force(swap).norm())
        _rest(model, data, syre)
        return force, float(gradient.norm()), predicted.norm, float(swap.coordinates(_parameters(model)).norm())
    raise StudyError(f"Seed {seed}: no two neurons are twins at any weight decay.")


def escape_forces(setting: Setting) -> Evidence:
    """Normal gradient of loss and decay at the collapsed solution."""
    predicted, measured, _, _ = _moved_twins(setting.seeds)
    return Evidence(predicted, measured, labels("σ₀", TWIN_SIGMAS))


def displacements(setting: Setting) -> Evidence:
    """Train on from the collapsed solution with decay to θ₀."""
    _, _, predicted, measured = _moved_twins(setting.seeds)
    return Evidence(predicted, measured, labels("σ₀", TWIN_SIGMAS))


# Regression through a product of two weights


def relearning_times(setting: Setting) -> Evidence:
    """Decay to (c, c) for T₁ steps with nothing to learn, then count the steps until half of the solution is back."""
    cells = [(c, t) for c in FLOORS for t in COLLAPSED_STEPS]
    predicted, measured = np.empty((2, len(setting.seeds), len(cells)))
    for row, seed in enumerate(setting.seeds):
        rng = np.random.default_rng(seed)
        x, noise = rng.standard_normal(200), rng.standard_normal(200)
        a, b = (x * x).mean(), (x * (0.8 * x + 0.3 * noise)).mean()
        goal = float(product_minimum(a, b, DECAY)) / 2
        for column, (floor, collapsed) in enumerate(cells):
            predicted[row, column] = relearning_ceiling(goal, floor, b, LR, DECAY)
            measured[row, column] = _relearn(a, b, floor, collapsed, goal)
    return Evidence(predicted, measured, tuple(f"c = {c:g}, T₁ = {t}" for c, t in cells))


def _relearn(a: float, b: float, floor: float, collapsed: int, goal: float) -> float:
    u = w = 1.0
    for _ in range(collapsed):
        u, w = _product_step(u, w, a, 0.0, floor)
    for step in range(1, 5000):
        u, w = _product_step(u, w, a, b, floor)
        if u * w > goal:
            return step
    return float("nan")


def _product_step(u: float, w: float, a: float, b: float, floor: float) -> tuple[float, float]:
    error = 2 * (a * u * w - b)
    return u - LR * (error * w + DECAY * (u - floor)), w - LR * (error * u + DECAY * (w - floor))


# Matrix factorisation


@cache
def _factorised(seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W after descent to zero and to the anchors, ``(seeds, 8, 8)`` each, and the anchors."""
    n = len(SPECTRUM)
    starts, anchors = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        start, anchor = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
        starts.append(start / 2)
        anchors.append(anchor * RANK_SIGMA)
    target, points = torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64)), torch.stack(anchors)
    plain = moved = torch.stack(starts)
    for _ in range(6000):
        plain = plain - LR * (plain @ (plain.mT @ plain - target) + RANK_DECAY * plain)
        moved = moved - LR * (moved @ (moved.mT @ moved - target) + RANK_DECAY * (moved - points))
    return plain.numpy(), moved.numpy(), points.numpy()


def ranks(setting: Setting) -> Evidence:
    """Singular values above a thousandth of the anchor."""
    plain, moved, _ = _factorised(setting.seeds)
    measured = [
        (np.linalg.svd(weights, compute_uv=False) > 1e-3 * RANK_SIGMA).sum(axis=-1) for weights in (plain, moved)
    ]
    lost = int(gram_rank(np.array(SPECTRUM), RANK_DECAY))
    return Evidence(np.array([lost, len(SPECTRUM)]), np.stack(measured, axis=1), ("decay to zero", "decay to a point"))


def column_norms(setting: Setting) -> Evidence:
    """The five columns below the weight decay."""
    _, moved, points = _factorised(setting.seeds)
    spectrum = np.array(SPECTRUM)
    predicted = [collapsed_columns(spectrum, a, w, RANK_DECAY) for a, w in zip(points, moved, strict=True)]
    below = spectrum < RANK_DECAY
    return Evidence(np.array(predicted), np.linalg.norm(moved, axis=1)[:, below], labels("m", spectrum[below]))


# Digits


@cache
def _network(setting: Setting) -> tuple[Evidence, Evidence]:
    """Rank of the last hidden layer on the training data, and the gain of accuracy."""
    steps = setting.choose(quick=2500, full=4000)
    measured, gains = np.empty((len(setting.seeds), 1)), np.empty((len(setting.seeds), 1))
    for row, seed in enumerate(setting.seeds):
        x, y, accuracy = digits(seed)
        ends = []
        for sigma in (0.0, DIGITS_SIGMA):
            model = network((64, WIDTH, WIDTH, 10), nn.Tanh, seed)
            sgd = torch.optim.SGD(model.parameters(), lr=DIGITS_LR)
            SyreDecay(model, DIGITS_DECAY, sigma0=sigma, absolute=True, seed=seed, store=True).attach(sgd)
            train_on_digits(model, sgd, (x, y), steps=steps, seed=seed)
            with torch.no_grad():
                sizes = torch.linalg.svdvals(model[:4](x).double())
            ends.append((int((sizes > 1e-4 * sizes[0]).sum()), accuracy(model)))
        measured[row] = ends[1][0]
        gains[row] = ends[1][1] - ends[0][1]
    rank = Evidence(np.array([WIDTH]), measured, ("decay to a point",))
    return rank, Evidence(np.array([0.05]), gains, ("decay to a point",))
