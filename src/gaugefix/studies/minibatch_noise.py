"""How far SGD wanders, when it diverges, and how to change the batch size: the strength of minibatch noise.

In continuous time the noise of SGD has a covariance proportional to the Hessian, and the variance of the weights is
proportional to lr/batch. At the learning rates that people use this is wrong in three ways: the step itself adds to the
variance, the noise grows with the distance from the minimum, and rare batches give the weights a power-law tail. All
three have exact answers, also for a given data set.

The study follows linear regression in many chains, a small network on digits, and networks of growing width (in the
full setting on MNIST). The loss of a sample is ½(wᵀx − y)²; batches are drawn with replacement.

Source: Liu Ziyin, Kangqiao Liu, Takashi Mori, Masahito Ueda, "Strength of Minibatch Noise in SGD", arXiv 2102.05375.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from gaugefix.studies.figures import NEUTRAL, PREDICTED, draw_against, draw_identity, errorbars
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.heavy_tails import CHAINS, diabetes, draw_alternatives, tails
from gaugefix.studies.network_noise import network_identity, network_variances
from gaugefix.studies.registry import study
from gaugefix.studies.width_noise import draw_width_variances, draw_widths, width_losses, width_variances
from gaugefix.theory import equivalent_lr, label_noise_sgd, ridge_sgd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCAN_A, SCAN_S, SCAN_LRS = (1.0, 0.5), 10, (0.2, 0.5, 0.8, 1.0, 1.2)
#: curvatures, lr, batch size, momentum
CASES = (((1.5,), 0.2, 4, 0.0), ((1.0, 0.5), 0.8, 10, 0.0), ((1.0, 0.3), 0.1, 4, 0.5), ((1.0, 0.3), 0.1, 4, 0.9))
RULE_A, RULE_RATIO, RULE_S = (1.0, 0.7, 0.4, 0.2, 0.1) * 4, 0.3, (1, 2, 4, 16, 64)
DECAYS, DECAY_LR, DECAY_S = (-0.6, -0.52, -0.46, -0.41), 3.0, 100


@study("2102.05375")
def minibatch_noise() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "variance",
            "The variance of the weights is known exactly up to divergence; continuous time misses both.",
            variances,
            Tolerance("450 chains and a heavy tail near the limit", relative=0.05),
            draw_variances,
            unit="variance along the sharp direction",
        ),
        Claim(
            "losses",
            "Noise raises the training loss to (σ²/2)(1 + κ/S), also with momentum.",
            losses,
            Tolerance("450 chains", relative=0.01),
            draw_identity,
            unit="training loss",
        ),
        Claim(
            "batch-rule",
            "One learning rate per batch size keeps the noise constant; it is linear only in between.",
            batch_rule,
            Tolerance("450 chains", relative=0.03),
            draw_rule,
            unit="excess loss / loss",
        ),
        Claim(
            "tail",
            "The weights have a power-law tail whose index is the root of E|1 − lr·h|^β = 1.",
            tails,
            Tolerance("Hill's estimate from the top 0.3 % of the samples", relative=0.08, per_seed=False),
            draw_alternatives,
            unit="tail index",
        ),
        Claim(
            "real-data",
            "On given data the excess loss is the solution of a linear system, whatever the inputs are like.",
            diabetes,
            Tolerance("450 chains, some with rare large excursions", relative=0.04),
            draw_alternatives,
            unit="excess loss",
        ),
        Claim(
            "negative-decay",
            "At a large learning rate the best weight decay is negative; without it SGD diverges.",
            negative_decay,
            Tolerance("chains with a heavy tail", relative=0.03),
            draw_decay,
            unit="test loss",
        ),
        Claim(
            "network",
            "The scatter of a network at rest follows, direction by direction, from one Hessian and one covariance.",
            network_variances,
            Tolerance("12,000 correlated steps, a loss that is not quadratic", relative=0.2, per_seed=False),
            draw_against("curvature of the direction", log=True),
            unit="variance",
        ),
        Claim(
            "fluctuation-dissipation",
            "At rest E[w·g] = (lr/2)E‖g‖² in every parameter of that network.",
            network_identity,
            Tolerance("12,000 correlated steps", absolute=0.03, per_seed=False),
            unit="ratio of both sides",
        ),
        Claim(
            "width",
            "At one learning rate the excess loss of a network grows with its width; with lr ∝ 1/width it stays.",
            width_losses,
            Tolerance("gradients are not Gaussian, and under strong noise curvatures drift", relative=0.25),
            draw_widths,
            unit="excess loss",
        ),
        Claim(
            "width-variance",
            "So does the variance of the loss: between widths 50 and 800 the rule saves a factor of more than ten.",
            width_variances,
            Tolerance("an inequality", relation=">="),
            draw_width_variances,
            unit="growth of the variance, over that of the rule",
        ),
    )


# Linear regression


def _regression(
    curvatures: tuple[float, ...], lrs: tuple[float, ...], batch: int, momentum: float, seeds: tuple[int, ...],
    steps: int, inputs: bool = False,
) -> np.ndarray:  # fmt: skip
    """Mean of w² in the second half of a run from the minimum, ``(seeds, lrs, D)``; the same batches for all lrs."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    scale = torch.tensor(curvatures).sqrt()
    lr = torch.tensor(lrs)[:, None, None, None]
    w = m = torch.zeros(len(lrs), len(seeds), CHAINS, len(curvatures))
    total = torch.zeros(len(lrs), len(seeds), len(curvatures))
    for step in range(steps):
        x = torch.stack([torch.randn(CHAINS, batch, len(curvatures), generator=g) for g in generators]) * scale
        noise = torch.stack([torch.randn(CHAINS, batch, generator=g) for g in generators])
        error = (x @ w[..., None])[..., 0] - noise
        m = momentum * m + (error[..., None, :] @ x)[..., 0, :] / batch
        w = w - lr * m
        if step >= steps // 2:
            total += w.square().mean(2)
    return (total / (steps - steps // 2)).permute(1, 0, 2).double().numpy()


def variances(setting: Setting) -> Evidence:
    """Along the sharp one of two directions."""
    found = _regression(SCAN_A, SCAN_LRS, SCAN_S, 0.0, setting.seeds, setting.choose(1000, 15_000))[..., 0]
    a = np.array(SCAN_A)
    limit = label_noise_sgd(a, 1.0, 0.1, SCAN_S).lr_limit
    predicted = [label_noise_sgd(a, 1.0, lr, SCAN_S).variances[0] for lr in SCAN_LRS]
    grid = np.linspace(0.01, 0.985 * limit, 200)
    line = np.array([label_noise_sgd(a, 1.0, lr, SCAN_S).variances[0] for lr in grid])
    curves = {"x": np.array(SCAN_LRS), "grid": grid, "line": line, "limit": np.array([limit])}
    return Evidence(np.array(predicted), found, labels("lr", SCAN_LRS), curves)


def draw_variances(axes: Axes, result: Comparison) -> None:
    """Against the learning rate, with the continuous-time law."""
    grid, limit = result.curves["grid"], float(result.curves["limit"][0])
    axes.plot(grid, result.curves["line"], color=PREDICTED, lw=1.2, label="exact")
    axes.plot(grid, grid / (2 * SCAN_S), "--", color=NEUTRAL, lw=1.1, label="continuous time, lr σ²/2S")
    axes.axvline(limit, color=PREDICTED, lw=0.8, ls=":", label="predicted divergence")
    errorbars(axes, result.curves["x"], result)
    axes.set(xlabel="learning rate", ylabel=result.unit, yscale="log")
    axes.legend()


def losses(setting: Setting) -> Evidence:
    """Training loss ½(σ² + Tr AΣ) from the measured variances."""
    predicted, measured, cells = [], [], []
    for a, lr, batch, momentum in CASES:
        found = _regression(a, (lr,), batch, momentum, setting.seeds, setting.choose(1000, 15_000))[:, 0]
        predicted.append(label_noise_sgd(np.array(a), 1.0, lr, batch, momentum).train_loss)
        measured.append((1 + found @ np.array(a)) / 2)
        cells.append(f"a={a} lr={lr:g} S={batch} μ={momentum:g}")
    return Evidence(np.array(predicted), np.array(measured).T, tuple(cells))


def batch_rule(setting: Setting) -> Evidence:
    """Tr AΣ/σ² at the learning rates of the rule."""
    a, measured = np.array(RULE_A), []
    start = equivalent_lr_of_ratio()
    rates = [equivalent_lr(a, start, 4, s) for s in RULE_S]
    for lr, batch in zip(rates, RULE_S, strict=True):
        steps = math.ceil(setting.choose(12, 100) / (lr * min(RULE_A)))  # relaxation times of the slowest direction
        measured.append(_regression(RULE_A, (lr,), batch, 0.0, setting.seeds, steps)[:, 0] @ a)
    linear = [label_noise_sgd(a, 1.0, start * s / 4, s) for s in RULE_S]
    excess = np.array([2 * found.excess_loss if found.stable else np.nan for found in linear])
    curves = {"x": np.array(RULE_S), "rates": np.array(rates), "linear": excess}
    return Evidence(np.full(len(RULE_S), RULE_RATIO), np.array(measured).T, labels("S", RULE_S), curves)


def equivalent_lr_of_ratio() -> float:
    """The learning rate at S = 4 with an excess of 0.3 σ²/2."""
    from scipy.optimize import brentq

    a = np.array(RULE_A)
    return float(brentq(lambda lr: 2 * label_noise_sgd(a, 1.0, lr, 4).excess_loss - RULE_RATIO, 1e-3, 0.3))


def draw_rule(axes: Axes, result: Comparison) -> None:
    """With what the linear rule would do."""
    x, linear = result.curves["x"], result.curves["linear"]
    axes.axhline(RULE_RATIO, color=PREDICTED, lw=1.2, label="what the rule keeps")
    axes.plot(x, linear, "s--", color=NEUTRAL, ms=4, lw=1.1, label="lr ∝ S (diverges at S = 64)")
    errorbars(axes, x, result)
    for s, lr in zip(x, result.curves["rates"], strict=True):
        axes.annotate(f"lr {lr:.2g}", (s, RULE_RATIO), (0, 5), textcoords="offset points", rotation=60, fontsize=8)
    axes.set(xlabel="batch size", ylabel=result.unit, xscale="log", ylim=(0.2, 0.5))
    axes.legend()


def negative_decay(setting: Setting) -> Evidence:
    """One dimension, a = u = 1, no label noise: ½(w − 1)² of chains in the second half."""
    decay, one = np.array(DECAYS)[:, None], np.ones(1)
    measured = []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        w, total, steps = np.zeros((len(DECAYS), CHAINS)), np.zeros(len(DECAYS)), setting.choose(4000, 40_000)
        for step in range(steps):
            h = rng.standard_gamma(DECAY_S / 2, CHAINS) * 2 / DECAY_S
            w = w - DECAY_LR * (h * (w - 1) + decay * w)
            total += ((w - 1) ** 2).mean(1) / 2 * (step >= steps // 2)
        measured.append(total / (steps - steps // 2))
    predicted = [ridge_sgd(one, one, DECAY_LR, DECAY_S, g).test_loss for g in DECAYS]
    grid = np.linspace(-0.75, 0.2, 400)
    lines = [[ridge_sgd(one, one, lr, DECAY_S, g).test_loss for g in grid] for lr in (DECAY_LR, 1.5)]
    curves = {"x": np.array(DECAYS), "grid": grid, "lines": np.array(lines)}
    return Evidence(np.array(predicted), np.array(measured), labels("λ", DECAYS), curves)


def draw_decay(axes: Axes, result: Comparison) -> None:
    """Test loss against weight decay at a large and at a moderate learning rate."""
    large, moderate = result.curves["lines"]
    axes.plot(result.curves["grid"], large, color=PREDICTED, lw=1.2, label="lr = 3, exact")
    axes.plot(result.curves["grid"], moderate, "--", color=NEUTRAL, lw=1.1, label="lr = 1.5: best without decay")
    errorbars(axes, result.curves["x"], result)
    axes.axvline(0, color=NEUTRAL, lw=0.8)
    axes.set(xlabel="weight decay", ylabel=result.unit, ylim=(0, 1.5))
    axes.legend()
