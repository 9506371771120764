"""Noise alone brings independently trained networks to one and the same representation, and six things prevent it.

A deep linear network between two fixed maps, f(x) = M_O W_D ⋯ W_1 M_I Z x, can fit its target in every basis of every
hidden layer. Gradient noise adds the entropy S = Σ_k Tr[A_kᵀΣ_εA_k]·Tr[B_kΣ_xB_kᵀ] to what SGD minimises, A_k and B_k
the maps behind and before layer k, and S singles out one point up to rotations. There every hidden layer of every such
network has the kernel of √S R Σ_x^(−1/2) x, with √Σ_ε V √Σ_x = LSR: whatever its width, its depth, its fixed maps,
and the view Z of the inputs that it was given.

The study minimises loss and entropy directly, then runs SGD on two networks of different depth and width with
different fixed maps and views, and takes the conditions of the theorem away one at a time. Two layers agree if their
kernels are proportional: alignment 1. The loss of SGD is ½‖f − y‖², that of the minima ‖f − y‖² and, where there is
weight decay, (λ/2)‖W‖² with PyTorch's λ; inputs are Gaussian with covariance 1.

Source: Liu Ziyin, Isaac Chuang, "Proof of a perfect Platonic representation hypothesis", arXiv 2507.01098.
"""

from __future__ import annotations

from functools import cache, reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaugefix.measure.platonic import PlatonicReport, platonic_report
from gaugefix.studies.figures import NEUTRAL, PREDICTED, draw_identity, points, rings
from gaugefix.studies.framework import Claim, Comparison, Evidence, Setting, Tolerance
from gaugefix.studies.registry import study
from gaugefix.theory.embedded_linear_network import EmbeddedSolution, edln_solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, WIDTHS = 3, ((4,), (6, 6))  # of inputs and labels; hidden layers of network A and of network B
TARGET = np.array([[1.2, 0.3, 0.0], [0.2, -0.9, 0.4], [0.0, 0.5, 0.7]])
LABEL_NOISE = np.array([1.0, 0.5, 0.3])  # standard deviations
ENDS = (1.6, 0.6, 0.7)  # singular values of view, first and last map go from 1 to these
ENTROPY = (1e-1, 1e-2, 1e-3, 1e-4)  # weight of S, lowered in stages
LR, STEPS, BATCH, START = 0.02, 60_000, 2, 0.45
STRETCH, DECAY = (3.0, 1.0, 0.3), 0.01  # of the labels of network B; λ, where these are asked about
CONDITIONS = ("other views", "labels turned too", "no noise")  # of network B or of the run


@study("2507.01098")
def perfect_platonic() -> tuple[Claim, ...]:
    """The claims, in the order of the argument."""
    return (
        Claim(
            "entropy",
            "The least noise that a minimum of the loss can have is D s^(2(D−1)/D) (t_x t_ε)^(1/D).",
            lambda setting: _minima(setting.seeds)[0],
            Tolerance("the weight of the entropy is 1e-4, not zero", relative=0.01),
            draw_identity,
            unit="entropy S",
        ),
        Claim(
            "closed-form",
            "At that minimum every hidden layer has the kernel of √S R Σ_x^(−1/2) x.",
            lambda setting: _minima(setting.seeds)[1],
            Tolerance("the weight of the entropy is 1e-4, and L-BFGS stops at a finite time", absolute=2e-3),
            draw_alignment,
            unit="alignment with the closed form",
        ),
        Claim(
            "sgd",
            "SGD gives networks of other depth, width and view the same representation in every layer.",
            lambda setting: _smallest(setting, CONDITIONS[:2], 1.0),
            Tolerance("finite learning rate and finite time", absolute=0.04),
            draw_alignment,
            unit="smallest alignment of two layers",
        ),
        Claim(
            "sgd-kernel",
            "It is the one of the closed form.",
            sgd_kernels,
            Tolerance("finite learning rate and finite time", absolute=0.04),
            draw_alignment,
            unit="alignment with the closed form",
        ),
        Claim(
            "stretched-labels",
            "Labels stretched unequally for one network give it another kernel, that of its own closed form.",
            stretched,
            Tolerance("the weight of the entropy is 1e-4, and L-BFGS stops at a finite time", absolute=2e-3),
            draw_alignment,
            unit="smallest alignment of two layers",
        ),
        Claim(
            "breakers",
            "Weight decay or the absence of noise prevents it.",
            breakers,
            Tolerance("inequalities: clearly below the same runs with noise and without decay", relation="<="),
            draw_alignment,
            unit="smallest alignment of two layers",
        ),
    )


# Two networks: fixed maps with singular values of one order, weights at random


def _maps(seed: int, net: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """View, first and last map."""
    rng = np.random.default_rng((seed, net))
    turns = np.linalg.qr(rng.standard_normal((6, SIZE, SIZE)))[0]
    view, first, last = (turns[2 * k] * np.linspace(1, end, SIZE) @ turns[2 * k + 1] for k, end in enumerate(ENDS))
    return view, first, last


def _weights(seed: int, net: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, net, 1))
    sizes = SIZE, *WIDTHS[net], SIZE
    return [START * rng.standard_normal((b, a)) for a, b in pairwise(sizes)]


