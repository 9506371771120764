"""Gradient noise balances the two sides of every rescaling symmetry, and a strong one collapses them.

A loss that is unchanged by (u, w) → (cu, w/c) for every sample moves the charge Q = ‖u‖² − ‖w‖² by an exact law: one
step of SGD changes it by lr²(‖ĝ_u‖² − ‖ĝ_w‖²), whatever the batch. So training stops changing Q only where the
gradients of the two sides are equally noisy. For a product of weights this decides the whole stationary law, and above
a learning rate the only stationary state is zero.

The study follows a ReLU network unit by unit, and the regression y ≈ uwx, which can be solved. The loss is (uwx − y)²
without a factor ½; weight decay is PyTorch's.

Source: Liu Ziyin, Hongchao Li, Masahito Ueda, "Law of Balance and Stationary Distribution of SGD", arXiv 2308.06671.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import MEASURED, PREDICTED, draw_against, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.theory.balance import predict_charge_step
from gaugefix.theory.product_collapse import collapse_lr, zero_exponent
from gaugefix.theory.stationary_distribution import StationaryDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS, NET_LR, NET_BATCH, NET_STEPS = (20, 64, 20), 0.01, 8, 12_000  # ReLU autoencoder, y = x + noise
CHECKPOINTS = (1500, 3000, 6000, 12_000)
SLOPE, NOISE = 1.0, 10.0  # y = slope·x + noise·ξ, x uniform of variance one: bounded inputs, or SGD diverges
#: cases of the stationary law: depth, width, T as a share of β₂/α₃, weight decay λ
CASES = ((1, 1, 0.25, 0.0), (1, 1, 0.5, 0.0), (1, 1, 0.4, 0.4), (2, 1, 0.25, 0.0), (2, 3, 0.25, 0.0))
CHAINS, STEPS, THIN = 4000, 12_000, 50
BLOCK = 100  # steps whose batches are drawn at once
COLLAPSE_LRS = (0.7, 0.8, 0.9, 1.1, 1.3)  # in units of the exact threshold
GONE = 1e-6
DEEP_LRS = (1.2, 1.35, 1.5)  # where the decay to zero is followed


@study("2308.06671")
def law_of_balance() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "charge-law",
            "One step changes ‖u‖² − ‖w‖² of a hidden unit by lr²(‖ĝ_u‖² − ‖ĝ_w‖²), for every unit and every batch.",
            charges,
            Tolerance("rounding of float64 over 12,000 steps", absolute=1e-9),
            draw_identity,
            unit="total charge",
        ),
        Claim(
            "noise-balance",
            "Training ends where the gradients of both sides are equally large: their ratio tends to one.",
            gradient_ratio,
            Tolerance("the slowest unit is not there yet after 12,000 steps", absolute=0.05),
            draw_ratio,
            unit="E‖ĝ_u‖² / E‖ĝ_w‖²",
        ),
        Claim(
            "stationary-law",
            "The product of the weights is distributed by a closed form; here its mean and standard deviation.",
            stationary_moments,
            Tolerance("finite step size, 4000 chains and 120 times", absolute=0.02),
            draw_identity,
            unit="of v",
        ),
        Claim(
            "distribution",
            "The whole distribution function agrees, for one layer and two, wide and narrow, with and without decay.",
            kolmogorov_distances,
            Tolerance("finite step size and 4000 chains", absolute=0.02, relation="<="),
            unit="Kolmogorov distance",
        ),
        Claim(
            "collapse",
            "Below a critical learning rate the weights stay alive, above it they go to zero.",
            collapsed_share,
            Tolerance("after 30,000 steps chains near the threshold are on their way", absolute=0.06),
            draw_against("learning rate / critical learning rate"),
            unit="share of chains at zero",
        ),
        Claim(
            "collapse-rate",
            "Above it log|uw| falls by 2 E log|1 + 2 lr·xy| per step.",
            collapse_rates,
            Tolerance("four standard errors, and the first steps away from zero", relative=0.03),
            draw_against("learning rate / critical learning rate"),
            unit="per step",
        ),
    )


# A ReLU network


@cache
def _network(seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charges predicted and measured ``(seeds, checkpoints)``, and mean ‖ĝ_u‖²/‖ĝ_w‖² between them."""
    n_in, width, n_out = WIDTHS
    generators = [torch.Generator().manual_seed(s) for s in seeds]

    def draw(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g, dtype=torch.float64) for g in generators])

    w, u = draw(width, n_in) / math.sqrt(n_in), draw(n_out, width) / math.sqrt(width)
    charge = predicted = (u.square().sum(1) - w.square().sum(2)).numpy()
    totals, ratios = [], []
    sums = torch.zeros(2, len(seeds), dtype=torch.float64)
    for step in range(1, NET_STEPS + 1):
        x = draw(NET_BATCH, n_in)
        hidden = x @ w.mT
        active = hidden.relu()
        error = 2 * (active @ u.mT - x - draw(NET_BATCH, n_out)) / NET_BATCH
        g_u, g_w = error.mT @ active, ((error @ u) * (hidden > 0)).mT @ x
        sides = torch.stack([g_u.square().sum(1), g_w.square().sum(2)])  # (2, seeds, units)
        predicted = predict_charge_step(predicted, (sides[0] - sides[1]).numpy(), lr=NET_LR)
        sums += sides.sum(-1)
        u, w = u - NET_LR * g_u, w - NET_LR * g_w
        if step in CHECKPOINTS:
            charge = (u.square().sum(1) - w.square().sum(2)).numpy()
            totals.append((predicted.sum(-1), charge.sum(-1)))
            ratios.append((sums[0] / sums[1]).numpy())
            sums = torch.zeros_like(sums)
    predictions, measurements = np.array(totals).transpose(1, 2, 0)
    return predictions, measurements, np.array(ratios).T


