"""Training is irreversible, and one scalar says how much: φ = (lr/4)E‖ĝ‖², by four ways of measuring it.

Gradient flow can be run backwards; steps of a finite size cannot. The loss that the steps really follow, the difference
between one step and many small ones, a step followed by its reversal, and the entropy that a smeared step produces all
measure the same potential, to first order in the learning rate. Run SGD forwards and then backwards over the same
batches and it misses the start by the sum of the forces of this potential. φ does not see permutations and rotations,
does see every other continuous symmetry, and SGD goes to the point of each orbit where it is least.

The study measures a tanh network 6-5-3 with the library's own functions, and lets a ReLU network find its least φ.

Source: Liu Ziyin, Yuanjie Ren, Adam Levine and Isaac Chuang, "Thermodynamic Irreversibility of Training Algorithms",
arXiv 2605.21933. The four routes are normalised here so that they agree to leading order; the paper may differ by a
constant.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.measure import echo_test, irreversibility
from gaugefix.measure.irreversibility import Route
from gaugefix.studies.figures import MEASURED, PREDICTED, draw_against, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
ROUTES: tuple[Route, ...] = ("entropy", "substep", "reversal")  # held against the gradient
NAMES = ("entropy production", "small steps", "step and reversal")
LRS, ECHO_LRS, ECHO_STEPS = (0.02, 0.01, 0.005), (0.001, 0.0005, 0.00025), 20
SCALES = (-0.6, -0.3, 0.0, 0.3, 0.6)  # log-scale of the readout against the hidden layer
WIDTHS, LR, BATCH, STEPS, UNBALANCED = (10, 32, 10), 0.02, 8, 10_000, 2.0


@study("2605.21933")
def irreversibility_of_training() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "one-potential",
            "Three ways of running training backwards measure what the size of the gradients says.",
            route_ratios,
            Tolerance("first order in the learning rate, here 0.005", relative=0.05),
            unit="measured / (lr/4)E‖ĝ‖²",
        ),
        Claim(
            "first-order",
            "Their differences vanish in proportion to the learning rate.",
            error_orders,
            Tolerance("second order, from learning rates 0.01 and 0.005", absolute=0.3),
            draw_errors,
            unit="order in the learning rate",
        ),
        Claim(
            "echo",
            "Run forwards, then backwards, SGD misses its start by lr²ΣHĝ.",
            echoes,
            Tolerance("next order in the learning rate", relative=0.06),
            draw_echo,
            unit="distance from the start",
        ),
        Claim(
            "preserved",
            "φ is the same after a permutation or a rotation of the hidden layer.",
            isometries,
            Tolerance("rounding", absolute=1e-12),
            unit="relative change of φ",
        ),
        Claim(
            "broken",
            "Along a rescaling φ follows from the gradients at one point, and has a single minimum.",
            rescaled,
            Tolerance("rounding", relative=1e-9),
            draw_against("log-scale c of readout against hidden layer"),
            unit="φ / φ at c = 0",
        ),
        Claim(
            "least",
            "Starting unbalanced, SGD ends where φ is least on the orbit.",
            excess,
            Tolerance("the slowest units, after 10,000 steps", absolute=0.02),
            draw_excess,
            unit="φ / least φ on the orbit",
        ),
        Claim(
            "kinks",
            "With ReLU the kinks break the expansion: its largest error is several times that of tanh.",
            kinks,
            Tolerance("an inequality on the mean over seeds", relation=">=", per_seed=False),
            draw_kinks,
            unit="error of step and reversal",
        ),
    )


# A small network 6-5-3, 64 samples in batches of 16


def _task(seed: int, lr: float, activation: type[nn.Module] = nn.Tanh, scale: float = 0.0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(64, n, generator=generator, dtype=F64) for n in (6, 3))
    model = nn.Sequential(nn.Linear(6, 5, bias=False), activation(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        for p, c in zip(model.parameters(), (-scale, scale), strict=True):
            p.copy_(0.6 * math.exp(c) * torch.randn(p.shape, generator=generator, dtype=F64))

    def losses(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        errors: Tensor = m(batch[0]) - batch[1]
        return errors.square().sum(1)

    batches = list(zip(x.split(16), y.split(16), strict=True))
    return Task(model, losses, lambda: batches, lr=lr, weight_decay=0.0, batch_size=16)


@cache
def _routes(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Ratios to the leading order, and relative errors, ``(seeds, routes, lrs)``."""
    ratios, errors = np.empty((2, len(setting.seeds), len(ROUTES), len(LRS)))
    for i, seed in enumerate(setting.seeds):
        for j, route in enumerate(ROUTES):
            for k, lr in enumerate(LRS):
                found = irreversibility(_task(seed, lr), route, n_batches=4, substeps=256, seed=seed)
                value = found.phi if route == "entropy" else found.force_norm
                ratios[i, j, k] = value / found.predicted
                errors[i, j, k] = found.relative_error
    return ratios, errors


