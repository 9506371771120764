"""Alignment of layers against its definition and against scipy; the checklist names what is there and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import procrustes
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure import kernel_alignment, linear_cka, platonic_breaker_checklist, platonic_report


def draw(n, p, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(2, 20), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_it_is_the_cosine_of_two_kernels(n, p, q, seed):
    x, y = draw(n, p, seed), draw(n, q, seed + 1)
    k, m = (x @ x.T).flatten(), (y @ y.T).flatten()
    assert kernel_alignment(x, y) == pytest.approx(float(k @ m / (k.norm() * m.norm())), rel=1e-9)
    turned = 3 * y @ torch.linalg.qr(draw(q, q, seed)).Q
    assert kernel_alignment(x, turned) == pytest.approx(kernel_alignment(x, y), rel=1e-9)


def test_without_a_mean_it_is_cka_and_with_one_it_is_not():
    x, y = (t - t.mean(0) for t in (draw(30, 4, 1), draw(30, 5, 2)))
    assert kernel_alignment(x, y) == pytest.approx(linear_cka(x, y, unbiased=False))
    assert kernel_alignment(x, x + 1) < 0.99 < linear_cka(x, x + 1, unbiased=False)


def test_the_report_has_every_pair_in_its_place():
    a, b = [draw(30, 4, 1), draw(30, 6, 2)], [draw(30, 5, 3), draw(30, 4, 1) * 2, draw(30, 3, 4)]
    report = platonic_report(a, b, reference=a[1])
    assert report.cka.shape == report.cka_centered.shape == report.residual.shape == (2, 3)
    assert report.cka[0, 1] == pytest.approx(1)
    assert report.residual[0, 1] == pytest.approx(0, abs=1e-12)
    assert report.cka[1, 2] == pytest.approx(kernel_alignment(a[1], b[2]))
    assert report.reference_a[1] == pytest.approx(1)
    assert report.reference_b.shape == (3,)
    assert report.smallest == report.cka.min()
    assert platonic_report(a, b, center=True).smallest == report.cka_centered.min()


def test_the_residual_is_that_of_scipy():
    x, y = (t - t.mean(0) for t in (draw(20, 4, 5), draw(20, 4, 6)))
    expected = procrustes(x.numpy(), y.numpy())[2]
    assert platonic_report([x], [y]).residual[0, 0] == pytest.approx(expected, rel=1e-9)


def test_a_dead_layer_is_nan_and_said():
    with pytest.warns(ValidityWarning, match="zero on every sample"):
        report = platonic_report([torch.zeros(5, 3)], [draw(5, 2)])
    assert math.isnan(report.cka[0, 0])
    assert report.rank_a.tolist() == [0]


def test_bad_input_is_named():
    with pytest.raises(MeasurementError, match="got 5 and 6"):
        platonic_report([draw(5, 2)], [draw(6, 2)])
    with pytest.raises(MeasurementError, match="at least one layer"):
        platonic_report([], [draw(6, 2)])
    with pytest.raises(MeasurementError, match="two or more"):
        kernel_alignment(draw(1, 2), draw(1, 2))


GOOD = {
    "weight_decay": 0.0, "batch_size": 8, "n_samples": 100, "lr": 0.01, "sharpness": 5.0, "rank": 4, "target_rank": 4,
    "label_transform": np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0] * 2, "same_inputs": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"weight_decay": 1e-4}, "weight decay"),
        ({"label_transform": np.diag([1.0, 2.0])}, "label transform"),
        ({"label_transform": True}, "label transform"),
        ({"rank": 3}, "saddle"),
        ({"same_inputs": False}, "inputs"),
        ({"batch_size": 100}, "no noise"),
        ({"lr": 0.3}, "large learning rate"),
    ],
)
def test_every_breaker_is_found_alone(change, name):
    assert {b.verdict for b in platonic_breaker_checklist(GOOD)} == {"fine"}
    found = platonic_breaker_checklist(GOOD | change)
    assert [b.name for b in found if b.verdict == "breaks"] == [name]


def test_what_is_not_given_is_unknown_and_a_task_gives_some():
    assert {b.verdict for b in platonic_breaker_checklist({})} == {"unknown"}
    loss = lambda m, b: m(b)[:, 0]  # noqa: E731
    task = Task(nn.Linear(1, 1), loss, lambda: [torch.ones(2, 1)], lr=0.1, weight_decay=0.01, batch_size=2)
    found = {b.name: b.verdict for b in platonic_breaker_checklist(task, n_samples=2)}
    assert found["weight decay"] == found["no noise"] == "breaks"
    with pytest.raises(MeasurementError, match="unknown wd"):
        platonic_breaker_checklist(task, wd=1)
