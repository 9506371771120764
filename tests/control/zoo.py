"""The zoo at generic float64 parameters, for tests of transforms that keep the function."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests.cases import CASES, Case
from torch import Tensor, nn

from gaugefix.control.state import write_state
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.verify import random_parameters

_TWINS = ("-time", "-written", "mlp-silu", "encoder-pre-gelu", "encoder-post-relu", "log-softmax", "gpt2-deep")

#: attention written eighteen ways is one architecture: three of them are enough here
_SOME = [c for c in CASES if not (c.name.startswith("attention-") and c.name.count("-") >= 2)] + [
    c
    for c in CASES
    if c.name in {"attention-chunk-matmul-bias", "attention-select-sdpa", "attention-unbind-einsum-bias"}
]


def _is_twin(case: Case) -> bool:
    return case.name.endswith("-nobias") or any(part in case.name for part in _TWINS)


#: for parametrize: architectures that differ from another one in what these transforms do not look at are slow tests
SELECTED = [c for c in _SOME if not _is_twin(c)]
ZOO = [pytest.param(c, id=c.name, marks=pytest.mark.slow if _is_twin(c) else ()) for c in _SOME]


@functools.cache
def zoo_symmetries(name: str) -> Symmetries:
    """What the search finds in a case, searched once."""
    model, args = zoo_model(next(c for c in CASES if c.name == name))
    return find_symmetries(model, args, verify=False)


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
