"""The zoo at generic float64 parameters, for tests of transforms that keep the function."""

from __future__ import annotations

from typing import Any

import torch
from tests.cases import CASES, Case
from torch import Tensor, nn

from gaugefix.control.state import write_state
from gaugefix.symmetry.verify import random_parameters

#: attention written eighteen ways is one architecture: three of them are enough here
SELECTED = [c for c in CASES if not (c.name.startswith("attention-") and c.name.count("-") >= 2)] + [
    c
    for c in CASES
    if c.name in {"attention-chunk-matmul-bias", "attention-select-sdpa", "attention-unbind-einsum-bias"}
]


def zoo_model(case: Case, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """A module of the zoo with generic parameters and running statistics, and its arguments, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.make().double().eval()
    write_state(model, random_parameters(model, generator))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.randn(module.num_features, generator=generator, dtype=torch.float64)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator, dtype=torch.float64)
    args = tuple(a.double() if a.is_floating_point() else a for a in case.args)
    return model, args


def relative(new: Tensor, old: Tensor) -> float:
    """‖new − old‖/‖old‖."""
    return float((new - old).detach().norm() / old.detach().norm().clamp_min(1e-300))


def evaluate(model: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """The output without gradients."""
    with torch.no_grad():
        out: Tensor = model(*args)
    return out
