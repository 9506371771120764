"""Every continuous symmetry has a charge that gradient noise moves in a known way, to one point of each orbit.

If ℓ(e^{cA}θ) = ℓ(θ) for every sample and a symmetric A, gradient flow conserves the charge θᵀAθ, and one step of SGD
changes it by exactly lr²·ĝᵀAĝ (and weight decay by (1 − lr·λ)²). So noise inflates a scale symmetry without bound, and
along a two-sided one there is a single point of rest, the noise equilibrium, where the two sides fluctuate alike. It
does not depend on the start, it can be computed, and jumped to, without changing the function.

The study follows one attention head matrix by matrix, weights that only their direction matters for, and a two-layer
linear network with unequal inputs and noises, for which the equilibrium is known in closed form. Weight decay is
PyTorch's λ; the paper's γ is λ/2.

Source: Liu Ziyin, Mingze Wang, Hongchao Li and Lei Wu, "Parameter Symmetry and Noise Equilibrium of SGD",
arXiv 2402.07193.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.control import AttentionPair, MatrixPair
from gaugefix.studies.figures import MEASURED, NEUTRAL, PREDICTED, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance
from gaugefix.studies.linear_networks import train_linear
from gaugefix.studies.registry import study
from gaugefix.studies.scale_invariant import draw_scale, scale_norms
from gaugefix.theory.deep_linear_hessian import layer_sum
from gaugefix.theory.deep_linear_sharpness import DeepLinearSharpness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
HEADS, HEAD_DIM, WIDTH, TOKENS, HEAD_LR, HEAD_STEPS = 2, 2, 6, 5, 0.2, 100
STD_X, STD_NOISE = (1.5, 1.0, 0.5), (1.5, 0.8, 0.4)  # of the linear network, d_x = d_y = 3
LRS, LINEAR_BATCH, LINEAR_STEPS, REPLICAS = (0.08, 0.04), 4, 26_000, 4
STARTS = ((0.3, 0.3), (0.2, 0.7))  # size of the initial entries of W and U


@study("2402.07193")
def noise_equilibrium() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "matrix-law",
            "One step changes the matrix charge of a head, W_QW_Qᵀ − W_KW_Kᵀ, by lr²(ĝ_Qĝ_Qᵀ − ĝ_Kĝ_Kᵀ), exactly.",
            head_charges,
            Tolerance("rounding of float64 over 100 steps", absolute=1e-12),
            draw_identity,
            unit="entries of the charge",
        ),
        Claim(
            "scale",
            "Weights that only their direction matters for grow as t^¼, until weight decay holds them at a known norm.",
            scale_norms,
            Tolerance("steps are not infinitely small next to the norm", relative=0.01),
            draw_scale,
            unit="⟨‖θ‖⁴⟩",
        ),
        Claim(
            "equilibrium",
            "SGD forgets how the layers were balanced and ends at one predicted charge; gradient descent keeps it.",
            layer_charges,
            Tolerance("learning rates 0.08 and 0.04, extrapolated to zero", absolute=0.2),
            draw_charges,
            unit="‖U‖² − ‖W‖²",
        ),
        Claim(
            "sharpness",
            "So the sharpness after training is predicted, and it is not the least possible one.",
            final_sharpness,
            Tolerance("learning rates 0.08 and 0.04, extrapolated to zero", relative=0.02),
            unit="sharpness",
        ),
        Claim(
            "alignment",
            "At rest the layers are aligned, W Σ_x Wᵀ/Tr Σ_x = Uᵀ Σ_ε U/Tr Σ_ε; after gradient descent they are not.",
            alignment,
            Tolerance("fluctuations at learning rate 0.04", absolute=0.25, relation="<="),
            unit="difference after SGD / after GD",
        ),
        Claim(
            "isotropic",
            "With isotropic data ‖U‖²/‖W‖² = d_y/d_x: layers have equal norm only if as many go in as come out.",
            norm_ratio,
            Tolerance("finite learning rate 0.02", relative=0.03),
            unit="‖U‖²/‖W‖²",
        ),
        Claim(
            "teleport",
            "One matrix, computed from the gradients, jumps to the equilibrium: the least noise among equal functions.",
            teleport,
            Tolerance("where the search over the orbit stops", relative=1e-6, absolute=1e-9),
            unit="as labelled",
        ),
    )


# One attention head


def _head_losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Softmax attention with fixed values; one loss per sequence."""
    q, k = (x @ params[n].T for n in ("q", "k"))
    q, k = (t.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for t in (q, k))
    weights = (q @ k.mT / math.sqrt(HEAD_DIM)).softmax(-1).mean(1)
    return (weights @ x - y).square().sum((1, 2))


