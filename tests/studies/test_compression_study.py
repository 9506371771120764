"""The claims of the study of compression can fail: each is given a wrong theory, a wrong degree or no method."""

from __future__ import annotations

import numpy as np

from gaugefix.control import CompressedPoints
from gaugefix.studies import Setting, compressed_heads, compressed_training, moment_compression
from gaugefix.studies.registry import find_study
from gaugefix.studies.runner import run_claim

ONE = Setting((0,))


def claim(name):
    return next(c for c in find_study("2510.00504").claims if c.name == name)


def test_an_exponent_without_the_half_is_found_out(monkeypatch):
    monkeypatch.setattr(moment_compression, "CELLS", ((1, 1),))
    monkeypatch.setattr(moment_compression, "predict_exponent", lambda m, k: (k + 1) / m)
    assert not run_claim(claim("exponent"), ONE).passed


def test_first_moments_are_not_enough_for_least_squares(monkeypatch):
    right = moment_compression.compress_dataset
    monkeypatch.setattr(moment_compression, "compress_dataset", lambda x, y, k: right(x, y, k=1))
    found = run_claim(claim("least-squares"), ONE)
    assert found.error is None
    assert not found.cell_passed.any()


def test_random_rows_are_no_better_than_random_rows(monkeypatch):
    def random_rows(x, y, k):
        n = {2: 450, 1: 90}[k]
        rows = np.random.default_rng(5).permutation(len(x))[:n]
        return CompressedPoints(rows, np.full(n, len(x) / n), k, 0.0)

    monkeypatch.setattr(moment_compression, "compress_dataset", random_rows)
    moment_compression._digits.cache_clear()
    assert not run_claim(claim("digits-probabilities"), ONE).passed
    assert not run_claim(claim("digits-accuracy"), ONE).passed
    moment_compression._digits.cache_clear()


def random_points(points, k, target):
    rows = np.random.default_rng(7).permutation(len(points))[:target]
    return CompressedPoints(rows, np.full(target, len(points) / target), k, 0.0)


def test_random_rows_do_not_double_the_exponent(monkeypatch):
    monkeypatch.setattr(compressed_training, "compress_points", random_points)
    found = run_claim(claim("scaling-law"), ONE)
    assert found.error is None
    assert not found.passed


def test_third_moments_are_not_enough_for_attention(monkeypatch):
    right = compressed_heads.compress_points
    monkeypatch.setattr(compressed_heads, "compress_points", lambda heads, k: right(heads, 3))
    found = run_claim(claim("heads-exact"), ONE)
    assert found.error is None
    assert not found.passed


def test_the_smallest_heads_are_worse_than_random_ones(monkeypatch):
    def smallest(heads, k, target):
        rows = heads.norm(dim=1).argsort()[:target].numpy()
        return CompressedPoints(rows, np.full(target, len(heads) / target), k, 0.0)

    monkeypatch.setattr(compressed_heads, "compress_points", smallest)
    found = run_claim(claim("heads-dynamics"), ONE)
    assert found.error is None
    assert not found.passed