def _solution(seed: int, net: int, labels: np.ndarray | None = None) -> EmbeddedSolution:
    view, first, last = _maps(seed, net)
    mix = np.eye(SIZE) if labels is None else labels
    noise = mix @ np.diag(LABEL_NOISE**2) @ mix.T
    return edln_solution(
        mix @ TARGET, np.eye(SIZE), noise, widths=WIDTHS[net], before=first, after=last, view=view, seed=seed
    )


def _report(a: list[np.ndarray], b: list[np.ndarray], reference: np.ndarray) -> PlatonicReport:
    """Hidden layers as maps from x; Σ_x = 1, so that the unit vectors are all the samples one needs."""
    to_tensors = [[torch.from_numpy(layer.T.copy()) for layer in layers] for layers in (a, b)]
    return platonic_report(*to_tensors, reference=torch.from_numpy(reference.T.copy()))


# Loss and entropy minimised


@cache
def _minima(seeds: tuple[int, ...]) -> tuple[Evidence, Evidence]:
    """Entropy of both networks, and the alignment of their hidden layers with the closed form."""
    predicted, entropies, aligned, cells = [], [], [], []
    for net, name in enumerate("AB"):
        layers, fluctuation = _minimise(seeds, net)
        solutions = [_solution(seed, net) for seed in seeds]
        predicted.append([s.fluctuation for s in solutions])
        entropies.append(fluctuation)
        for k in range(len(WIDTHS[net])):
            cells.append(f"{name}, layer {k + 1}")
            pairs = zip(layers[k], solutions, strict=True)
            aligned.append([_report([layer], [layer], s.layers[0]).reference_a[0] for layer, s in pairs])
    names = tuple(f"network {name}, {len(w) + 1} layers" for name, w in zip("AB", WIDTHS, strict=True))
    kernel = Evidence(np.ones(len(cells)), np.array(aligned).T, tuple(cells))
    return Evidence(np.array(predicted).T, np.array(entropies).T, names), kernel


def stretched(setting: Setting) -> Evidence:
    """The minima of both networks, each for its own labels, against the alignment of the two closed forms."""
    mix = np.diag(STRETCH)
    measured = _between(_minimise(setting.seeds, 0)[0], _minimise(setting.seeds, 1, stretch=True)[0])
    pairs = [(_solution(s, 0), _solution(s, 1, mix)) for s in setting.seeds]
    predicted = [[_report([a.layers[0]], [b.layers[0]], a.layers[0]).smallest] for a, b in pairs]
    return Evidence(np.array(predicted), measured[:, None], ("labels × 3, 1, 0.3",))


