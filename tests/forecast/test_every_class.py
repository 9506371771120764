"""The forecast of classes that are not a layer between two Linear layers, and the numbers every class has."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.attention_models import SeparateAttention, seeded
from tests.cases import SwiGLU, numbers
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.forecast import forecast


def _task(model: nn.Module, x: torch.Tensor, **settings) -> Task:
    y = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)

    def loss(m, batch):
        return (m(batch[0]) - batch[1]).square().flatten(1).mean(1)

    options = {"lr": 0.1, "weight_decay": 0.01, "batch_size": len(x), **settings}
    return Task(model, loss, lambda: [(x, y)], **options)


def _forecast(task, **options):
    found = forecast(task, find_symmetries(task, verify=False), settle_steps=0, **options)
    return {c.name: c for c in found.classes}


def _train(task: Task, steps: int) -> Task:
    """Full-batch descent in place."""
    batch = task.first_batch()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=task.lr, weight_decay=task.weight_decay, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.model, batch).mean().backward()
        optimizer.step()
    task.model.zero_grad(set_to_none=True)
    return task


def _low_rank_problem() -> Task:
    """Regression on a target of rank 4 with singular values 1, .5, .2, .05 through two linear convolutions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(60, 6, generator=generator, dtype=torch.float64))[0] * 60**0.5  # E xxᵀ = 1
    u, v = (torch.linalg.qr(torch.randn(n, 4, generator=generator, dtype=torch.float64))[0] for n in (5, 6))
    y = x @ v @ torch.diag(torch.tensor([1.0, 0.5, 0.2, 0.05]).double()) @ u.T
    model = seeded(lambda: nn.Sequential(nn.Conv1d(6, 6, 1, bias=False), nn.Conv1d(6, 5, 1, bias=False)))

    def loss(m, batch):
        return (m(batch[0])[..., 0] - batch[1]).square().sum(1) / 2

    return Task(model, loss, lambda: [(x[..., None], y)], lr=0.1, weight_decay=0.1, batch_size=60)


@pytest.mark.parametrize(("decay", "rank"), [(0.1, 3), (0.3, 2), (0.7, 1)])
def test_rank_of_a_product_is_soft_thresholding(decay, rank) -> None:
    """With whitened inputs the singular values of the product are max(σ − λ, 0), those of G are min(σ, λ)."""
    task = _train(dataclasses.replace(_low_rank_problem(), weight_decay=decay), 500)
    found = _forecast(task)["0"]
    assert (found.rank, found.predicted_rank, found.survivors) == (rank, rank, rank)
    assert found.spectrum[:4] == pytest.approx(np.minimum([1, 0.5, 0.2, 0.05], decay), rel=1e-3)
    assert found.verdict == "saturated: more width cannot help"
    assert found.residual < 1e-3
    assert found.critical_weight_decay == pytest.approx(1.0, rel=1e-3)


def test_heads_have_spectra_of_their_own() -> None:
    found = _forecast(_task(seeded(SeparateAttention), numbers(20, 4, 6).double()))
    for name in ("q #2", "v"):
        c = found[name]
        assert c.method == "block"
        assert c.fiber_spectra.shape[0] == 2
        assert c.kappa == pytest.approx(c.fiber_spectra.max())
        assert c.drives.shape == (6,)
        assert c.kappa_residual < 1e-9
        assert c.kappa >= np.nanmax(c.drives) - 1e-12
        assert c.critical_weight_decay > 0
    assert "blocks" in found["q"].reason
    json.dumps([c.to_dict() for c in found.values()], allow_nan=False)


