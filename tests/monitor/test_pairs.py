"""Distances, duplicates and ranks on the device, against mirrors and the report of collapse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.monitor.models import Attention, found, mlp, seeded
from torch import Tensor, nn

from gaugefix.measure import collapse_report, live_units
from gaugefix.monitor import pairs as module
from gaugefix.monitor.pairs import Pairs, pairs
from gaugefix.monitor.ranks import adam_state, product_ranks, row_rank
from gaugefix.monitor.watched import watch
from gaugefix.symmetry import Units


def compare(model: nn.Module, tolerance: float = 0.01) -> tuple[Pairs, Units, dict[str, Tensor]]:
    params = {n: p.detach() for n, p in model.named_parameters()}
    (w,) = watch(found(model, 5), params).classes
    live = live_units(params, w.units, tolerance)
    squares = {role: w.units.rows(params, role).square().sum(1).numpy() for role in w.roles}  # type: ignore[arg-type]
    return pairs(w, params, squares, live, tolerance), w.units, params


def mirror_distance(units: Units, params: dict[str, Tensor], i: int, j: int) -> float:
    """Mirror of a swap, after both units were put into the balanced gauge where scale is one, over both signs."""
    rows = {role: units.rows(params, role).double().numpy() for role in ("write", "read")}  # type: ignore[arg-type]
    if units.homogeneous:
        a, b = (np.linalg.norm(rows[r], axis=1) for r in ("write", "read"))
        scale = np.sqrt(b / a)[:, None]
        rows = {"write": rows["write"] * scale, "read": rows["read"] / scale}
    both = np.hstack([rows["write"], rows["read"]])
    signs = (1, -1) if units.activation == "tanh" else (1,)
    gaps = [np.linalg.norm(both[i] - s * both[j]) / np.sqrt(2) for s in signs]
    return float(min(gaps) / np.sqrt((both[[i, j]] ** 2).sum()))


@pytest.mark.parametrize("chunk", [2**24, 40], ids=["whole", "in pieces"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_distances_are_those_of_mirrors(
    activation: Callable[[], nn.Module], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", chunk)
    model = seeded(lambda: mlp((5, 12, 3), activation)).double()
    got, units, params = compare(model)
    for i in range(12):
        wanted = [mirror_distance(units, params, i, j) if j != i else np.inf for j in range(12)]
        assert got.partner[i] == int(np.argmin(wanted))
        assert got.distance[i] == pytest.approx(min(wanted), rel=1e-5)
    rows = units.rows(params, "write").double()
    rows = rows / rows.norm(dim=1, keepdim=True) if units.homogeneous else rows
    gram = rows @ rows.T
    assert got.participation == pytest.approx(float(gram.trace() ** 2 / gram.square().sum()), rel=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_planted_duplicates_and_dead_units_count_as_in_the_report(activation: Callable[[], nn.Module]) -> None:
    model = seeded(lambda: mlp((5, 12, 3), activation)).double()
    with torch.no_grad():
        first, last = model[0], model[2]  # type: ignore[index]
        for i, j, c in ((1, 0, 1.0), (2, 0, 1.0), (7, 6, 3.0 if activation is nn.ReLU else 1.0)):
            first.weight[i], first.bias[i] = c * first.weight[j], c * first.bias[j]
        first.weight[9], first.bias[9], last.weight[:, 9] = 0, 0, 0
        if activation is nn.Tanh:
            first.weight[11], first.bias[11], last.weight[:, 11] = (
                -first.weight[10],
                -first.bias[10],
                -last.weight[:, 10],
            )
    got, units, params = compare(model)
    report = collapse_report(params, [units]).units[0]
    assert got.distinct == report.distinct == (7 if activation is nn.Tanh else 8)
    assert got.partner[9] == -1
    assert np.isnan(got.distance[9])
    if activation is nn.Tanh:
        assert got.partner[10] == 11
        assert got.distance[10] < 1e-3  # rounding of float32


def test_all_units_dead_and_all_equal() -> None:
    model = seeded(mlp).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    got, *_ = compare(model)
    assert (got.distinct, got.participation, set(got.partner)) == (0, 0.0, {-1})
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    got, *_ = compare(model)
    assert got.distinct == 1
    assert got.participation == pytest.approx(1.0)
    assert got.distance.max() < 1e-3


def test_fused_kernels_of_low_precision_are_switched_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    compare(seeded(mlp))
    assert seen[:2] == ["highest", "high"]
    assert len(seen) % 2 == 0


def test_rank_of_every_head() -> None:
    """QᵀK of head 1 is cut to rank 2; the other head and the values keep theirs."""
    model = seeded(lambda: Attention(8, 2)).double()
    with torch.no_grad():
        model.qkv.weight[6:8] = 0  # type: ignore[index, operator]
        model.qkv.bias[6:8] = 0  # type: ignore[index, operator]
    params = {n: p.detach() for n, p in model.named_parameters()}
    ranks = {w.title: product_ranks(w, params, 0.01) for w in watch(found(model, 3, 8), params).classes if w.polarity}
    qk, vo = ranks["QK of qkv"], ranks["VO of qkv"]
    assert qk is not None
    assert vo is not None
    assert (qk.ranks, qk.most) == ((4, 2), 4)
    assert (vo.ranks, vo.most) == ((4, 4), 4)
    q, k = params["qkv.weight"][:4], params["qkv.weight"][8:12]
    values = torch.linalg.svdvals(q.T @ k)[:4].numpy()
    p = values / values.sum()
    effective = float(np.exp(-(p * np.log(p)).sum()))
    assert qk.effective <= effective + 1e-9
    assert vo.effective <= 4


def test_row_rank_is_that_of_the_report() -> None:
    model = seeded(lambda: mlp((6, 10, 3), nn.Tanh)).double()
    with torch.no_grad():
        weight = model[0].weight  # type: ignore[index]
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_(u[:, :3] * s[:3] @ v[:3])
    params = {n: p.detach() for n, p in model.named_parameters()}
    (w,) = watch(found(model, 6), params).classes
    got = row_rank(w, params, np.ones(10, dtype=bool), 10, 0.01)
    report = collapse_report(params, [w.units]).units[0]
    assert got is not None
    assert got.ranks == (report.numerical_rank,) == (3,)
    assert got.effective == pytest.approx(report.effective_rank)


def test_size_of_the_steps_of_adam() -> None:
    weight = nn.Parameter(torch.zeros(1000, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], eps=1e-8)
    assert adam_state([optimizer]) == {}
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        weight.grad[:250] = 0
        optimizer.step()
    state = adam_state([optimizer])
    assert state["adam/step"] == pytest.approx(np.sqrt(0.75), rel=1e-6)  # m̂/√v̂ = 1 where the sign never changes
    assert state["adam/frozen"] == 0.25
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        weight.grad = torch.randn(1000, generator=generator, dtype=torch.float64)
        optimizer.step()
    assert adam_state([optimizer])["adam/step"] == pytest.approx(np.sqrt(0.1 / 1.9), rel=0.1)  # pure noise
    assert adam_state([torch.optim.SGD([weight], lr=0.1)]) == {}
