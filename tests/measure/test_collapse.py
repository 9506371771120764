import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import class_inputs, collapse_report, effective_rank, numerical_rank
from gaugefix.symmetry import Slice, Units


def _layer(n=24, d_in=20, d_out=9, activation="relu", seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    params = {
        "w": torch.randn(n, d_in, generator=generator, dtype=dtype) / d_in**0.5,
        "b": torch.randn(n, generator=generator, dtype=dtype) / d_in**0.5,
        "u": torch.randn(d_out, n, generator=generator, dtype=dtype) / n**0.5,
    }
    index = np.arange(n).reshape(1, n, 1)
    slices = (Slice("w", 0, index, "write"), Slice("b", 0, index, "write"), Slice("u", 1, index, "read"))
    return params, Units("layer", n, 1, slices, activation)


def _report(params, units, **options):
    return collapse_report(params, [units], **options).units[0]


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "identity"])
def test_no_false_alarm_on_fresh_layers(activation):
    shapes = [(24, 20, 9), (32, 32, 32), (16, 64, 10), (64, 8, 3)]
    verdicts = [
        _report(*_layer(*shape, activation=activation, seed=seed)).verdict for shape in shapes for seed in range(25)
    ]
    assert verdicts.count("healthy") == len(verdicts) == 100


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
def test_dead_units_are_named(activation):
    params, units = _layer(activation=activation)
    for i in (3, 11):
        params["w"][i], params["b"][i], params["u"][:, i] = 1e-6, 0.0, 1e-6
    found = _report(params, units)
    assert found.verdict == "dead units"
    assert found.dead == (3, 11)
    assert found.distinct == 22


def test_a_unit_with_one_dead_side_is_dead_unless_it_is_a_constant():
    params, units = _layer()
    params["u"][:, 5] = 0.0
    params["w"][6], params["b"][6] = 0.0, 0.0
    assert _report(params, units).dead == (5, 6)
    params, units = _layer(activation="sigmoid")
    params["w"][6], params["b"][6] = 0.0, 0.0  # sigmoid(0) = 1/2 still feeds the next layer
    assert _report(params, units).dead == ()


@pytest.mark.parametrize(("activation", "scale", "merges"), [
    ("relu", 3.0, True), ("relu", -3.0, False), ("leaky_relu", 0.2, True), ("identity", -2.0, True),
    ("tanh", -1.0, True), ("tanh", 3.0, False), ("gelu", 1.0, True), ("gelu", -1.0, False),
])  # fmt: skip
def test_duplicates_up_to_the_gauge_of_the_activation(activation, scale, merges):
    params, units = _layer(activation=activation)
    for i in (7, 9):
        params["w"][i], params["b"][i] = scale * params["w"][2], scale * params["b"][2]
    found = _report(params, units)
    if merges:
        opposite = activation == "tanh"  # the copies are equal to each other and opposite to the original
        assert found.verdict == "duplicate units"
        assert (found.sign_tied != ()) == opposite
        assert found.duplicates == ((2, 7, 9),)
        assert found.distinct == 22
    else:  # 7 and 9 are copies of each other, but not of 2
        assert found.duplicates == ((7, 9),)


def test_low_rank_is_not_called_dead_or_duplicate():
    params, units = _layer(64, 48, 9)
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(64, 6, generator=generator), torch.randn(6, 48, generator=generator)
    params["w"] = factors[0] @ factors[1]  # float32: the zero singular values are rounding
    found = _report(params, units)
    assert found.verdict == "low rank"
    assert found.numerical_rank == 6
    assert found.max_rank == 48
    assert found.effective_rank < 6.001
    params["w"] += 1e-6 * torch.randn(64, 48, generator=generator)  # a decayed tail instead of rounding
    assert _report(params, units).numerical_rank == 6


