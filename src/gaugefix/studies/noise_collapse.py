"""Collapse by gradient noise alone, the part of `gaugefix.studies.symmetry_constraint` that needs many chains."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from gaugefix.studies.framework import Evidence, Setting, labels
from gaugefix.theory.multiplicative_noise import exponent_root, gaussian_regression_exponent

NOISE_SLOPE = 0.12  # y = slope·x + ξ
NOISE_LRS = (0.5, 0.8, 0.95, 1.1, 1.3, 1.6)  # in units of the critical learning rate


def noise_exponents(setting: Setting) -> Evidence:
    """Follow the mean of log|uw| over many chains of SGD with batches of one, close to the saddle u = w = 0."""
    chains, steps = setting.choose(quick=4000, full=40_000), setting.choose(quick=3000, full=4000)
    threshold = exponent_root(partial(gaussian_regression_exponent, NOISE_SLOPE), 0.02, 0.4)
    lr = threshold * torch.tensor(NOISE_LRS, dtype=torch.float64)[:, None, None]
    generators = [torch.Generator().manual_seed(seed) for seed in setting.seeds]
    u = w = torch.full((len(NOISE_LRS), len(setting.seeds), chains), 1e-30, dtype=torch.float64)  # linear throughout
    for _ in range(steps):
        x, noise = torch.stack([torch.randn(2, chains, generator=g, dtype=u.dtype) for g in generators], dim=1)
        error = 2 * lr * x * (u * w * x - NOISE_SLOPE * x - noise)
        u, w = u - error * w, w - error * u
    growth = (u / 1e-30).abs().log() + (w / 1e-30).abs().log()
    measured = growth.mean(dim=-1).T.numpy() / (2 * steps)
    grid = np.linspace(0.2, 1.8, 33)
    predicted, line = (
        np.array([gaussian_regression_exponent(NOISE_SLOPE, r * threshold) for r in rates])
        for rates in (NOISE_LRS, grid)
    )
    curves = {"x": np.array(NOISE_LRS), "grid": grid, "line": line}
    return Evidence(predicted, measured, labels("lr/lr_c", NOISE_LRS), curves)