def test_a_dead_head_dimension_class_is_reborn_only_below_its_threshold() -> None:
    """All queries and keys at zero: training them alone revives them below κ and not above."""
    x = numbers(20, 4, 6).double()
    task = _task(seeded(SeparateAttention, bias=False), x)
    for m in (task.model.q, task.model.k):
        nn.init.zeros_(m.weight)
    kappa = _forecast(task)["q #2"].kappa
    for factor, verdict in ((0.8, "would be reborn"), (1.25, "dead stays dead")):
        here = dataclasses.replace(task, weight_decay=factor * kappa)
        found = _forecast(here)["q #2"]
        assert (found.verdict, found.alive) == (verdict, 0)
        model = seeded(SeparateAttention, bias=False)
        model.load_state_dict(task.model.state_dict())
        pair = [model.q.weight, model.k.weight]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in pair:
                p += 1e-4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        start, (batch,) = float(pair[0].detach().norm()), list(task.batches())
        lr = 0.5 / kappa
        for _ in range(60):
            slopes = torch.autograd.grad(task.loss(model, batch).mean(), pair)
            with torch.no_grad():
                for p, g in zip(pair, slopes, strict=True):
                    p -= lr * (g + here.weight_decay * p)
        assert (float(pair[0].detach().norm()) > start) == (factor < 1)


def test_normalised_channels_report_their_effective_learning_rate() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    )
    found = _forecast(_task(model, numbers(20, 2, 5).double(), lr=0.2, weight_decay=0.05))["0"]
    assert found.verdict == "not applicable"
    assert "gauge" in found.reason
    rows = torch.cat([model[0].weight.flatten(1), model[0].bias[:, None]], dim=1)
    assert found.effective_lr == pytest.approx(float((0.2 / rows.detach().square().sum(1)).median()))
    assert found.equilibrium_rotation == pytest.approx((2 * 0.2 * 0.05) ** 0.5)


def test_gated_units_cannot_be_reborn() -> None:
    task = _train(_task(seeded(SwiGLU), numbers(30, 4).double(), weight_decay=0.02, lr=0.2), 1500)
    live = _forecast(task)["gate"]
    assert live.kappa == live.critical_weight_decay == 0.0
    assert live.verdict in {"small units cannot grow", "not stationary"}
    assert "three factors" in live.reason
    for p in task.model.parameters():
        nn.init.zeros_(p)
    dead = _forecast(task)["gate"]
    assert dead.verdict == "dead stays dead"


def test_what_is_not_decayed_is_said(make_task, mlp, mlp_units, blobs) -> None:
    model = mlp((5, 8, 3), "relu")
    task, units = make_task(model, blobs), mlp_units(model, "relu")
    found = forecast(task, units, undecayed=["0.bias"], settle_steps=0).classes[0]
    assert found.verdict == "not applicable"
    assert "'0.bias' is not decayed" in found.reason
    assert forecast(task, units, undecayed=["2.bias"], settle_steps=0).classes[0].verdict != "not applicable"


def test_without_weight_decay_kappa_is_still_measured() -> None:
    found = _forecast(_task(seeded(SeparateAttention), numbers(20, 4, 6).double(), weight_decay=0.0))["v"]
    assert found.verdict == "not applicable"
    assert found.kappa > 0
    assert np.isnan(found.headroom)


def test_other_optimisers_cost_nothing() -> None:
    found = _forecast(_task(seeded(SeparateAttention), numbers(20, 4, 6).double(), optimizer="adamw"))["v"]
    assert (found.verdict, found.method) == ("not applicable", "")
    assert "AdamW" in found.reason


def test_relearning_time_and_binding_plane(make_task, mlp, mlp_units, blobs) -> None:
    model = mlp((5, 8, 3), "tanh")
    task = make_task(model, blobs, lr=0.05, weight_decay=0.01)
    found = forecast(task, mlp_units(model, "tanh"), settle_steps=0).classes[0]
    assert found.relearning_steps == pytest.approx(1 / (0.05 * (found.kappa - 0.01)))
    assert found.binding == f"0: {int(np.nanargmin(found.drives))} = 0"
    assert found.survivors == found.alive - len(found.dying)


def test_a_diverged_run_is_said(make_task, mlp, mlp_units, blobs) -> None:
    model = mlp((5, 8, 3), "relu")
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(MeasurementError, match="diverged"):
        forecast(make_task(model, blobs), mlp_units(model, "relu"), settle_steps=0)