def test_rank_of_a_linear_class_ignores_the_basis():
    params, units = _layer(24, 20, 12, activation="identity", dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    params["w"][:, :] = params["w"][:, :4] @ torch.randn(4, 20, generator=generator, dtype=torch.float64)
    before = _report(params, units)
    change = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    turned = {
        "w": change @ params["w"],
        "b": change @ params["b"],
        "u": params["u"] @ torch.linalg.inv(change),
    }
    after = _report(turned, units)
    assert before.numerical_rank == after.numerical_rank == 4
    assert after.spectrum[:4] == pytest.approx(before.spectrum[:4], rel=1e-8)


class _Block(nn.Module):
    def __init__(self, d=16, heads=4):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(d, heads, batch_first=True), nn.Linear(d, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.fixture(scope="module")
def heads():
    """Attention with 4 heads of 4: its classes by what they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Block()
        symmetries = find_symmetries(model, (torch.randn(2, 5, 16),))
    return model, symmetries


def _attention_report(heads, change):
    model, symmetries = heads
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    change(params)
    found = {u.name: u for u in collapse_report(params, symmetries).units}
    outgoing = {u.name for u in symmetries.units if u.kind == "head_dim" and u.outgoing}
    kinds = {"values": outgoing, "queries": {u.name for u in symmetries.units if u.kind == "head_dim"} - outgoing,
             "heads": {u.name for u in symmetries.units if u.kind == "head"}}  # fmt: skip
    return {kind: found[name] for kind, (name,) in ((k, tuple(v)) for k, v in kinds.items())}


def test_joint_rank_of_queries_and_keys(heads):
    """Queries of rank 2 and keys of rank 2 in other directions: each alone says 2, the product says 1."""

    def change(params):
        w = params["attention.in_proj_weight"]
        w[2:4] = w[:2].flip(0) + w[:2]
        w[16:20] = w[16:17] * torch.arange(1.0, 5.0)[:, None]

    found = _attention_report(heads, change)
    assert "low rank" in found["queries"].verdict
    assert found["queries"].max_rank == 16
    assert found["queries"].numerical_rank == 13
    assert found["values"].verdict == "healthy"


def test_a_dead_head_and_a_copied_head_are_named_at_the_head(heads):
    def change(params):
        w, out = params["attention.in_proj_weight"], params["attention.out_proj.weight"]
        for start in (0, 16, 32):
            w[start + 4 : start + 8] = w[start : start + 4]
        w[44:], out[:, 12:] = 0.0, 0.0

    found = _attention_report(heads, change)
    assert found["heads"].verdict == "dead units, duplicate units"
    assert found["heads"].duplicates == ((0, 1),)
    assert found["values"].dead == (12, 13, 14, 15)
    assert "low rank" not in found["queries"].verdict + found["values"].verdict


def test_antipodal_relu_units_are_no_collapse():
    params, units = _layer(activation="relu")
    params["w"][12:], params["b"][12:] = -params["w"][:12], -params["b"][:12]
    found = _report(params, units)
    assert found.duplicates == ()
    assert found.sign_tied == ()


def test_numerical_rank_of_matrices():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 5, generator=generator) @ torch.randn(5, 30, generator=generator)
    assert numerical_rank(a) == 5  # float32: rounding leaves singular values of 1e-6
    assert numerical_rank(a.double(), gap=0.0) > 5  # the same numbers, taken for float64
    assert numerical_rank(a.double(), eps=torch.finfo(torch.float32).eps) == 5
    assert numerical_rank(np.array([3.0, 1.0, 0.0])) == 2
    assert numerical_rank(np.zeros((0, 3))) == numerical_rank(torch.zeros(4, 4)) == 0
    assert effective_rank(torch.eye(4)) == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [48, 256])
def test_rank_in_every_precision(dtype, size):
    """Random matrices are never thin, low rank is seen through the rounding of the entries."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        full = torch.randn(size, size, generator=generator)
        assert numerical_rank(full.to(dtype)) == size
        thin = torch.randn(size, 5, generator=generator) @ torch.randn(5, size, generator=generator) / 5**0.5
        assert numerical_rank(thin.to(dtype)) == 5


def test_unbalanced_is_healthy():
    params, units = _layer()
    scale = torch.logspace(-3, 3, 24)
    params["w"] *= scale[:, None]
    params["b"] *= scale
    params["u"] /= scale
    assert _report(params, units).verdict == "healthy"


def test_several_findings_at_once():
    params, units = _layer()
    params["w"][0], params["b"][0], params["u"][:, 0] = 0.0, 0.0, 0.0
    params["w"][1], params["b"][1] = params["w"][2], params["b"][2]
    assert _report(params, units).verdict == "dead units, duplicate units"


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_class_that_is_all_small_has_collapsed(size):
    params, units = _layer()
    found = _report({k: size * p for k, p in params.items()}, units)
    assert found.verdict == "collapsed"
    assert len(found.dead) == 24
    assert found.numerical_rank == found.distinct == 0
    assert found.nearest_pair is None


def test_nearest_pair_is_the_planted_one():
    params, units = _layer()
    params["w"][4], params["b"][4] = 2 * params["w"][8], 2 * params["b"][8]
    params["w"][4, 0] += 0.2 * params["w"][4].norm()
    found = _report(params, units)
    assert found.nearest_pair == (4, 8)
    assert 0.05 < found.nearest_distance < 0.2
    assert found.duplicates == ()


def test_fibers_do_not_mix():
    params = {"w": torch.ones(4, 3), "u": torch.ones(2, 4)}
    index = np.arange(4).reshape(2, 2, 1)
    units = Units("heads", 2, 2, (Slice("w", 0, index, "write"), Slice("u", 1, index, "read")), "relu")
    assert sorted(_report(params, units).duplicates) == [(0, 1), (2, 3)]


def test_never_active_units_are_flagged(mlp, mlp_units, make_task, blobs):
    model = mlp((5, 8, 3), "relu")
    with torch.no_grad():
        model[0].bias[3] = -100.0
    task, units = make_task(model, blobs, batch_size=16), mlp_units(model, "relu")
    inputs = class_inputs(task, units)
    assert inputs["0"].shape == (48, 6)
    found = collapse_report(dict(model.named_parameters()), units, inputs=inputs).units[0]
    assert found.inactive == (3,)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["relu", "tanh", "identity"]))
