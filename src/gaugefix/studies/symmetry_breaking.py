"""Learning goes from symmetry to symmetry: the loss falls when one is broken, and weight decay bounds how many are.

The weights of a network may have the symmetries of its architecture, equal units or a hidden layer that does not use
all its directions, or they may break them. A run that starts with a symmetry keeps it and is the run of a smaller
network. From a small start, which has nearly all symmetries, a linear network breaks them one direction at a time,
O(h) → O(h − 1) → …, each at a time that can be computed, and its loss falls then. With weight decay only as many units
stay different as the target needs, whatever the width.

The study checks the reduction to the last digit, the times of the jumps, the number of different units, and what
becomes of the collapse of classes when weight decay to a random point removes the symmetries. Weight decay is PyTorch's
λ; the source writes γ = λ/2.

Source: Liu Ziyin, Yizhou Xu, Tomaso Poggio, Isaac Chuang, "Parameter Symmetry Breaking and Restoration Determines the
Hierarchical Learning in AI Systems", arXiv 2502.05300.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control.remove import SyreDecay
from gaugefix.measure.order import distinct_units
from gaugefix.studies.digits import digits, network, train_on_digits
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.symmetry import find_symmetries
from gaugefix.theory.mode_staircase import half_rise_time, mode_strength

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INPUTS, UNITS, COPIES, REDUCED_STEPS = 3, 3, 4, 2000  # a network of 12 units that are copies of 3
SPECTRUM, START, FLOW_LR, HIDDEN = (4.0, 2.0, 1.0, 0.5), 1e-3, 0.005, 8  # the linear network
FLOW_TIME = 20.0
WIDTHS, TEACHER, SAMPLES = (4, 8, 16, 32), 3, 100  # tanh networks that learn three units
CAPACITY_DECAY, STUDENT_SIZE = 2e-3, 0.5  # λ; standard deviation of the first weights
ADAM_LR, ADAM_STEPS, NEWTON_STEPS = 0.02, 1500, 1800  # then L-BFGS, because copies merge slowly
DIGITS_DECAY, DIGITS_SIGMA, DIGITS_STEPS, LAYERS = 0.02, 0.2, 1000, 3  # λ, σ₀; at σ₀ = 0.05 there is hardly an effect
SAME = 0.05  # relative distance of two units that count as one


@study("2502.05300")
def symmetry_breaking() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "reduction",
            "A network that starts with equal units trains as a smaller one: r copies act as one unit times √r.",
            reduction,
            Tolerance("rounding of float64 over 2000 steps of SGD", absolute=1e-10),
            draw_identity,
            unit="output on new inputs",
        ),
        Claim(
            "jump-times",
            "From a small start every direction of a linear network is learnt in a jump, at ln(s/ε² − 1)/(2s).",
            jump_times,
            Tolerance("a finite learning rate: first order in lr·s", relative=0.02),
            draw_jumps,
            unit="time, steps times learning rate",
        ),
        Claim(
            "loss-drops",
            "The loss falls fastest when a symmetry is broken, also from a random start.",
            loss_drops,
            Tolerance("jumps of neighbouring directions overlap a little", relative=0.03),
            draw_drops,
            unit="time, steps times learning rate",
        ),
        Claim(
            "capacity",
            "With weight decay the number of different units does not grow with the width: the target sets it.",
            capacity,
            Tolerance("an inequality: at most one more than the three units of the target", relation="<="),
            draw_capacity,
            unit="different units",
        ),
        Claim(
            "class-collapse",
            "Without the symmetries the classes of a classifier collapse less, in every layer.",
            class_collapse,
            Tolerance("an inequality: at least half as much spread again", relation=">="),
            draw_collapse,
            unit="spread without symmetries / with",
        ),
    )


# A network of copies and the network of one each


def reduction(setting: Setting) -> Evidence:
    """SGD with batches of 8 on both, outputs on five new inputs."""
    predicted, measured = np.empty((2, len(setting.seeds), 5))
    for row, seed in enumerate(setting.seeds):
        generator = torch.Generator().manual_seed(seed)
        x, new = (torch.randn(n, INPUTS, generator=generator, dtype=torch.float64) for n in (64, 5))
        y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] / 2
        w = torch.randn(UNITS, INPUTS, generator=generator, dtype=torch.float64)
        u = torch.randn(UNITS, generator=generator, dtype=torch.float64) / COPIES
        order = [torch.randint(64, (8,), generator=generator) for _ in range(REDUCED_STEPS)]
        root = math.sqrt(COPIES)
        big = _train_units(w.repeat(COPIES, 1), u.repeat(COPIES), 1.0, x, y, order)
        small = _train_units(root * w, root * u, root, x, y, order)
        measured[row] = torch.tanh(new @ big[0].mT) @ big[1]
        predicted[row] = root * torch.tanh(new @ small[0].mT / root) @ small[1]
    return Evidence(predicted, measured, labels("input", range(5)))


def _train_units(w: Tensor, u: Tensor, root: float, x: Tensor, y: Tensor, order: list[Tensor]) -> tuple[Tensor, Tensor]:
    """SGD on ½(Σ √r u tanh(w·x/√r) − y)²; r = 1 is the network itself."""
    for batch in order:
        inputs = x[batch]
        hidden = torch.tanh(inputs @ w.mT / root)
        error = (root * hidden @ u - y[batch]) / len(batch)
        back = error[:, None] * u * (1 - hidden**2)
        w, u = w - 0.05 * back.mT @ inputs, u - 0.05 * root * hidden.mT @ error
    return w, u


# A linear network of two layers, gradient flow on ½‖W₂W₁ − T‖²


@cache
def _flow(seeds: tuple[int, ...], aligned: bool) -> np.ndarray:
    """Singular values of W₂W₁ at every step, ``(seeds, steps, modes)``; an aligned start is on the diagonal."""
    n, steps = len(SPECTRUM), round(FLOW_TIME / FLOW_LR)
    target = np.diag(SPECTRUM)
    first, second = np.empty((len(seeds), HIDDEN, n)), np.empty((len(seeds), n, HIDDEN))
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        frame = np.linalg.qr(rng.standard_normal((HIDDEN, n)))[0]
        first[row] = START * (frame if aligned else rng.standard_normal((HIDDEN, n)))
        second[row] = START * (frame.T if aligned else rng.standard_normal((n, HIDDEN)))
    found = np.empty((steps, len(seeds), n, n))
    for step in range(steps):
        found[step] = second @ first
        error = found[step] - target
        first, second = (
            first - FLOW_LR * second.swapaxes(1, 2) @ error,
            second - FLOW_LR * error @ first.swapaxes(1, 2),
        )
    return found.swapaxes(0, 1)


def _crossings(curves: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Times at which modes ``(seeds, steps, modes)`` first reach their levels."""
    return np.asarray(FLOW_LR * (curves >= levels).argmax(axis=1))