def head_charges(setting: Setting) -> Evidence:
    """Batches of eight random sequences."""
    pair = AttentionPair("q", "k", heads=HEADS)
    predicted, measured = [], []
    for seed in setting.seeds:
        generator = torch.Generator().manual_seed(seed)
        params = {n: torch.randn(HEADS * HEAD_DIM, WIDTH, generator=generator, dtype=F64) / 2 for n in "qk"}
        charge = pair.charge(params)
        for _ in range(HEAD_STEPS):
            x, y = torch.randn(2, 8, TOKENS, WIDTH, generator=generator, dtype=F64)
            gradient = torch.func.grad(lambda p, x=x, y=y: _head_losses(p, x, y).mean())(params)
            charge = charge + pair.drift(params, [gradient], lr=HEAD_LR)
            params = {n: p - HEAD_LR * gradient[n] for n, p in params.items()}
        predicted.append(charge.flatten().numpy())
        measured.append(pair.charge(params).flatten().numpy())
    cells = tuple(f"head {h}, {i}{j}" for h in range(HEADS) for i in range(HEAD_DIM) for j in range(HEAD_DIM))
    return Evidence(np.array(predicted), np.array(measured), cells)


# A two-layer linear network


def _model() -> DeepLinearSharpness:
    """One fixed V with ‖V‖ = 1.5; the seeds draw initial weights and data."""
    signal = np.random.default_rng(0).standard_normal((3, 3))
    signal *= 1.5 / np.linalg.norm(signal)
    return DeepLinearSharpness(signal, np.diag(np.square(STD_X)), np.diag(np.square(STD_NOISE)), 2)


def _record(weights: list[Tensor]) -> Tensor:
    """Sharpness, ‖U‖² − ‖W‖² and ‖W Σ_x Wᵀ/Tr Σ_x − Uᵀ Σ_ε U/Tr Σ_ε‖, each ``(cells, seeds)``."""
    w, u = weights
    x, noise = (torch.tensor(s, dtype=F64).square() for s in (STD_X, STD_NOISE))
    sharpness = torch.from_numpy(layer_sum([w.numpy(), u.numpy()], np.diag(x.numpy()), np.eye(3)))
    charge = u.square().sum((-1, -2)) - w.square().sum((-1, -2))
    inside, outside = (w * x) @ w.mT / x.sum(), (u.mT * noise) @ u / noise.sum()
    apart = (inside - outside).norm(dim=(-1, -2))
    return torch.stack([sharpness, charge, apart]).mean(-1)


