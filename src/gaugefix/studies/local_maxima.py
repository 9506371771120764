"""SGD at a constant learning rate can converge to a local maximum, leave it as slowly as you like, prefer sharp minima.

Where the gradient of every sample vanishes, noise is multiplicative: the distance to the point is multiplied by
1 − lr·h with the curvature h of the minibatch. What decides is E log|1 − lr·h| and not the mean of h. So there are
learning rates at which a maximum attracts, and adaptive optimisers that freeze their second moment, as AMSGrad does,
are caught in the same way.

Every walker of every setting is an entry of one array. The landscapes are constructions of this package with the
properties that the paper proves; no number is taken from it.

Source: Liu Ziyin, Botao Li, James B. Simon, Masahito Ueda, "SGD with a Constant Large Learning Rate Can Converge to
Local Maxima", arXiv 2107.11774.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from gaugefix.measure import amsgrad_effective_lr
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_against, errorbars
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.theory import expected_escape_steps, landscapes, lyapunov_exponent, stability_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

A = -0.1  # curvature 0.9 or −1: a maximum of the mean loss
RATES = (0.05, 0.2, 0.5, 0.8, 1.2, 1.6)
SHARES, START, GONE = (0.6, 0.9, 1.1, 1.3, 1.6, 2.0), 0.3, 1e-6  # lr in units of the lower end of the window
SLOW_A, SLOW, FROM, TO = -0.2, (0.3, 0.5, 0.7, 0.85), 1e-6, 1e-2
WELLS, WELL_LRS = (0.1, 4.0, 1.5), (0.2, 0.4, 0.6, 0.75, 0.9)  # above 0.94 walkers far outside diverge
AMSGRAD_LRS, BETA2, AMSGRAD_STEPS = (0.005, 0.01, 0.05, 0.1, 0.2, 0.3), 0.999, 9000
FLOOR = 1e-30  # where walkers under AMSGrad are stopped on their way to zero


@study("2107.11774")
def local_maxima() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "exponent",
            "Beside a maximum |w| grows at the rate E log|1 − lr·h|, which is negative in a window of learning rates.",
            exponents,
            Tolerance("four standard errors of 1000 chains", absolute=0.004),
            draw_against("learning rate"),
            unit="growth of log|w| per step",
        ),
        Claim(
            "maximum",
            "Inside the window SGD ends at the maximum, below it in the minima beside it.",
            at_the_maximum,
            Tolerance("the theory is the diffusion limit of a reflected walk", absolute=0.1),
            draw_share,
            unit="share of walkers at the maximum",
        ),
        Claim(
            "slow-escape",
            "Just below the window escape takes log(w₁/w₀)/Λ steps, any factor longer than gradient descent.",
            slow_escape,
            Tolerance("the spread of a random walk over 250 walkers", relative=0.1, per_seed=False),
            draw_slow,
            unit="steps to escape",
        ),
        Claim(
            "sharp-minimum",
            "Where rare samples make a flat minimum repel, every walker ends in the sharp one.",
            sharp_minimum,
            Tolerance("rounding: every single walker does", absolute=0.005),
            draw_wells,
            unit="share in the sharp minimum",
        ),
        Claim(
            "amsgrad",
            "AMSGrad is caught at the maximum if and only if the exponent at lr/√v̂, which it freezes, is negative.",
            amsgrad,
            Tolerance("v̂ grows until the exponent is about zero, and such walkers have not decided", absolute=0.05),
            unit="share of walkers at the maximum",
        ),
    )


def _curvatures(a: float) -> np.ndarray:
    return np.array(landscapes.local_max(a).curvatures)


def exponents(setting: Setting) -> Evidence:
    """Growth of log|w| of chains on ½hw², which stay within the range of floating point."""
    toy, chains, steps = landscapes.local_max(A), setting.choose(1000, 10_000), 300
    measured, lr = [], np.array(RATES)[:, None]
    for seed in setting.seeds:
        rng, w = np.random.default_rng(seed), np.ones((len(RATES), chains))
        for _ in range(steps):
            w = w - lr * toy.gradient(w, toy.draw(rng, (chains,)))
        measured.append(np.log(np.abs(w)).mean(1) / steps)
    h, grid = _curvatures(A), np.linspace(0.01, 1.7, 300)
    predicted, line = ([lyapunov_exponent(h, x) for x in rates] for rates in (RATES, grid))
    curves = {"x": np.array(RATES), "grid": grid, "line": np.array(line)}
    return Evidence(np.array(predicted), np.array(measured), labels("lr", RATES), curves)


def at_the_maximum(setting: Setting) -> Evidence:
    """Share with |w| < 1e-6 after a given time on ½hw² + ¼w⁴."""
    toy, walkers, steps = landscapes.quartic(A), 300, setting.choose(4000, 16_000)
    low = stability_window(_curvatures(A))[0]
    measured, lr = [], low * np.array(SHARES)[:, None]
    for seed in setting.seeds:
        rng, w = np.random.default_rng(seed), np.full((len(SHARES), walkers), START)
        for _ in range(steps):
            w = w - lr * toy.gradient(w, toy.draw(rng, (walkers,)))
        measured.append((np.abs(w) < GONE).mean(1))
    grid = np.linspace(0.4, 2.2, 90)
    predicted, line = (np.array([_below(r * low, steps) for r in rates]) for rates in (SHARES, grid))
    curves = {"x": np.array(SHARES), "grid": grid, "line": line}
    return Evidence(predicted, np.array(measured), labels("lr/lr_c", SHARES), curves)


def _below(lr: float, steps: int) -> float:
    """P(|w_T| < 1e-6) of a walk log|w| with drift Λ that is reflected where the quartic part takes over."""
    from scipy.stats import norm

    logs = np.log(np.abs(1 - lr * _curvatures(A)))
    drift, spread, depth = logs.mean(), logs.std() * math.sqrt(steps), math.log(GONE / START)
    image = math.exp(min(2 * drift * depth / logs.var(), 700.0))
    return float(norm.cdf((depth - drift * steps) / spread) + image * norm.cdf((depth + drift * steps) / spread))


def draw_share(axes: Axes, result: Comparison) -> None:
    """With the ends of the window."""
    axes.plot(result.curves["grid"], result.curves["line"], color=PREDICTED, lw=1.2, label="predicted")
    axes.axvline(1, color=NEUTRAL, lw=1, ls="--", label="critical learning rate")
    errorbars(axes, result.curves["x"], result)
    axes.set(xlabel="learning rate / critical learning rate", ylabel=result.unit)
    axes.legend(loc="lower right")


def slow_escape(setting: Setting) -> Evidence:
    """Mean first time at |w| = 1e-2 from 1e-6."""
    toy, walkers = landscapes.local_max(SLOW_A), setting.choose(250, 3000)
    h = _curvatures(SLOW_A)
    rates = stability_window(h)[0] * np.array(SLOW)
    predicted = [expected_escape_steps(lyapunov_exponent(h, lr), FROM, TO) for lr in rates]
    measured, limit = [], math.ceil(8 * max(predicted))
    for seed in setting.seeds:
        rng, w = np.random.default_rng(seed), np.full((len(SLOW), walkers), FROM)
        times, inside = np.zeros((len(SLOW), walkers)), np.ones((len(SLOW), walkers), dtype=bool)
        for _ in range(limit):
            w = w - rates[:, None] * toy.gradient(w, toy.draw(rng, (walkers,)))
            times += inside
            inside &= np.abs(w) < TO
            w = np.where(inside, w, 0.0)
            if not inside.any():
                break
        measured.append(times.mean(1))
    descent = np.log(TO / FROM) / np.log1p(rates * -h.mean())
    return Evidence(np.array(predicted), np.array(measured), labels("lr/lr_c", SLOW), {"descent": descent})


def draw_slow(axes: Axes, result: Comparison) -> None:
    """Against gradient descent, which gets faster as SGD gets slower."""
    x = np.array(SLOW)
    axes.plot(x, result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    axes.plot(x, result.curves["descent"], "s--", ms=4, lw=1, color=NEUTRAL, label="gradient descent")
    errorbars(axes, x, result)
    axes.set(xlabel="learning rate / critical learning rate", ylabel=result.unit, yscale="log")
    axes.legend()


def sharp_minimum(setting: Setting) -> Evidence:
    """Share of walkers at 1, from starts that are uniform in [−1.5, 1.5]; where both minima hold it is the basin's."""
    toy, walkers = landscapes.sharp_vs_flat(*WELLS), 400
    predicted, measured, lr = [], [], np.array(WELL_LRS)[:, None]
    repels = np.array([toy.exponents(x)[0] > 0 for x in WELL_LRS])
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        start = rng.uniform(-1.5, 1.5, walkers)
        w = np.tile(start, (len(WELL_LRS), 1))
        for _ in range(setting.choose(3000, 10_000)):
            w = w - lr * toy.gradient(w, toy.draw(rng, (walkers,)))
        predicted.append(np.where(repels, 1.0, (start > 0).mean()))
        measured.append((np.abs(w - 1) < 1e-3).mean(1))
    grid = np.linspace(0.1, 1.2, 200)
    found = [toy.exponents(x) for x in grid]
    curves = {"x": np.array(WELL_LRS), "grid": grid, "flat": np.array(found)[:, 0], "sharp": np.array(found)[:, 1]}
    return Evidence(np.array(predicted), np.array(measured), labels("lr", WELL_LRS), curves)