def charges(setting: Setting) -> Evidence:
    """Sum over the hidden units, at a few times."""
    predicted, measured, _ = _network(setting.seeds)
    return Evidence(predicted, measured, labels("step", CHECKPOINTS))


def gradient_ratio(setting: Setting) -> Evidence:
    """Over the last interval; the figure shows all."""
    ratios = _network(setting.seeds)[2]
    return Evidence(np.ones(1), ratios[:, -1:], ("end",), {"ratios": ratios, "steps": np.array(CHECKPOINTS)})


def draw_ratio(axes: Axes, result: Comparison) -> None:
    """The ratio over the intervals of training."""
    axes.axhline(1, color=PREDICTED, lw=1.2, label="predicted in the end")
    axes.plot(result.curves["steps"], result.curves["ratios"].T, "o-", lw=0.8, ms=4.5, color=MEASURED)
    axes.plot([], [], "o-", color=MEASURED, label="measured, each seed")
    axes.set(xlabel="step", ylabel=result.unit)
    axes.legend()


# Regression through a product of weights


def _moments() -> tuple[tuple[float, float, float], tuple[float, float]]:
    """α and β of the data: x uniform on [−√3, √3], so E x⁴ = 9/5."""
    var_xx = 9 / 5 - 1
    return (var_xx, SLOPE * var_xx, SLOPE**2 * var_xx + NOISE**2), (1.0, SLOPE)


def _laws() -> list[StationaryDistribution]:
    alpha, beta = _moments()
    return [StationaryDistribution(alpha, beta, s * beta[1] / alpha[2], d, n, decay) for d, n, s, decay in CASES]


