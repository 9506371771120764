"""The part of `gaugefix.studies.minibatch_noise` that trains a network on digits: its scatter at rest."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.measure import sgd_noise_report
from gaugefix.studies.framework import Evidence, Setting
from gaugefix.task import Task

SHAPES = {"0.weight": (16, 64), "0.bias": (16,), "2.weight": (10, 16), "2.bias": (10,)}
LR, BATCH, DECAY, SAMPLES, FLIPPED = 0.2, 16, 0.02, 1000, 0.3
WARM_UP, STEPS, EVERY = 4000, 12_000, 5
DIRECTIONS = (0, 2, 5, 10, 16, 24)  # by curvature, from the largest


def _data(seed: int) -> tuple[Tensor, Tensor]:
    """Centred digits, three in ten labels drawn at random: the loss stays away from zero."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    picked = rng.permutation(len(x))[:SAMPLES]
    x, y = x[picked] / 16, y[picked]
    flipped = rng.random(SAMPLES) < FLIPPED
    y[flipped] = rng.integers(0, 10, int(flipped.sum()))
    return torch.tensor(x - x.mean(0)), torch.tensor(y)


@cache
def _run(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Curvatures, variances predicted and measured ``(3, seeds, k)``; both sides of the identity ``(2, seeds, 4)``."""
    data = [_data(seed) for seed in setting.seeds]
    x, y = torch.stack([d[0] for d in data]), torch.stack([d[1] for d in data])
    generators = [torch.Generator().manual_seed(s) for s in setting.seeds]
    params = {
        k: torch.stack([torch.randn(*shape, generator=g, dtype=torch.float64) for g in generators]) * 0.3
        for k, shape in SHAPES.items()
    }
    rows, steps = torch.arange(len(data))[:, None], setting.choose(STEPS, 10 * STEPS)
    targets = nn.functional.one_hot(y, 10).double()
    sides, kept = torch.zeros(2, len(data), len(SHAPES), dtype=torch.float64), []
    for step in range(WARM_UP + steps):  # the networks of all seeds are one batch
        picked = torch.stack([torch.randint(SAMPLES, (BATCH,), generator=g) for g in generators])
        inputs = x[rows, picked]
        hidden = torch.baddbmm(params["0.bias"][:, None], inputs, params["0.weight"].mT).tanh()
        scores = torch.baddbmm(params["2.bias"][:, None], hidden, params["2.weight"].mT)
        error = (scores.softmax(-1) - targets[rows, picked]) / BATCH
        back = (error @ params["2.weight"]) * (1 - hidden * hidden)
        found = (back.mT @ inputs, back.sum(1), error.mT @ hidden, error.sum(1))
        gradients = {k: g + DECAY * params[k] for k, g in zip(SHAPES, found, strict=True)}
        if step >= WARM_UP:  # every step: the difference of both sides telescopes to the change of the norms
            work = torch.stack([(params[k] * g).flatten(1).sum(1) for k, g in gradients.items()], 1)
            heat = torch.stack([(LR / 2 * g * g).flatten(1).sum(1) for g in gradients.values()], 1)
            sides += torch.stack([work, heat])
        if step >= WARM_UP and step % EVERY == 0:
            kept.append(torch.cat([p.flatten(1) for p in params.values()], 1))
        params = {k: p - LR * gradients[k] for k, p in params.items()}
    iterates = torch.stack(kept, 1)  # (seeds, times, P)
    scatter = np.array([_scatter(*data[i], iterates[i]) for i in range(len(data))]).transpose(1, 0, 2)
    return scatter, sides.numpy()


def _scatter(x: Tensor, y: Tensor, iterates: Tensor) -> np.ndarray:
    """Curvatures, variances predicted at the polished mean, and measured, ``(3, directions)``."""
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    torch.nn.utils.vector_to_parameters(iterates.mean(0), model.parameters())

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    task = Task(model, loss, lambda: [(x, y)], lr=LR, weight_decay=DECAY, batch_size=BATCH, name="noisy digits")
    report, picked = sgd_noise_report(task, k=max(DIRECTIONS) + 1, settle_steps=400), list(DIRECTIONS)
    measured = (iterates @ torch.tensor(report.eigenvectors[:, picked])).var(0).numpy()
    return np.stack([report.curvatures[picked], report.variances[picked], measured])


def network_variances(setting: Setting) -> Evidence:
    """Along eigenvectors of the Hessian, each seed its own network."""
    curvatures, predicted, measured = _run(setting)[0]
    return Evidence(predicted, measured, tuple(f"direction {i + 1}" for i in DIRECTIONS), {"x": curvatures.mean(0)})


def network_identity(setting: Setting) -> Evidence:
    """Parameter by parameter."""
    work, heat = _run(setting)[1]
    return Evidence(np.ones(len(SHAPES)), work / heat, tuple(SHAPES))