def draw_wells(axes: Axes, result: Comparison) -> None:
    """Shares, and where the flat minimum turns repulsive."""
    x = result.curves["x"]
    axes.axvspan(2 / WELLS[1], x[-1] + 0.1, color="#f4e3e5", label="exponent of the flat minimum > 0")
    axes.plot(x, result.predicted.T, "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4)
    axes.plot(x, result.measured.T, "o", ms=4.5, color=MEASURED)
    axes.plot([], [], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    axes.plot([], [], "o", ms=4.5, color=MEASURED, label="measured, each seed")
    axes.set(xlabel="learning rate", ylabel=result.unit, ylim=(0, 1.1))
    axes.legend(loc="lower right")


def amsgrad(setting: Setting) -> Evidence:
    """``torch.optim.Adam(amsgrad=True)`` without momentum; every entry of a parameter is a walker of its own."""
    # Adam's bias correction raises the effective learning rate for thousands of steps: a walker that underflows before
    # would stay at zero whatever the exponent is then, so that none may come closer than the floor
    h, walkers = torch.tensor(_curvatures(A)), 200
    generators = [torch.Generator().manual_seed(seed) for seed in setting.seeds]
    shape = (len(generators), walkers)
    weights = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in AMSGRAD_LRS]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, AMSGRAD_LRS, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.0, BETA2), eps=1e-12, amsgrad=True)
    for _ in range(setting.choose(AMSGRAD_STEPS, 4 * AMSGRAD_STEPS)):
        drawn = h[torch.stack([torch.randint(2, (len(weights), walkers), generator=g) for g in generators], 1)]
        for w, row in zip(weights, drawn, strict=True):
            w.grad = row * w.detach() + w.detach() ** 3
        optimizer.step()
        with torch.no_grad():
            for w in weights:
                w.copy_(torch.where(w < 0, w.clamp(max=-FLOOR), w.clamp(min=FLOOR)))
    rates = torch.stack(amsgrad_effective_lr(optimizer), 1)  # (seeds, lrs, walkers)
    held = (1 - rates[..., None] * h).abs().log().mean(-1) < 0
    caught = torch.stack([w.detach().abs() < 1e-3 for w in weights], 1)
    return Evidence(held.double().mean(-1).numpy(), caught.double().mean(-1).numpy(), labels("lr", AMSGRAD_LRS))