def jump_times(setting: Setting) -> Evidence:
    """Time at which every mode has reached half of its singular value."""
    s = np.array(SPECTRUM)
    modes = np.diagonal(_flow(setting.seeds, True), axis1=2, axis2=3)
    curves = {"modes": modes[0, ::10], "times": FLOW_LR * np.arange(modes.shape[1])[::10]}
    return Evidence(half_rise_time(s, START), _crossings(modes, s / 2), labels("s", SPECTRUM), curves)


def draw_jumps(axes: Axes, result: Comparison) -> None:
    """Modes of one run over time, the predicted curves, and what symmetry is left."""
    times, modes = result.curves["times"], result.curves["modes"]
    axes.plot(times, mode_strength(times[:, None], np.array(SPECTRUM), START), color=PREDICTED, lw=1.2)
    axes.plot(times[::16], modes[::16], "o", ms=3, color=MEASURED)
    axes.plot([], [], color=PREDICTED, label="predicted")
    axes.plot([], [], "o", ms=3, color=MEASURED, label="measured, one run")
    edges = [0.0, *result.predicted[0], FLOW_TIME]
    for i, (a, b) in enumerate(pairwise(edges)):
        axes.axvline(b, color=NEUTRAL, lw=0.7, ls=":")
        axes.text((a * b) ** 0.5 if a else b / 1.6, 4.25, f"O({HIDDEN - i})", color=NEUTRAL, ha="center", fontsize=8)
    axes.set(xlabel="time", ylabel="strength of each direction", xscale="log", xlim=(0.7, FLOW_TIME), ylim=(-0.1, 4.7))
    axes.legend(loc="center right")


