"""Six relations against matrices computed one sample at a time, planted layers, and the exact balance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.measure import (
    AlignmentReport,
    alignment_report,
    measure_alignment,
    phase,
    power_law_exponents,
)
from gaugefix.measure.alignment import RELATIONS


def _loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("normalize", [True, False])
def test_the_relations_are_those_of_single_samples(mlp, blobs, normalize):
    model = mlp((5, 4, 3), "tanh")
    x, y = blobs
    found = measure_alignment(model, [(x[:20], y[:20]), (x[20:], y[20:])], _loss, normalize=normalize)
    assert list(found) == ["0", "2"]
    w, rows = model[2].weight.detach(), {k: [] for k in ("h_a", "h_b", "g_a", "g_b")}
    for i in range(len(x)):
        h = torch.tanh(model[0](x[i])).detach()
        logits = model[2](h).detach().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y[i]), logits)
        for k, v in {"h_a": h, "h_b": w @ h, "g_b": -g, "g_a": -g @ w}.items():
            rows[k].append((v / v.norm() if normalize else v).numpy())
    moments = {}
    for k, v in rows.items():
        v = np.stack(v)
        moments[k] = np.cov(v.T, bias=True) if normalize else v.T @ v / len(v)
    z = {"out": (w @ w.T).numpy(), "in": (w.T @ w).numpy()}
    for side, letter in (("out", "b"), ("in", "a")):
        h, g = moments[f"h_{letter}"], moments[f"g_{letter}"]
        for name, a, b in (("rga", h, g), ("rwa", h, z[side]), ("gwa", g, z[side])):
            expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
            assert getattr(found["2"], f"{name}_{side}") == pytest.approx(expected, abs=1e-10)
    assert found["2"].n_samples == len(x)
    assert "noisy" in found["0"].reason


def test_positions_of_a_sequence_count_as_samples():
    layer = nn.Linear(6, 4).double()
    x = torch.randn(10, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sequence = measure_alignment(layer, [x], lambda m, b: m(b).square().sum((1, 2)))[""]
    flat = measure_alignment(layer, [x.reshape(70, 6)], lambda m, b: m(b).square().sum(1))[""]
    assert sequence.n_samples == 70
    for name in RELATIONS:
        assert getattr(sequence, name) == pytest.approx(getattr(flat, name), abs=1e-12)


@pytest.mark.transformers
def test_layers_of_a_transformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    tokens = torch.arange(64).reshape(4, 16) * 7 % 40

    def loss(m, t):
        logits = m(t).logits[:, :-1]
        return nn.functional.cross_entropy(logits.transpose(1, 2), t[:, 1:], reduction="none").mean(1)

    found = measure_alignment(model, [tokens], loss, max_features=30)
    assert "model.layers.0.mlp.down_proj" in found
    assert "lm_head" not in found  # 40 outputs
    assert found["model.layers.0.self_attn.q_proj"].n_samples == 64
    assert all(math.isfinite(getattr(r, name)) for r in found.values() for name in RELATIONS)


def planted(p, q, *, modes=8, samples=40_000):
    """A layer and data with h_a ~ z^p, g_b ~ z^q in the singular basis of W."""
    rng = np.random.default_rng(0)
    z = np.geomspace(1, 0.05, modes)
    u, v = (np.linalg.qr(rng.standard_normal((modes, modes)))[0] for _ in range(2))
    layer = nn.Linear(modes, modes, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(u @ np.diag(np.sqrt(z)) @ v.T))
    h = torch.from_numpy(rng.standard_normal((samples, modes)) * z ** (p / 2) @ v.T)
    g = torch.from_numpy(rng.standard_normal((samples, modes)) * z ** (q / 2) @ u.T)
    return measure_alignment(layer, [(h, g)], lambda m, b: -(m(b[0]) * b[1]).sum(1), normalize=False)[""]


@pytest.mark.parametrize(
    ("exponents", "holds"),
    [
        ((1, 1), {"gwa_out", "rwa_in"}),
        ((0, 0), {"rwa_out", "gwa_in"}),
        ((1, 2), {"rga_out", "rwa_in"}),
        ((2, 1), {"gwa_out", "rga_in"}),
    ],
)
def test_planted_exponents_and_phases_come_out(exponents, holds):
    report = planted(*exponents)
    laws = power_law_exponents(report)
    assert (laws.p, laws.q) == pytest.approx(exponents, abs=0.03)
    assert laws.r2_p > 0.99 or exponents[0] == 0
    assert laws.n_modes == 8
    assert set(phase(report, tol=0.01)) == holds


def test_independent_matrices_stay_at_the_null_level():
    rng = np.random.default_rng(1)
    x, g, spectrum = (rng.standard_normal((4000, 40)), rng.standard_normal((4000, 40)), np.geomspace(1, 0.2, 40))
    u, v = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    layer = nn.Linear(40, 40, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(u * spectrum @ v.T))
    batch = torch.from_numpy(x * spectrum), torch.from_numpy(g * spectrum)
    found = measure_alignment(layer, [batch], lambda m, b: (m(b[0]) * b[1]).sum(1))[""]
    for name in ("rwa_in", "gwa_out"):
        assert abs(getattr(found, name) - found.null[name]) < 5 * found.null_std[name] < 0.2
        assert found.null[name] > 0.3  # the diagonal alone
        assert name not in phase(found)


def test_too_few_modes_have_no_exponent():
    report = planted(1, 1, modes=3, samples=100)
    laws = power_law_exponents(report)
    assert not laws.valid
    assert math.isnan(laws.p)


def test_a_single_output_has_no_relation():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    report = measure_alignment(nn.Linear(3, 1), lambda: iter([x]), lambda m, b: m(b)[:, 0].square())[""]
    assert math.isnan(report.rga_out)
    assert "rga_out" not in phase(report)
    assert isinstance(report, AlignmentReport)
    report.to_dict()


def test_bad_input_is_named(mlp, blobs):
    model = mlp((5, 4, 3), "tanh")
    with pytest.raises(MeasurementError, match=r"'1' is no nn\.Linear"):
        measure_alignment(model, [blobs], _loss, ["1"])
    with pytest.raises(MeasurementError, match="max_features = 4"):
        measure_alignment(model, [blobs], _loss, ["0"], max_features=4)
    with pytest.raises(MeasurementError, match=r"per sample and unreduced.*got \(\)"):
        measure_alignment(model, [blobs], lambda m, b: _loss(m, b).mean())
    with pytest.raises(MeasurementError, match="not used"):
        measure_alignment(model, [blobs], lambda m, b: m[0](b[0]).sum(1), ["2"])
    with pytest.raises(MeasurementError, match=r"no nn\.Linear layer"):
        measure_alignment(nn.Conv1d(1, 1, 1), [blobs], _loss)


def test_the_model_is_as_before(mlp, blobs, make_task):
    model = mlp((5, 4, 3), "tanh").train()
    found = alignment_report(make_task(model, blobs), max_samples=48)
    assert [r.name for r in found.layers] == ["0", "2"]
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