def _between(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """Smallest alignment of a hidden layer of A with one of B, ``(seeds,)``."""
    return np.array([_report([h[i] for h in a], [h[i] for h in b], a[0][i]).smallest for i in range(len(a[0]))])


@cache
def _minimise(
    seeds: tuple[int, ...], net: int, *, stretch: bool = False, decay: float = 0.0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Hidden maps ``(seeds, width, d)`` and entropy ``(seeds,)`` after L-BFGS on all seeds at once."""
    view, first, last = (torch.from_numpy(np.stack(m)) for m in zip(*(_maps(s, net) for s in seeds), strict=True))
    start = zip(*(_weights(s, net) for s in seeds), strict=True)
    weights = [torch.from_numpy(np.stack(w)).requires_grad_() for w in start]
    mix = torch.diag(torch.tensor(STRETCH if stretch else (1.0,) * SIZE, dtype=torch.float64))
    noise, target = mix @ torch.diag(torch.from_numpy(LABEL_NOISE**2)) @ mix.T, mix @ torch.from_numpy(TARGET)

    def parts() -> tuple[list[Tensor], Tensor, Tensor]:
        before = [first @ view]
        for w in weights[:-1]:
            before.append(w @ before[-1])
        after = [last]
        for w in weights[:0:-1]:
            after.append(after[-1] @ w)
        pairs = zip(before, reversed(after), strict=True)
        entropy = sum((a * (noise @ a)).sum((1, 2)) * b.square().sum((1, 2)) for b, a in pairs)
        error = last @ weights[-1] @ before[-1] - target
        return before[1:], error.square().sum((1, 2)), torch.as_tensor(entropy)

    for strength in ENTROPY:
        solver = torch.optim.LBFGS(
            weights, max_iter=150, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-10
        )

        def closure(strength: float = strength, solver: torch.optim.LBFGS = solver) -> Tensor:
            solver.zero_grad()
            _, loss, entropy = parts()
            value = (loss + strength * entropy).sum() + decay / 2 * sum(w.square().sum() for w in weights)
            value.backward()
            return value

        solver.step(closure)
    with torch.no_grad():
        hidden, _, entropy = parts()
    return [h.numpy() for h in hidden], entropy.numpy()


# SGD, and what breaks it


def _labels(seed: int, net: int) -> np.ndarray:
    """What multiplies the labels under every condition, ``(conditions, d, d)``; nothing for network A."""
    mixes = np.stack([np.eye(SIZE)] * len(CONDITIONS))
    if net == 1:
        mixes[1] = 1.2 * np.linalg.qr(np.random.default_rng((seed, 7)).standard_normal((SIZE, SIZE)))[0]
    return mixes


def _train(seeds: tuple[int, ...], net: int, steps: int) -> list[np.ndarray]:
    """Hidden maps ``(conditions, seeds, width, d)`` of one network after training, all conditions and seeds at once."""
    view, first, last = (np.stack(m) for m in zip(*(_maps(s, net) for s in seeds), strict=True))
    enter = first @ view
    weights = [
        np.stack([w] * len(CONDITIONS)) for w in map(np.stack, zip(*(_weights(s, net) for s in seeds), strict=True))
    ]
    mixes = np.stack([_labels(s, net) for s in seeds], axis=1)
    target = mixes @ TARGET
    quiet = CONDITIONS.index("no noise")
    rngs = [np.random.default_rng((s, net, 2)) for s in seeds]
    for step in range(steps):
        if step % 1000 == 0:  # random numbers in pieces
            drawn = np.stack([r.standard_normal((1000, 2 * SIZE, BATCH)) for r in rngs], axis=1)
            inputs, noise = drawn[:, :, :SIZE], drawn[:, :, SIZE:] * LABEL_NOISE[:, None]
        x = inputs[step % 1000]
        hidden = [enter]
        for w in weights:
            hidden.append(w @ hidden[-1])
        error = last @ hidden.pop() - target
        back = (error @ x - mixes @ noise[step % 1000]) @ x.swapaxes(-1, -2) / BATCH
        back[quiet] = error[quiet]
        back = last.swapaxes(-1, -2) @ back
        for k in range(len(weights) - 1, -1, -1):
            gradient = back @ hidden[k].swapaxes(-1, -2)
            back = weights[k].swapaxes(-1, -2) @ back
            weights[k] = weights[k] - LR * gradient
    return [reduce(lambda h, w: w @ h, weights[: k + 1], enter) for k in range(len(weights) - 1)]


@cache
def _reports(seeds: tuple[int, ...], steps: int) -> list[list[PlatonicReport]]:
    """For every condition and seed."""
    a, b = (_train(seeds, net, steps) for net in (0, 1))
    return [
        [_report([h[c, i] for h in a], [h[c, i] for h in b], _solution(s, 0).layers[0]) for i, s in enumerate(seeds)]
        for c in range(len(CONDITIONS))
    ]


def _smallest(setting: Setting, conditions: tuple[str, ...], predicted: float) -> Evidence:
    """The smallest alignment of a hidden layer of A with one of B."""
    reports = _reports(setting.seeds, setting.choose(STEPS, 4 * STEPS))
    measured = np.array([[r.smallest for r in reports[CONDITIONS.index(name)]] for name in conditions]).T
    return Evidence(np.full(len(conditions), predicted), measured, conditions)


def breakers(setting: Setting) -> Evidence:
    """Weight decay beside the entropy at its minimum, 0.99999 without; gradient descent, 0.97 and more for SGD."""
    decayed = _between(*(_minimise(setting.seeds, net, decay=DECAY)[0] for net in (0, 1)))
    quiet = _smallest(setting, CONDITIONS[2:], 0.95)
    return Evidence(np.array([0.995, 0.95]), np.column_stack([decayed, quiet.measured]), ("weight decay", *quiet.cells))


def sgd_kernels(setting: Setting) -> Evidence:
    """Both networks, with other views."""
    reports = _reports(setting.seeds, setting.choose(STEPS, 4 * STEPS))[0]
    cells = tuple(f"{name}, layer {k + 1}" for name, w in zip("AB", WIDTHS, strict=True) for k in range(len(w)))
    measured = np.array([[*r.reference_a, *r.reference_b] for r in reports])
    return Evidence(np.ones(len(cells)), measured, cells)


def draw_alignment(axes: Axes, result: Comparison) -> None:
    """Alignment on the whole scale from nothing to perfect: rings where it is predicted, bars where it is bounded."""
    places = np.arange(len(result.cells))
    axes.axhline(1, color=NEUTRAL, lw=1, label="the same representation")
    if result.tolerance.relation == "=":
        rings(axes, places, result.predicted.T)
    else:
        axes.bar(places, result.predicted[0], width=0.5, color=PREDICTED, alpha=0.12, label="predicted: below")
    points(axes, places, result.measured.T)
    axes.set_xticks(places, result.cells)
    axes.set(xlim=(-0.6, len(places) - 0.4), ylim=(0, 1.08), ylabel=result.unit)
    axes.legend(loc="lower left")
