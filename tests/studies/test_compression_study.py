"""The claims of the study of compression can fail: each is given a wrong theory, a wrong degree or no method."""

from __future__ import annotations

import numpy as np

from gaugefix.control import CompressedPoints
from gaugefix.studies import Setting, moment_compression
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
