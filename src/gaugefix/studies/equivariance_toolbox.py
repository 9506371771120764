"""A change of the weights with a known effect on the output gives identities for gradient, Hessian and training.

Let T_sθ change the weights along ξ(θ) and the output along η(f). Then ∇L·ξ = E⟨ℓ', η(f)⟩, and differentiating that,
Hξ = ∇E⟨ℓ', η(f)⟩ − (Dξ)ᵀ∇L. A symmetry (η = 0) so gives flat directions, a lower bound on the sharpness
‖H‖ ≥ ‖(Dξ)ᵀ∇L‖/‖ξ‖ for the cost of a gradient, and a charge that one step of gradient descent moves by lr²∇LᵀA∇L.
Homogeneity (η = kf) says where a network that has fitted its data is going: with q the mean margin of the samples that
still count, the gradient becomes an eigenvector of the Hessian. Whether of the largest eigenvalue depends on the data.

The study checks this in float64 on small networks: to rounding where it is an identity. Weight decay is PyTorch's.

Source: Yongyi Yang, Liu Ziyin, "An Equivariance Toolbox for Learning Dynamics", arXiv 2512.21447. Its notation is not
followed; the identities are derived here.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.measure.curvature import HessianOperator
from gaugefix.measure.equivariance import predicted_products
from gaugefix.measure.extremes import hessian_extremes
from gaugefix.measure.identities import sharpness_lower_bound
from gaugefix.studies.figures import MEASURED, PREDICTED, draw_identity
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance, labels
from gaugefix.studies.late_phase import LOSSES, dense_hessian, late_phase
from gaugefix.studies.registry import study
from gaugefix.studies.toolbox_networks import HIDDEN, as_task, cases, data, network, square
from gaugefix.symmetry import find_symmetries
from gaugefix.theory.balance import predict_charge_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LR, STEPS, DECAYS = 0.05, 200, (0.0, 0.05)  # of gradient descent; λ
BOUND_STEPS = (0, 10, 30, 100)
ROUNDING = Tolerance("rounding of float64", absolute=1e-9, relative=1e-9)


@study("2512.21447")
def equivariance_toolbox() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "gradient",
            "The gradient along a generator is what the change of the output alone costs, E⟨ℓ', η(f)⟩.",
            lambda setting: _sides(setting.seeds)[0],
            ROUNDING,
            draw_identity,
            unit="∇L·ξ",
        ),
        Claim(
            "hessian",
            "The Hessian along a generator is the gradient of that, minus (Dξ)ᵀ∇L.",
            lambda setting: _sides(setting.seeds)[1],
            ROUNDING,
            draw_identity,
            unit="v·Hξ for a random v",
        ),
        Claim(
            "sharpness",
            "The largest curvature is at least ‖(Dξ)ᵀ∇L‖/‖ξ‖, which costs one gradient.",
            sharpness,
            Tolerance("an inequality; the sharpness is known to 1e-6", relative=1e-6, relation="<="),
            draw_sharpness,
            unit="bound / sharpness",
        ),
        Claim(
            "flat",
            "At a minimum as many eigenvalues vanish as the symmetries have directions.",
            flat_counts,
            Tolerance("an inequality between integers", relation=">="),
            unit="eigenvalues that are zero",
        ),
        Claim(
            "discrete",
            "For a discrete symmetry g the Hessian at gθ is g⁻ᵀ H g⁻¹.",
            discrete,
            ROUNDING,
            draw_identity,
            unit="v·H(gθ)w for random v, w",
        ),
        Claim(
            "charge",
            "One step of gradient descent moves the charge of a unit by lr²(‖g_u‖² − ‖g_w‖²), exactly.",
            charges,
            Tolerance("rounding of float64 over 200 steps", absolute=1e-10),
            draw_identity,
            unit="‖u‖² − ‖w‖² of a unit",
        ),
        Claim(
            "late-phase",
            "Late under an exponential loss the curvature along the gradient tends to (kq − k + 1)‖∇L‖/‖θ‖.",
            lambda setting: _late(setting, 0),
            Tolerance("margins become equal as slowly as the loss falls in its logarithm", relative=0.04),
            draw_late,
            unit="curvature / predicted",
        ),
        Claim(
            "eigenvector",
            "There the gradient is an eigenvector of the Hessian.",
            lambda setting: _late(setting, 1),
            Tolerance("margins are not quite equal", absolute=1e-3),
            draw_late,
            unit="cosine of H∇L and ∇L",
        ),
    )


# The identities


@cache
def _sides(seeds: tuple[int, ...]) -> tuple[Evidence, Evidence]:
    """Both identities; the second along one random direction, which sees every entry of the vector."""
    values = np.empty((2, 2, len(seeds), len(cases(0))))
    for row, seed in enumerate(seeds):
        for column, (model, generator, loss) in enumerate(cases(seed).values()):
            task = as_task(model, data(seed, 2), loss)
            h = HessianOperator(task)
            xi, v = generator.at(h.params), _random_like(h.params, seed)
            slope, product = predicted_products(task, generator)
            values[0, :, row, column] = slope, _dot(h.gradient(), xi)
            values[1, :, row, column] = _dot(product, v), _dot(h @ xi, v)
    first, second = (Evidence(v[0], v[1], tuple(cases(0))) for v in values)
    return first, second


def _random_like(params: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 100)
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[k] * x).sum()) for k, x in b.items() if k in a)


# A ReLU network under gradient descent


def _descend(model: nn.Module, samples: tuple[Tensor, Tensor], steps: int, decay: float = 0.0) -> None:
    sgd = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=decay)
    for _ in range(steps):
        sgd.zero_grad()
        square(model, samples).mean().backward()
        sgd.step()


def sharpness(setting: Setting) -> Evidence:
    """Along a run, the best generator of those that were found."""
    found = np.empty((2, len(setting.seeds), len(BOUND_STEPS)))
    for row, seed in enumerate(setting.seeds):
        model, samples = network(seed, nn.ReLU, 1), data(seed, 1)
        symmetries = find_symmetries(model, (samples[0],))
        done = 0
        for column, step in enumerate(BOUND_STEPS):
            _descend(model, samples, step - done)
            h, done = HessianOperator(as_task(model, samples)), step
            found[0, row, column] = sharpness_lower_bound(h, symmetries).value
            found[1, row, column] = abs(hessian_extremes(as_task(model, samples), which="LM").eigenvalues[0])
    curves = {"bound": found[0], "sharpness": found[1]}
    return Evidence(np.ones(len(BOUND_STEPS)), found[0] / found[1], labels("step", BOUND_STEPS), curves)


def draw_sharpness(axes: Axes, result: Comparison) -> None:
    """Sharpness and its bound along the runs."""
    steps = np.array(BOUND_STEPS) + 1
    axes.plot(steps, result.curves["sharpness"].T, "o-", ms=4.5, lw=0.8, color=MEASURED)
    axes.plot(steps, result.curves["bound"].T, "-", lw=1.2, color=PREDICTED)
    axes.plot([], [], "o-", ms=4.5, color=MEASURED, label="sharpness, each seed")
    axes.plot([], [], color=PREDICTED, label="lower bound from one gradient")
    axes.set(xlabel="step + 1", ylabel="largest |eigenvalue|", xscale="log", yscale="log")
    axes.legend()


def charges(setting: Setting) -> Evidence:
    """The first three units after 200 steps, without and with weight decay."""
    units, shape = range(3), (2, len(setting.seeds), len(DECAYS) * 3)
    values = np.empty(shape)
    for row, seed in enumerate(setting.seeds):
        for column, decay in enumerate(DECAYS):
            model, samples = network(seed, nn.ReLU, 1), data(seed, 1)
            w, u = model.parameters()
            predicted = _charge(w, u)
            for _ in range(STEPS):
                g_w, g_u = torch.autograd.grad(square(model, samples).mean(), (w, u))
                predicted = predict_charge_step(predicted, _charge(g_w, g_u), lr=LR, weight_decay=decay)
                _descend(model, samples, 1, decay)
            values[:, row, 3 * column : 3 * column + 3] = predicted[:3], _charge(w, u)[:3]
    return Evidence(values[0], values[1], tuple(f"unit {i}, λ = {d:g}" for d in DECAYS for i in units))


def _charge(w: Tensor, u: Tensor) -> np.ndarray:
    difference: np.ndarray = (u.square().sum(0) - w.square().sum(1)).detach().numpy()
    return difference


def discrete(setting: Setting) -> Evidence:
    """Permutations, rescalings and sign flips of hidden units, θ ↦ gθ with a matrix on each side."""
    order = torch.eye(HIDDEN, dtype=torch.float64).roll(1, 0)
    rates = torch.diag(torch.linspace(0.5, 2, HIDDEN, dtype=torch.float64))
    flips = torch.diag(torch.tensor([-1.0] + [1.0] * (HIDDEN - 1), dtype=torch.float64))
    kinds: dict[str, tuple[type[nn.Module], Tensor]] = {
        "permutation": (nn.Tanh, order), "sign flip": (nn.Tanh, flips), "rescaling": (nn.ReLU, rates),
    }  # fmt: skip
    values = np.empty((2, len(setting.seeds), len(kinds)))
    for row, seed in enumerate(setting.seeds):
        for column, (activation, g) in enumerate(kinds.values()):
            model, samples = network(seed, activation, 2), data(seed, 2)
            v, w = (_random_like(dict(model.named_parameters()), seed + i) for i in (0, 1))
            back = torch.linalg.inv(g)
            here = HessianOperator(as_task(model, samples))
            values[0, row, column] = _dot(here @ _act(back, w), _act(back, v))
            model.load_state_dict(_act(g, model.state_dict()))
            values[1, row, column] = _dot(HessianOperator(as_task(model, samples)) @ w, v)
    return Evidence(values[0], values[1], tuple(kinds))


def _act(g: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"0.weight": g @ params["0.weight"], "2.weight": params["2.weight"] @ torch.linalg.inv(g)}


def flat_counts(setting: Setting) -> Evidence:
    """A linear network, which has the general linear group of its hidden layer, at a minimum."""
    predicted, measured = np.empty((2, len(setting.seeds), 1))
    for row, seed in enumerate(setting.seeds):
        model, (x, y) = network(seed, nn.Identity, 2), data(seed, 2)
        u = list(model.parameters())[1].detach()
        w = torch.linalg.lstsq(u, torch.linalg.lstsq(x, y).solution.mT).solution  # fits as well as any linear map
        h = dense_hessian(partial(_linear_loss, x, y), [u, w])
        sizes = torch.linalg.eigvalsh(h).abs()
        predicted[row] = find_symmetries(model, (x,)).flat_dim
        measured[row] = int((sizes < 1e-9 * sizes.max()).sum())
    return Evidence(predicted, measured, ("linear network",))


def _linear_loss(x: Tensor, y: Tensor, weights: list[Tensor]) -> Tensor:
    return (x @ (weights[0] @ weights[1]).mT - y).square().sum(1).mean()


# Late under an exponential loss


def _late(setting: Setting, which: int) -> Evidence:
    found = late_phase(setting.seeds)[which]
    cells = labels("loss", LOSSES[1:])  # the figure shows the first one too
    return Evidence(np.ones(len(cells)), found[:, 1:], cells, {"falling": found})


def draw_late(axes: Axes, result: Comparison) -> None:
    """While the loss falls."""
    axes.axhline(1, color=PREDICTED, lw=1.2, label="predicted in the end")
    axes.plot(LOSSES, result.curves["falling"].T, "o-", lw=0.8, ms=4.5, color=MEASURED)
    axes.plot([], [], "o-", color=MEASURED, label="measured, each seed")
    axes.set(xlabel="loss, falling", ylabel=result.unit, xscale="log")
    axes.invert_xaxis()
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend()