def test_the_report_does_not_see_the_gauge(seed, activation):
    params, units = _layer(seed=seed, activation=activation, dtype=torch.float64)
    params["w"][1], params["b"][1], params["u"][:, 1] = 0, 0, 0
    params["w"][5], params["b"][5] = params["w"][6], params["b"][6]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(24, generator=generator)
    scale = 0.1 + torch.rand(24, generator=generator) if activation == "relu" else torch.ones(24)
    scale = scale * (torch.randint(2, (24,), generator=generator) * 2 - 1 if activation != "relu" else 1)
    moved = {
        "w": (params["w"] * scale[:, None])[order],
        "b": (params["b"] * scale)[order],
        "u": (params["u"] / scale)[:, order],
    }
    a, b = _report(params, units), _report(moved, units)
    where = {int(old): new for new, old in enumerate(order)}
    assert b.verdict == a.verdict
    assert b.dead == (where[1],)
    assert b.duplicates == (tuple(sorted((where[5], where[6]))),)
    assert b.spectrum == pytest.approx(a.spectrum, rel=1e-9, abs=1e-12)


def test_counts_add_up_and_the_record_is_plain_json():
    params, units = _layer()
    params["w"][1], params["b"][1] = params["w"][2], params["b"][2]
    report = collapse_report(params, [units])
    assert (report.n_dead, report.n_duplicate, report.n_units) == (0, 1, 24)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["units"][0]["duplicates"] == [[1, 2]]


def test_effective_rank_of_equal_values():
    assert effective_rank(np.full(5, 0.3)) == pytest.approx(5)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, float("nan")])
def test_bad_tolerance(tolerance):
    with pytest.raises(MeasurementError, match=r"\(0, 1\)"):
        _report(*_layer(), tolerance=tolerance)
