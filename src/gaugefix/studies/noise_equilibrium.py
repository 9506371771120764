"""Every continuous symmetry has a charge that gradient noise moves in a known way, to one point of each orbit.

If ℓ(e^{cA}θ) = ℓ(θ) for every sample and a symmetric A, gradient flow conserves the charge θᵀAθ, and one step of SGD
changes it by exactly lr²·ĝᵀAĝ (and weight decay by (1 − lr·λ)²). So noise inflates a scale symmetry without bound, and
along a two-sided one there is a single point of rest, the noise equilibrium, where the two sides fluctuate alike. It
does not depend on the start, it can be computed, and jumped to, without changing the function.

The study follows one attention head matrix by matrix, weights of which only the direction matters, and a two-layer
linear network with unequal inputs and noises, for which the equilibrium is known in closed form. Weight decay is
PyTorch's λ; the paper's γ is λ/2.

Source: Liu Ziyin, Mingze Wang, Hongchao Li and Lei Wu, "Parameter Symmetry and Noise Equilibrium of SGD",
arXiv 2402.07193.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gaugefix.control import AttentionPair, MatrixPair
from gaugefix.studies.figures import draw_identity, draw_within
from gaugefix.studies.framework import Claim, Evidence, Setting, Tolerance
from gaugefix.studies.registry import study
from gaugefix.studies.scale_invariant import draw_scale, scale_norms
from gaugefix.studies.two_layer_equilibrium import (
    alignment,
    draw_charges,
    draw_sharpness,
    final_sharpness,
    layer_charges,
    norm_ratio,
)

F64 = torch.float64
Losses = Callable[[dict[str, Tensor]], Tensor]
HEADS, HEAD_DIM, WIDTH, TOKENS, HEAD_LR, HEAD_STEPS = 2, 2, 6, 5, 0.2, 40


@study("2402.07193")
def noise_equilibrium() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "matrix-law",
            "One step changes the matrix charge of a head, W_QW_Qᵀ − W_KW_Kᵀ, by lr²(ĝ_Qĝ_Qᵀ − ĝ_Kĝ_Kᵀ), exactly.",
            head_charges,
            Tolerance("rounding of float64 over 40 steps", absolute=1e-12),
            draw_identity,
            unit="entries of the charge",
        ),
        Claim(
            "scale",
            "Weights in front of a normalisation grow, ‖θ‖⁴ ∝ t, until weight decay holds them at a known norm.",
            scale_norms,
            Tolerance("steps are not infinitely small next to the norm", relative=0.01),
            draw_scale,
            unit="⟨‖θ‖⁴⟩",
        ),
        Claim(
            "equilibrium",
            "SGD forgets the initial balance of the layers and ends at a known one; gradient descent keeps it.",
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
            draw_sharpness,
            unit="sharpness Tr ∇²L",
        ),
        Claim(
            "alignment",
            "At rest the layers are aligned, W Σ_x Wᵀ/Tr Σ_x = Uᵀ Σ_ε U/Tr Σ_ε; after gradient descent they are not.",
            alignment,
            Tolerance("fluctuations at learning rate 0.04", absolute=0.25, relation="<="),
            draw_within(-0.05, 1.05, 1.0, "gradient descent"),
            unit="difference after SGD / after GD",
        ),
        Claim(
            "isotropic",
            "With isotropic data ‖U‖²/‖W‖² = d_y/d_x: layers have equal norm only if as many go in as come out.",
            norm_ratio,
            Tolerance("finite learning rate 0.02", relative=0.03),
            draw_within(0.0, 1.05, 1.0, "equal norms"),
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
    losses: Tensor = (weights @ x - y).square().sum((1, 2))
    return losses


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

        def gradients(p: dict[str, Tensor], losses: Losses = losses) -> list[dict[str, Tensor]]:
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

    def closure() -> float:
        solver.zero_grad()
        value = ((u @ torch.linalg.inv(change).T).square().sum() + (change.T @ w).square().sum()) / len(u)
        value.backward()
        return float(value.detach())

    solver.step(closure)
    return closure()