def loss_drops(setting: Setting) -> Evidence:
    """A mode m on its own has dL/dt = −2m(s − m)², steepest at m = s/3: peaks of the rate against these crossings."""
    products = _flow(setting.seeds, False)
    s = np.array(SPECTRUM)
    predicted = _crossings(np.diagonal(products, axis1=2, axis2=3), s / 3)
    losses = ((products - np.diag(s)) ** 2).sum((2, 3)) / 2
    rates = -np.diff(losses, axis=1) / FLOW_LR
    measured = np.empty_like(predicted)
    for row, rate in enumerate(rates):
        peaks = np.flatnonzero((rate[1:-1] > rate[:-2]) & (rate[1:-1] >= rate[2:])) + 1
        highest = np.sort(peaks[np.argsort(-rate[peaks])[: len(s)]])
        measured[row] = FLOW_LR * np.pad(highest, (0, len(s) - len(highest)), constant_values=-1)
    curves = {"losses": losses[:, ::10], "times": FLOW_LR * np.arange(losses.shape[1])[::10]}
    return Evidence(predicted, measured, labels("s", SPECTRUM), curves)


def draw_drops(axes: Axes, result: Comparison) -> None:
    """The loss of every run, with the predicted time of each drop."""
    for times, curve in zip(result.predicted, result.curves["losses"], strict=True):
        axes.plot(result.curves["times"], curve, color=MEASURED, lw=1)
        height = np.interp(times, result.curves["times"], curve)
        axes.plot(times, height, "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4)
    axes.plot([], [], color=MEASURED, label="loss, each seed")
    axes.plot([], [], "o", ms=9, mfc="none", mec=PREDICTED, label="a direction breaks its symmetry")
    axes.set(xlabel="time", ylabel="loss", xscale="log", yscale="log", xlim=(0.7, FLOW_TIME), ylim=(1e-3, 40))
    axes.legend(loc="lower left")


# Tanh networks that learn three units


def capacity(setting: Setting) -> Evidence:
    """Counts after signs and permutations are taken out; units beyond a width start at zero and stay there."""
    most, mask = max(WIDTHS), torch.arange(max(WIDTHS)) < torch.tensor(WIDTHS)[:, None]
    xs, ys, starts = [], [], []
    for seed in setting.seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
        xs.append(torch.cat([x, torch.ones(SAMPLES, 1, dtype=torch.float64)], 1))
        teacher = torch.randn(TEACHER, 4, generator=generator, dtype=torch.float64)
        ys.append(torch.tanh(xs[-1] @ teacher[:, :3].mT) @ teacher[:, 3])
        start = torch.randn(len(WIDTHS), most, 4, generator=generator, dtype=torch.float64)
        starts.append(STUDENT_SIZE * start * mask[..., None])
    x, y, units = torch.stack(xs)[:, None], torch.stack(ys)[:, None], torch.stack(starts).requires_grad_()

    def closure() -> Tensor:
        error = (torch.tanh(x @ units[..., :3].mT) @ units[..., 3:])[..., 0] - y
        value = error.square().mean(-1).sum() + CAPACITY_DECAY / 2 * units.square().sum()
        units.grad = torch.autograd.grad(value, units)[0]
        return value.detach()

    adam = torch.optim.Adam([units], lr=ADAM_LR)
    for _ in range(ADAM_STEPS):
        closure()
        adam.step()
    iterations = setting.choose(NEWTON_STEPS, 4 * NEWTON_STEPS)
    torch.optim.LBFGS(
        [units], max_iter=iterations, max_eval=2 * iterations, history_size=60, line_search_fn="strong_wolfe",
        tolerance_grad=1e-9, tolerance_change=1e-16,
    ).step(closure)  # fmt: skip
    layers = nn.Sequential(nn.Linear(3, most, bias=False), nn.Tanh(), nn.Linear(most, 1, bias=False)).double()
    symmetries = find_symmetries(layers, (xs[0],))
    found = np.empty((2, len(setting.seeds), len(WIDTHS)))
    for place in np.ndindex(*found.shape[1:]):
        net = units.detach()[place]
        params = {"0.weight": net[:, :3], "2.weight": net[:, 3:].mT}
        (counted,) = distinct_units(params, symmetries, tolerance=SAME)
        found[(slice(None), *place)] = counted.distinct, counted.live
    return Evidence(np.full(len(WIDTHS), TEACHER + 1), found[0], labels("width", WIDTHS), {"live": found[1]})


def draw_capacity(axes: Axes, result: Comparison) -> None:
    """Different units against width, beside the live ones and the width itself."""
    widths = np.array(WIDTHS)
    axes.plot(widths, widths, color=NEUTRAL, lw=0.8, ls=":", label="all units")
    axes.axhline(result.predicted[0, 0], color=PREDICTED, lw=1.2, label="predicted: at most")
    axes.plot(widths, result.curves["live"].mean(0), "s--", ms=4, lw=0.8, color=NEUTRAL, label="alive, mean")
    axes.plot(widths, result.measured.T, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], "o", ms=4.5, color=MEASURED, label="different, each seed")
    axes.set(xlabel="hidden units", ylabel="units", xticks=widths, ylim=(0, 34))
    axes.legend(loc="upper left")