def _stream(seeds: tuple[int, ...], chains: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """2x² and 2xy of the batch of one that every chain sees, ``(seeds, chains)``, step by step."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for begin in range(0, steps, BLOCK):
        shape = (min(BLOCK, steps - begin), chains)
        x = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators], 1)
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators], 1)
        x = (2 * x - 1) * math.sqrt(3)
        yield from zip(2 * x * x, 2 * x * (SLOPE * x + NOISE * noise), strict=True)


def _start(law: StationaryDistribution, seeds: int, chains: int) -> list[Tensor]:
    """The factors of every chain, ``(width, seeds, chains)`` each; not balanced."""
    one = torch.full((law.width, seeds, chains), law.width ** (-1 / (law.depth + 1)), dtype=torch.float64)
    return [one, *[one / 1.3] * law.depth]


def _product(factors: list[Tensor]) -> Tensor:
    return reduce(torch.mul, factors)


def _step(law: StationaryDistribution, factors: list[Tensor], square: Tensor, signal: Tensor) -> list[Tensor]:
    """SGD on (vx − y)² with batches of one."""
    lr, keep = law.temperature, 1 - law.temperature * law.weight_decay
    others = [_product(factors[:k] + factors[k + 1 :]) for k in range(len(factors))]
    pull = (factors[0] * others[0]).sum(0).mul_(square).sub_(signal)
    kept = factors if keep == 1 else [keep * f for f in factors]
    return [torch.addcmul(f, pull, other, value=-lr) for f, other in zip(kept, others, strict=True)]


@cache
def _samples(seeds: tuple[int, ...], steps: int) -> list[np.ndarray]:
    """Second half of every run, thinned, ``(seeds, samples)`` for each case; all cases see the same batches."""
    laws, chains = _laws(), CHAINS // len(seeds)
    states = [_start(law, len(seeds), chains) for law in laws]
    found: list[list[Tensor]] = [[] for _ in laws]
    for t, batch in enumerate(_stream(seeds, chains, steps)):
        states = [_step(law, factors, *batch) for law, factors in zip(laws, states, strict=True)]
        if t >= steps // 2 and t % THIN == 0:
            for kept, factors in zip(found, states, strict=True):
                kept.append(_product(factors).sum(0))
    return [torch.stack(kept, dim=1).flatten(1).numpy() for kept in found]


def stationary_moments(setting: Setting) -> Evidence:
    """Mean and standard deviation; for each seed its own chains."""
    predicted = [m for law in _laws() for m in (law.mean, law.std)]
    samples = _samples(setting.seeds, setting.choose(STEPS, 4 * STEPS))
    measured = np.array([[m for s in samples for m in (s[i].mean(), s[i].std())] for i in range(len(setting.seeds))])
    cells = tuple(f"{what}, {_name(*case)}" for case in CASES for what in ("mean", "std"))
    return Evidence(np.array(predicted), measured, cells)


def kolmogorov_distances(setting: Setting) -> Evidence:
    """Largest difference of the distribution functions."""
    samples, distances = _samples(setting.seeds, setting.choose(STEPS, 4 * STEPS)), []
    for law, found in zip(_laws(), samples, strict=True):
        ordered = np.sort(found, axis=1)
        rank = (np.arange(ordered.shape[1]) + 0.5) / ordered.shape[1]
        distances.append(np.abs(law.cdf(ordered) - rank).max(axis=1))
    return Evidence(np.zeros(len(CASES)), np.array(distances).T, tuple(_name(*case) for case in CASES))


def _name(depth: int, width: int, share: float, decay: float) -> str:
    return f"D={depth} d={width} T={share:g}" + (f" λ={decay:g}" if decay else "")


# The collapse


def _threshold() -> tuple[float, np.ndarray]:
    """Exact critical learning rate of the distribution of xy, from a fine grid of its quantiles."""
    from scipy.stats import norm

    x = np.sqrt(3) * (np.arange(400) + 0.5) / 400
    noise = norm.ppf((np.arange(4000) + 0.5) / 4000)
    signals = (x[:, None] * (SLOPE * x[:, None] + NOISE * noise)).ravel()
    return collapse_lr(signals), signals


def _collapse(seeds: tuple[int, ...], factors: tuple[float, ...], times: tuple[int, ...], chains: int) -> np.ndarray:
    """Values of log|uw| ``(times, seeds, lrs, chains)`` from uw = 1/1.3, in coordinates that do not underflow."""
    lr = torch.tensor(factors, dtype=torch.float64)[:, None] * _threshold()[0]
    u = torch.ones(len(seeds), len(factors), chains, dtype=torch.float64)
    w, scale, found = u / 1.3, torch.zeros_like(u), []
    size = torch.ones_like(u)
    for step, (square, signal) in enumerate(_stream(seeds, chains, max(times)), start=1):
        pull = (u * w).mul_(size).mul_(square[:, None]).sub_(signal[:, None]).mul_(lr)
        u, w = torch.addcmul(u, pull, w, value=-1), torch.addcmul(w, pull, u, value=-1)
        if step % 100 == 0:  # keep u and w near one, and their common size apart
            largest = torch.maximum(u.abs(), w.abs())
            u, w, scale = u / largest, w / largest, scale + largest.log()
            size = torch.exp(2 * scale)
        if step in times:
            found.append(u.abs().log() + w.abs().log() + 2 * scale)
    return torch.stack(found).numpy()


def collapsed_share(setting: Setting) -> Evidence:
    """Share of the chains below 1e-6."""
    # predicted by the stationary law at the same distance from its own threshold, which is 6 % higher, with the power
    # of its tail corrected to the one at a finite learning rate
    logs = _collapse(setting.seeds, COLLAPSE_LRS, (setting.choose(30_000, 300_000),), 700)[0]
    (threshold, signals), (alpha, beta) = _threshold(), _moments()
    predicted = np.ones(len(COLLAPSE_LRS))
    for i, r in enumerate(COLLAPSE_LRS):
        if r < 1:
            share = float(StationaryDistribution(alpha, beta, r * beta[1] / alpha[2]).cdf(GONE))
            predicted[i] = share ** (zero_exponent(signals, r * threshold) / (0.5 / r - 0.5))
    return Evidence(
        predicted,
        (logs < math.log(GONE)).mean(-1),
        labels("lr/lr_c", COLLAPSE_LRS),
        {"x": np.array(COLLAPSE_LRS)},
    )


def collapse_rates(setting: Setting) -> Evidence:
    """Change of the mean of log|uw| between two times."""
    threshold, signals = _threshold()
    predicted = [2 * np.log(np.abs(1 + 2 * r * threshold * signals)).mean() for r in DEEP_LRS]
    early, late = _collapse(setting.seeds, DEEP_LRS, (4000, 12_000), 1500).mean(-1)
    curves = {"x": np.array(DEEP_LRS)}
    return Evidence(np.array(predicted), (late - early) / 8000, labels("lr/lr_c", DEEP_LRS), curves)
