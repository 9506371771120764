"""Batched ensembles do what single runs do."""

from __future__ import annotations

import pytest
import torch

from gaugefix.errors import StudyError
from gaugefix.studies.ensembles import descend, map_members, polish


def quartic(p):
    """A double well in every coordinate, one loss for each member."""
    return (p["x"].square() - 1).square().sum(-1)


def test_an_ensemble_steps_as_torch_sgd_does():
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    decay = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    batched = descend(quartic, {"x": start}, lr=0.05, weight_decay=decay, steps=7)["x"]
    for s in range(2):
        for c in range(3):
            x = start[s, c].clone().requires_grad_()
            optimizer = torch.optim.SGD([x], lr=0.05, weight_decay=float(decay[c]))
            for _ in range(7):
                optimizer.zero_grad()
                quartic({"x": x}).backward()
                optimizer.step()
            assert torch.allclose(batched[s, c], x.detach(), rtol=0, atol=1e-14)
    assert not batched.requires_grad
    assert not start.requires_grad


def test_polish_finds_the_stationary_point_with_weight_decay():
    near = {"x": torch.tensor([0.9, -0.95], dtype=torch.float64)}
    found = polish(quartic, near, weight_decay=0.4)["x"]
    assert torch.allclose(found.abs(), torch.full((2,), 0.9**0.5, dtype=torch.float64))  # 4x² = 4 − λ


def test_polish_says_so_when_there_is_none():
    with pytest.raises(StudyError, match="still"):
        polish(lambda p: p["x"].exp().sum(), {"x": torch.zeros(1, dtype=torch.float64)})


def test_map_members_visits_each_once_in_its_place():
    members = {"x": torch.arange(6.0).reshape(2, 3, 1)}
    out = map_members(lambda m, i: {"x": m["x"] + 100 * i[0] + 10 * i[1]}, members, (2, 3))
    assert out["x"].shape == (2, 3, 1)
    assert out["x"].flatten().tolist() == [0, 11, 22, 103, 114, 125]
