"""Saddles without noise of their own: SGD learns, collapses or learns the wrong sign, by the sign of one number.

At the origin of a network, at a dead neuron or at two equal ones the gradient of every sample vanishes in the normal
directions: a saddle of type II. Noise cannot push SGD off, it multiplies. So it is the Lyapunov exponent that decides,
and no moment of the weights does: E‖w‖² grows at every saddle, also where every run goes to zero.

The golden example is f = u·tanh(wx) with inputs ±1 and a target 2x or −x: along u + w the factor of a step is
1 + lr·χ, along u − w it is 1 − lr·χ, with χ the batch mean of xy. All runs of all settings are one tensor. The last
claim is about a residual network, in the quick setting a small one on digits. The full setting has ResNet-18 on
CIFAR-10, for which it needs a GPU; that part has been run for a few steps, not to its end.

Source: Liu Ziyin, Botao Li, Tomer Galanti, Masahito Ueda, "Type-II Saddles and Probabilistic Stability of SGD",
arXiv 2303.13093.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.studies.figures import NEUTRAL, PREDICTED, draw_against, errorbars
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.registry import study
from gaugefix.studies.residual_rank import rank_differences
from gaugefix.theory import mean_square_limit, origin_exponents, product_exponent, two_layer_phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHI = np.array([2.0, -1.0])
LRS = (0.1, 0.3, 0.45, 0.6, 0.7, 0.9, 1.1, 1.25, 1.5)
#: lr, batch size, weight decay: what either of them does to a phase
MOVES = ((0.6, 1, 0.0), (0.6, 2, 0.0), (0.9, 1, 0.0), (0.9, 2, 0.0), (0.9, 3, 0.0), (0.3, 1, 0.1), (0.3, 1, 0.3))
BOUNDARIES = {"Ib": 0.4, "Ia": 0.5, "III": (math.sqrt(17) - 1) / 4, "II": (math.sqrt(17) + 1) / 4}
OUTCOME = {"Ib": 1.0, "Ia": 1.0, "II": -1.0, "III": 0.0, "IV": -1.0}  # sign of what is learned, 0 for the origin
RUNS, START, OUT, GONE = 130, 1e-25, 1e-3, 1e-150
SAMPLES, DIMENSION, BATCH, SQUARE_LRS = 12, 20, 4, (0.9, 1.03, 1.06, 1.3)  # lr in units of the mean-square limit
DIGITS = ((0.1, 1, 0.0), (0.2, 8, 0.0), (0.05, 8, 0.0), (0.1, 1, 0.1))
WIDTH, FLIPPED = 8, 0.3


@study("2303.13093")
def type_two_saddles() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "growth",
            "From the origin the weights grow at the larger of E log|1 + lr·χ| and E log|1 − lr·χ|.",
            growth,
            Tolerance("390 runs, and the first steps in which the mode forms", absolute=0.002, relative=0.03),
            draw_growth,
            unit="growth of log‖(u, w)‖ per step",
        ),
        Claim(
            "phases",
            "With the learning rate SGD passes from learning to collapse to learning the wrong sign.",
            phases,
            Tolerance("one run in fifty may be late", absolute=0.02),
            draw_phases,
            unit="outcome",
        ),
        Claim(
            "noise-and-decay",
            "A larger batch undoes collapse and wrong learning, and weight decay brings collapse.",
            moved_phases,
            Tolerance("one run in fifty may be late", absolute=0.02),
            unit="outcome",
        ),
        Claim(
            "moments",
            "At a minimum runs contract beyond the learning rate at which their second moment diverges.",
            contraction,
            Tolerance("both products are finite, and see different batches", absolute=0.001, relative=0.1),
            draw_moments,
            unit="growth of log‖w‖ per step",
        ),
        Claim(
            "digits",
            "A network on digits leaves its origin, or does not, at the exponent of a product of small matrices.",
            digits_origin,
            Tolerance(
                "few independent batches, of which both sides have their own",
                absolute=1e-3,
                relative=0.25,
                per_seed=False,
            ),
            draw_against("predicted exponent"),
            unit="growth of log‖θ‖ per step",
        ),
        Claim(
            "residual-rank",
            "In a residual network convolutions end with lower rank after a larger learning rate or smaller batches.",
            rank_differences,
            Tolerance("an inequality", relation=">="),
            unit="difference of the effective rank",
        ),
    )


# Two layers, one neuron


@cache
def _exits(seeds: tuple[int, ...], cells: tuple[tuple[float, int, float], ...], full: bool) -> tuple[Tensor, Tensor]:
    """Mean over the runs of their outcome and growth per step, ``(seeds, cells)``, from near the origin until they end.

    Returns:
        Outcome (1 out with uw > 0, −1 with uw < 0, 0 gone) and growth.
    """
    runs = RUNS * (10 if full else 1)
    lr, decay = (torch.tensor([c[i] for c in cells], dtype=torch.float64)[:, None, None] for i in (0, 2))
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    shape = (len(cells), len(seeds), runs)
    start = torch.stack([torch.randn(2, len(cells), runs, generator=g, dtype=torch.float64) for g in generators], 2)
    u, w = start * START
    first, signals = (u * u + w * w).log() / 2, torch.tensor(CHI)
    moving, steps = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.float64)
    largest = max(c[1] for c in cells)
    mask = torch.tensor([[float(k < c[1]) / c[1] for k in range(largest)] for c in cells])[:, None, None].double()
    for _ in range(20_000):
        drawn = torch.stack([torch.randint(2, (len(cells), runs, largest), generator=g) for g in generators], 1)
        sample = signals[drawn]  # xy of inputs ±1, so that tanh(wx)·x = tanh(w)
        hidden = w.tanh()
        error = u * hidden - (sample * mask).sum(-1)
        pulls = error * hidden + decay * u, error * u * (1 - hidden * hidden) + decay * w
        u, w = torch.where(moving, u - lr * pulls[0], u), torch.where(moving, w - lr * pulls[1], w)
        steps += moving
        size = (u * u + w * w).sqrt()
        moving &= (size < OUT) & (size > GONE)
        if not moving.any():
            break
    outcome = torch.where(size > OUT, (u * w).sign(), 0.0)
    outcome[moving] = torch.nan  # not decided
    rate = ((u * u + w * w).log() / 2 - first).sum(-1) / steps.sum(-1)
    return outcome.mean(-1).T, rate.T


def _scan(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    outcome, rate = _exits(setting.seeds, tuple((lr, 1, 0.0) for lr in LRS), setting.full)
    return outcome.numpy(), rate.numpy()


def growth(setting: Setting) -> Evidence:
    """Net growth over the number of steps until a run is out or gone."""
    grid = np.linspace(0.02, 1.6, 400)
    lines = np.array([origin_exponents(CHI, lr) for lr in grid]).T
    predicted = [max(origin_exponents(CHI, lr)) for lr in LRS]
    curves = {"x": np.array(LRS), "grid": grid, "lines": np.maximum(lines, -0.8)}
    return Evidence(np.array(predicted), _scan(setting)[1], labels("lr", LRS), curves)


def draw_growth(axes: Axes, result: Comparison) -> None:
    """Both exponents, and what the runs did."""
    plus, minus = result.curves["lines"]
    axes.axhline(0, color=NEUTRAL, lw=0.8)
    axes.plot(result.curves["grid"], plus, color=PREDICTED, lw=1.2, label="u + w, the right sign")
    axes.plot(result.curves["grid"], minus, "--", color=PREDICTED, lw=1.2, label="u − w, the wrong sign")
    errorbars(axes, result.curves["x"], result)
    axes.set(xlabel="learning rate", ylabel=result.unit)
    axes.legend()


def phases(setting: Setting) -> Evidence:
    """Mean over the runs of the sign with which they leave, zero for those that go to the origin."""
    predicted = [OUTCOME[two_layer_phase(CHI, lr)] for lr in LRS]
    return Evidence(np.array(predicted), _scan(setting)[0], labels("lr", LRS), {"x": np.array(LRS)})


def draw_phases(axes: Axes, result: Comparison) -> None:
    """The phases as bands."""
    edges = [0.0, *BOUNDARIES.values(), 1.6]
    for name, low, high, shade in zip([*BOUNDARIES, "IV"], edges, edges[1:], "10101", strict=False):
        axes.axvspan(low, high, color="#f0f2f5" if shade == "1" else "white", zorder=0)
        axes.text((low + high) / 2, 1.22, name, ha="center", fontsize=8.5)
    axes.plot(result.curves["x"], result.predicted[0], "o", ms=9, mfc="none", mec=PREDICTED, mew=1.4, label="predicted")
    errorbars(axes, result.curves["x"], result)
    axes.set(xlabel="learning rate", xlim=(0, 1.6), ylim=(-1.3, 1.45), ylabel="")
    axes.set_yticks([-1, 0, 1], ["wrong sign", "origin", "right sign"])
    axes.legend(loc="lower left")


def moved_phases(setting: Setting) -> Evidence:
    """The same with other batch sizes and weight decay."""
    predicted = [OUTCOME[two_layer_phase(CHI, lr, b, decay)] for lr, b, decay in MOVES]
    cells = tuple(f"lr={lr:g} B={b}" + (f" λ={decay:g}" if decay else "") for lr, b, decay in MOVES)
    return Evidence(np.array(predicted), _exits(setting.seeds, MOVES, setting.full)[0].numpy(), cells)


# Moments


def contraction(setting: Setting) -> Evidence:
    """Interpolating regression with inputs of different size: log‖w‖ of runs, against a product of other batches."""
    rng = np.random.default_rng(0)  # the data are the same for all seeds, the batches are not
    x = rng.standard_normal((SAMPLES, DIMENSION)) * rng.uniform(0.3, 2.0, (SAMPLES, 1))
    limit = mean_square_limit(x, BATCH)
    basis = np.linalg.svd(x, full_matrices=False)[2]
    inside = x @ basis.T
    rates, grid = limit * np.array(SQUARE_LRS), limit * np.linspace(0.7, 1.4, 29)
    batches = inside[rng.integers(0, SAMPLES, (setting.choose(6000, 40_000), BATCH))]
    blocks = np.einsum("tbi,tbj->tij", batches, batches) / BATCH
    predicted, line = (product_exponent(blocks, lr, burn_in=300).value for lr in (rates, grid))
    data, lr, runs = torch.tensor(inside), torch.tensor(rates)[:, None, None], 200
    measured = []
    for seed in setting.seeds:
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(len(rates), runs, SAMPLES, generator=generator, dtype=torch.float64)
        total = torch.zeros(len(rates), dtype=torch.float64)
        for step in range(setting.choose(500, 3000)):
            rows = data[torch.randint(SAMPLES, (runs, BATCH), generator=generator)]
            error = torch.einsum("rbd,lrd->lrb", rows, w)
            w = w - lr / BATCH * torch.einsum("rbd,lrb->lrd", rows, error)
            size = w.norm(dim=-1, keepdim=True)
            w = w / size
            total += size.log().mean((1, 2)) * (step >= 200)
        measured.append((total / (setting.choose(500, 3000) - 200)).numpy())
    curves = {"x": rates, "grid": grid, "line": line, "limit": np.array([limit])}
    return Evidence(predicted, np.array(measured), labels("lr/lr_MS", SQUARE_LRS), curves)


def draw_moments(axes: Axes, result: Comparison) -> None:
    """The exponent, and the learning rate beyond which the second moment diverges."""
    axes.axhline(0, color=NEUTRAL, lw=0.8)
    axes.plot(result.curves["grid"], result.curves["line"], color=PREDICTED, lw=1.2, label="predicted")
    axes.axvline(result.curves["limit"][0], color=NEUTRAL, ls="--", lw=1, label="second moment diverges")
    errorbars(axes, result.curves["x"], result)
    axes.set(xlabel="learning rate", ylabel=result.unit)
    axes.legend()


# Digits


def digits_origin(setting: Setting) -> Evidence:
    """F = Σ u_j tanh(w_j·x) on digits against ±1 with three in ten flipped: log‖θ‖ of runs from 1e-40."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    steps, predicted, measured = setting.choose(2000, 10_000), [], []
    for seed in setting.seeds:
        rng = np.random.default_rng(seed)
        x, y = pixels / 16, np.where(digit >= 5, 1.0, -1.0) * np.where(rng.random(len(digit)) < FLIPPED, -1.0, 1.0)
        other = np.random.default_rng(seed + 1000)
        predicted.append([_growth(x, y, case, steps, other, linear=True) for case in DIGITS])
        measured.append([_growth(x, y, case, steps, rng, linear=False) for case in DIGITS])
    cells = tuple(f"lr={lr:g} B={b}" + (f" λ={decay:g}" if decay else "") for lr, b, decay in DIGITS)
    return Evidence(np.array(predicted), np.array(measured), cells, {"x": np.array(predicted).mean(0)})