def route_ratios(setting: Setting) -> Evidence:
    """At the smallest learning rate; a potential for the first, sizes of its force for the others."""
    return Evidence(np.ones(len(ROUTES)), _routes(setting)[0][..., -1], NAMES)


def error_orders(setting: Setting) -> Evidence:
    """Of the number, or of the vector of the force."""
    errors = _routes(setting)[1]
    curves = {"errors": errors.mean(0)}
    return Evidence(np.ones(len(ROUTES)), np.log2(errors[..., -2] / errors[..., -1]), NAMES, curves)


def draw_errors(axes: Axes, result: Comparison) -> None:
    """Relative error over learning rate."""
    for name, errors, marker in zip(NAMES, result.curves["errors"], "os^", strict=True):
        axes.loglog(LRS, errors, marker, ms=5, color=MEASURED, label=name)
        axes.loglog(LRS, errors[-1] * np.array(LRS) / LRS[-1], color=PREDICTED, lw=1)
    axes.loglog([], [], color=PREDICTED, label="predicted: ∝ learning rate")
    axes.set(xlabel="learning rate", ylabel="relative error")
    axes.set_xticks(LRS, [f"{lr:g}" for lr in LRS])
    axes.minorticks_off()
    axes.legend(fontsize=7.5)


def echoes(setting: Setting) -> Evidence:
    """Twenty steps and back."""
    found = [[echo_test(_task(s, lr), steps=ECHO_STEPS, seed=s) for lr in ECHO_LRS] for s in setting.seeds]
    predicted, measured = (
        np.array([[getattr(f, n) for f in row] for row in found]) for n in ("predicted_norm", "echo_norm")
    )
    return Evidence(predicted, measured, labels("lr", ECHO_LRS))


def draw_echo(axes: Axes, result: Comparison) -> None:
    """On logarithmic axes: the distance is of second order."""
    draw_identity(axes, result)
    axes.set(xscale="log", yscale="log")


def isometries(setting: Setting) -> Evidence:
    """A permutation of the tanh units; a rotation of the same network without tanh."""
    measured = np.empty((len(setting.seeds), 2))
    for row, seed in enumerate(setting.seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.eye(5, dtype=F64)[torch.randperm(5, generator=generator)]
        turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=F64))[0]
        for column, (activation, q) in enumerate(((nn.Tanh, order), (nn.Identity, turn))):
            task = _task(seed, 0.01, activation)
            before = irreversibility(task, n_batches=4).phi
            with torch.no_grad():
                first, last = task.model.parameters()
                first.copy_(q @ first)
                last.copy_(last @ q.T)
            measured[row, column] = irreversibility(task, n_batches=4).phi / before - 1
    return Evidence(np.zeros(2), measured, ("permutation", "rotation"))