# Digits, with weight decay to zero and to a random point


def class_collapse(setting: Setting) -> Evidence:
    """Variance within the classes over that between them, after every hidden layer of a tanh network."""
    spread = np.empty((2, len(setting.seeds), LAYERS))
    for row, seed in enumerate(setting.seeds):
        x, y, _ = digits(seed)
        for i, sigma in enumerate((0.0, DIGITS_SIGMA)):
            model = network((64, *[64] * LAYERS, 10), nn.Tanh, seed)
            sgd = torch.optim.SGD(model.parameters(), lr=0.2)
            SyreDecay(model, DIGITS_DECAY, sigma0=sigma, absolute=True, seed=seed, store=True).attach(sgd)
            steps = setting.choose(DIGITS_STEPS, 4 * DIGITS_STEPS)
            train_on_digits(model, sgd, (x, y), steps=steps, seed=seed)
            with torch.no_grad():
                spread[i, row] = [_spread(model[: 2 * k + 2](x), y) for k in range(LAYERS)]
    cells = tuple(f"layer {k + 1}" for k in range(LAYERS))
    return Evidence(np.full(LAYERS, 1.5), spread[1] / spread[0], cells, {"with": spread[0], "without": spread[1]})


def _spread(features: Tensor, y: Tensor) -> float:
    means = torch.stack([features[y == k].mean(0) for k in range(10)])
    return float((features - means[y]).square().sum() / (means[y] - features.mean(0)).square().sum())


def draw_collapse(axes: Axes, result: Comparison) -> None:
    """The spread of both networks, layer by layer."""
    layers = np.arange(1, LAYERS + 1)
    for name, style, color in (("with", "s--", NEUTRAL), ("without", "o-", MEASURED)):
        axes.plot(layers, result.curves[name].T, style, ms=4.5, lw=0.8, color=color)
        axes.plot([], [], style, ms=4.5, color=color, label=f"{name} symmetries, each seed")
    axes.plot(layers, 1.5 * result.curves["with"].mean(0), color=PREDICTED, lw=1.2, label="predicted: above")
    axes.set(xlabel="hidden layer", ylabel="variance within / between classes", ylim=(0, None))
    axes.set_xticks(layers)
    axes.legend()