@cache
def _linear(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Records of SGD ``(times, 3, lrs, starts, seeds)``, and of gradient descent, where it starts and ends."""
    n, lrs = len(setting.seeds), torch.tensor(LRS, dtype=F64).repeat_interleave(len(STARTS)).reshape(-1, 1, 1, 1, 1)
    weights = []
    for k in range(2):
        draws = [np.random.default_rng(100 + s).standard_normal((2, REPLICAS, 3, 3))[k] for s in setting.seeds]
        one = torch.from_numpy(np.stack(draws))
        weights.append(torch.stack([start[k] * one for _ in LRS for start in STARTS]))
    signal = torch.from_numpy(_model().signal)
    roots = [torch.diag(torch.tensor(s, dtype=F64)) for s in (STD_X, STD_NOISE)]
    steps = setting.choose(LINEAR_STEPS, 4 * LINEAR_STEPS)
    _, sgd = train_linear(
        weights,
        signal,
        *roots,
        lr=lrs,
        batch=LINEAR_BATCH,
        steps=steps,
        seeds=setting.seeds,
        every=steps // 200,
        watch=_record,
    )
    descent, _ = train_linear(weights, signal, *roots, lr=0.002, batch=0, steps=5000, seeds=setting.seeds)
    both = torch.stack([_record(weights), _record(descent)]).reshape(2, 3, len(LRS), len(STARTS), n)
    return sgd.reshape(-1, 3, len(LRS), len(STARTS), n).numpy(), both.numpy()


def _at_rest(setting: Setting, what: int) -> np.ndarray:
    """Mean over the last half, extrapolated linearly to learning rate zero, ``(seeds, starts)``."""
    records = _linear(setting)[0][:, what]
    large, small = records[len(records) // 2 :].mean(0)
    return np.asarray((2 * small - large).T)


def layer_charges(setting: Setting) -> Evidence:
    """From small and from large weights."""
    sgd, descent = _linear(setting)
    first, last = _model().weights(3)
    rest = (last**2).sum() - (first**2).sum()
    kept = descent[:, 1, -1]  # at the start and at the end, (2, starts, seeds)
    predicted = np.hstack([np.full(kept[0].T.shape, rest), kept[0].T])
    measured = np.hstack([_at_rest(setting, 1), kept[1].T])
    cells = tuple(f"{name}, W {w:g}, U {u:g}" for name in ("SGD", "GD") for w, u in STARTS)
    curves = {"sgd": np.concatenate([descent[:1, 1, -1, :, 0], sgd[:, 1, -1, :, 0]]).T, "rest": np.array([rest])}
    return Evidence(predicted, measured, cells, curves)


def draw_charges(axes: Axes, result: Comparison) -> None:
    """The charge of the first seed over time, from both starts."""
    for line, (w, u), color in zip(result.curves["sgd"], STARTS, (MEASURED, "#7aa5cf"), strict=True):
        axes.plot(np.linspace(0, 1, len(line)), line, color=color, lw=1.2, label=f"SGD, W ~ {w:g}, U ~ {u:g}")
    for value in result.measured[0, len(STARTS) :]:
        axes.axhline(value, color=NEUTRAL, ls=":")
    axes.plot([], [], ":", color=NEUTRAL, label="gradient descent")
    axes.axhline(result.curves["rest"][0], color=PREDICTED, label="predicted rest")
    axes.set(xlabel="share of the run, learning rate 0.04", ylabel=f"{result.unit}, first seed")
    axes.legend()


def final_sharpness(setting: Setting) -> Evidence:
    """Of SGD from both starts."""
    predicted = np.full(len(STARTS), _model().trace)
    return Evidence(predicted, _at_rest(setting, 0), tuple(f"W {w:g}, U {u:g}" for w, u in STARTS))


def alignment(setting: Setting) -> Evidence:
    """The difference of the two sides after SGD, relative to that after gradient descent from the same start."""
    sgd, descent = _linear(setting)
    ratio = sgd[len(sgd) // 2 :, 2, -1].mean(0) / descent[1, 2, -1]
    return Evidence(np.zeros(len(STARTS)), ratio.T, tuple(f"W {w:g}, U {u:g}" for w, u in STARTS))


def norm_ratio(setting: Setting) -> Evidence:
    """Four inputs, two outputs, unit noise."""
    steps = setting.choose(8000, 40_000)
    shapes = ((2, 4), (2, 2))
    weights = [
        torch.from_numpy(
            np.stack([0.5 * np.random.default_rng(s).standard_normal((2, 8, *shapes[k]))[k] for s in setting.seeds])
        )[None]
        for k in range(2)
    ]
    signal = torch.eye(2, 4, dtype=F64)

    def norms(pair: list[Tensor]) -> Tensor:
        return torch.stack([w.square().sum((-1, -2)).mean(-1)[0] for w in pair])

    eyes = torch.eye(4, dtype=F64), torch.eye(2, dtype=F64)
    _, found = train_linear(
        weights, signal, *eyes, lr=0.02, batch=1, steps=steps, seeds=setting.seeds, every=20, watch=norms
    )
    w, u = found[len(found) // 2 :].mean(0).numpy()
    return Evidence(np.array([0.5]), (u / w)[:, None], ("d_x = 4, d_y = 2",))


# The jump


def teleport(setting: Setting) -> Evidence:
    """Fit y by tanh(UWx) on 64 samples; compare with a search over all invertible matrices."""
    pair = MatrixPair("U", "W")
    measured = []
    for seed in setting.seeds:
        generator = torch.Generator().manual_seed(seed)
        params = {
            "U": torch.randn(4, 3, generator=generator, dtype=F64),
            "W": torch.randn(3, 5, generator=generator, dtype=F64) / 2,
        }
        x, y = (torch.randn(64, n, generator=generator, dtype=F64) for n in (5, 4))

        def losses(p: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
            return (torch.tanh(x @ (p["U"] @ p["W"]).T) - y).square().sum(1)

        def gradients(p: dict[str, Tensor], losses=losses) -> list[dict[str, Tensor]]:
            each = torch.func.jacrev(losses)(p)
            return [{k: g[i] for k, g in each.items()} for i in range(64)]

        before, least = losses(params), _least_noise(params, gradients(params))
        pair.teleport_(params, pair.equilibrium(gradients(params)))
        now = gradients(params)
        left = pair.drift(params, now, lr=1.0).norm() / sum(float(g["U"].square().sum()) for g in now) * 64
        noise = sum(float(g[k].square().sum()) for g in now for k in g) / 64
        measured.append([float((losses(params) - before).abs().max()), float(left), noise / least])
    cells = ("change of the loss", "drift of the charge", "noise / least noise")
    return Evidence(np.array([0.0, 0.0, 1.0]), np.array(measured), cells)


def _least_noise(params: dict[str, Tensor], gradients: list[dict[str, Tensor]]) -> float:
    """L-BFGS over M of E‖ĝ_U M⁻ᵀ‖² + E‖Mᵀĝ_W‖²."""
    u, w = (torch.stack([g[k] for g in gradients]) for k in ("U", "W"))
    change = torch.eye(3, dtype=F64).requires_grad_()
    solver = torch.optim.LBFGS([change], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = ((u @ torch.linalg.inv(change).T).square().sum() + (change.T @ w).square().sum()) / len(u)
        value.backward()
        return value

    solver.step(closure)
    return float(closure().detach())