def rescaled(setting: Setting) -> Evidence:
    """ReLU units; prediction from the gradients at c = 0."""
    grid = np.linspace(-0.7, 0.7, 60)
    predicted, measured, lines = [], [], []
    for seed in setting.seeds:
        task = _task(seed, 0.01, nn.ReLU)
        squares = np.zeros(2)
        for x, y in task.batches():
            task.model.zero_grad()
            task.loss(task.model, (x, y)).mean().backward()
            squares += [float(p.grad.square().sum()) for p in task.model.parameters() if p.grad is not None]
        task.model.zero_grad()
        share = squares / squares.sum()
        scale = np.array(SCALES)
        predicted.append(share[0] * np.exp(2 * scale) + share[1] * np.exp(-2 * scale))
        lines.append(share[0] * np.exp(2 * grid) + share[1] * np.exp(-2 * grid))
        phi = np.array([irreversibility(_task(seed, 0.01, nn.ReLU, c), n_batches=4).phi for c in SCALES])
        measured.append(phi / phi[len(SCALES) // 2])
    curves = {"x": np.array(SCALES), "grid": grid, "line": np.array(lines)}
    return Evidence(np.array(predicted), np.array(measured), labels("c", SCALES), curves)


def kinks(setting: Setting) -> Evidence:
    """Largest over the three learning rates."""
    relu = np.empty((len(setting.seeds), len(LRS)))
    for row, seed in enumerate(setting.seeds):
        for column, lr in enumerate(LRS):
            relu[row, column] = irreversibility(_task(seed, lr, nn.ReLU), "reversal", n_batches=4).relative_error
    smooth = _routes(setting)[1][:, ROUTES.index("reversal")]
    curves = {"relu": relu, "tanh": smooth}
    return Evidence(3 * smooth.max(1, keepdims=True), relu.max(1, keepdims=True), ("ReLU against 3 × tanh",), curves)


def draw_kinks(axes: Axes, result: Comparison) -> None:
    """Error over learning rate of every seed: a line for tanh, no line for ReLU."""
    for name, color, label in (("tanh", PREDICTED, "tanh, as the expansion has it"), ("relu", MEASURED, "ReLU")):
        axes.loglog(LRS, result.curves[name].T, "o-", ms=4, lw=1, color=color)
        axes.loglog([], [], "o-", ms=4, color=color, label=f"{label}, each seed")
    axes.set(xlabel="learning rate", ylabel=f"relative {result.unit}")
    axes.set_xticks(LRS, [f"{lr:g}" for lr in LRS])
    axes.minorticks_off()
    axes.legend(fontsize=7.5)


# A ReLU network on its way


def excess(setting: Setting) -> Evidence:
    """Autoencoder of noisy labels; readout weights start twice too large, hidden weights twice too small."""
    n_in, width, n_out = WIDTHS
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]

    def draw(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g, dtype=F64) for g in generators])

    w = draw(width, n_in) / math.sqrt(n_in) / UNBALANCED
    u = draw(n_out, width) / math.sqrt(width) * UNBALANCED
    steps = setting.choose(STEPS, 5 * STEPS)
    window, curve = steps // 20, []
    sides = torch.zeros(2, len(setting.seeds), width, dtype=F64)
    for step in range(1, steps + 1):
        x = draw(BATCH, n_in)
        hidden = x @ w.mT
        active = hidden.relu()
        error = 2 * (active @ u.mT - x - draw(BATCH, n_out)) / BATCH
        g_u, g_w = error.mT @ active, ((error @ u) * (hidden > 0)).mT @ x
        sides += torch.stack([g_u.square().sum(1), g_w.square().sum(2)])
        u, w = u - LR * g_u, w - LR * g_w
        if step % window == 0:
            # least over all rescalings of single units, e^{−2c}N_u + e^{2c}N_w ≥ 2√(N_uN_w)
            curve.append((sides.sum((0, 2)) / (2 * sides.prod(0).sqrt().sum(1))).numpy())
            sides = torch.zeros_like(sides)
    found = np.array(curve).T
    curves = {"steps": window * (np.arange(found.shape[1]) + 0.5), "found": found}
    return Evidence(np.ones(1), found[:, -1:], ("end",), curves)


def draw_excess(axes: Axes, result: Comparison) -> None:
    """Over training."""
    axes.axhline(1, color=PREDICTED, label="predicted in the end")
    axes.plot(result.curves["steps"], result.curves["found"].T, "o-", ms=3.5, lw=0.8, color=MEASURED)
    axes.plot([], [], "o-", ms=3.5, color=MEASURED, label="measured, each seed")
    axes.set(xlabel="step", ylabel=result.unit)
    axes.legend()
