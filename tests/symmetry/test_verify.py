"""Verification: points at which nothing can be judged are drawn again, real errors stay errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.verify import Degenerate, laboratory_copy, verify_symmetries

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def narrow_batch_norm() -> nn.Sequential:
    """With three samples a unit is often dead on all of them, and a second layer makes constants of dead units."""
    return nn.Sequential(
        nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3), nn.BatchNorm1d(3), nn.LeakyReLU(), nn.Linear(3, 2)
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_dead_batch_rejects_nothing(seed: int) -> None:
    found = find_symmetries(narrow_batch_norm(), (X,), verify=True, seed=seed)
    assert not found.rejected


@pytest.mark.parametrize("seed", range(4))
def test_a_false_claim_is_still_rejected(seed: int) -> None:
    """The rescalings of ReLU do not hold with tanh behind the norm."""
    model = narrow_batch_norm()
    found = replace(find_symmetries(model, (X,), verify=False), rejected=())
    model[4] = nn.Tanh()
    assert verify_symmetries(found, model, (X,), {}, seed=seed).rejected


def test_equal_numbers_in_a_norm_are_noticed() -> None:
    lab = laboratory_copy(nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)))
    noise = Degenerate(lab)

    def met(x: Tensor) -> bool:
        return noise.during(lambda: [lab(x)])[1]

    x = X.double()
    assert not met(x)
    x[:, 2] = 0.3
    assert met(x)