def _growth(
    x: np.ndarray, y: np.ndarray, case: tuple[float, int, float], steps: int, rng: np.random.Generator, *, linear: bool
) -> float:
    """Growth of log‖θ‖ per step over ten runs: of a neuron in the product of matrices, or of the network itself."""
    (lr, batch, decay), runs, burn_in = case, 10, 400
    width = 1 if linear else WIDTH
    u, w = 1e-40 * rng.standard_normal((runs, width)), 1e-40 * rng.standard_normal((runs, width, x.shape[1]))
    begin = np.zeros(runs)
    for step in range(burn_in + steps):
        picked = rng.integers(0, len(x), (runs, batch))
        inputs, targets = x[picked], y[picked]  # (runs, B, 64), (runs, B)
        before = np.einsum("rbd,rkd->rbk", inputs, w)
        hidden = before if linear else np.tanh(before)
        error = -targets if linear else np.einsum("rbk,rk->rb", hidden, u) - targets
        back = error[..., None] * (1.0 if linear else 1 - hidden**2) * u[:, None]
        u, w = (
            (1 - lr * decay) * u - lr / batch * np.einsum("rb,rbk->rk", error, hidden),
            (1 - lr * decay) * w - lr / batch * np.einsum("rbk,rbd->rkd", back, inputs),
        )
        if step == burn_in - 1:
            begin = np.log(np.sqrt((u**2).sum(1) + (w**2).sum((1, 2))))
    end = np.log(np.sqrt((u**2).sum(1) + (w**2).sum((1, 2))))
    return float((end - begin).mean()) / steps
