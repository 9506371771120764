"""Tail indices against closed forms, samples and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import gaussian_tail_index, kesten_tail_index, label_noise_sgd


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.floats(-1, 4), min_size=2, max_size=8), st.floats(0.05, 1.5))
def test_the_index_is_where_the_moment_is_one(h, lr):
    h = np.array(h)
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(1 - lr * h))
    if logs.mean() >= -1e-9:
        with pytest.raises(ValueError, match="no stationary law"):
            kesten_tail_index(h, lr)
        return
    found = kesten_tail_index(h, lr)
    if np.abs(1 - lr * h).max() <= 1:
        assert found == math.inf
    elif 1e-3 < found < 50:
        assert (np.abs(1 - lr * h) ** found).mean() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("strength", "batch"), [(0.5, 1), (1.0, 4), (1.5, 8)])
def test_the_quadrature_is_the_limit_of_samples(strength, batch):
    h = np.random.default_rng(0).standard_gamma(batch / 2, 400_000) * 2 / batch
    assert gaussian_tail_index(1.0, strength, batch).index == pytest.approx(kesten_tail_index(h, strength), rel=0.03)


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(1, 30), st.floats(0.2, 3.0))
def test_the_index_is_two_where_the_variance_diverges(batch, variance):
    """There, and only there, the moment match is exact."""
    limit = label_noise_sgd(np.array([variance]), 1.0, 1e-3, batch).lr_limit
    found = gaussian_tail_index(variance, limit, batch)
    assert found.index == pytest.approx(2.0, abs=1e-4)
    assert found.moment_match == pytest.approx(2.0)


def test_small_rates_reach_the_continuous_limit_and_large_ones_have_no_law():
    small = gaussian_tail_index(1.0, 0.02, 1)
    assert small.index < small.continuous
    assert small.index == pytest.approx(small.continuous, rel=0.35)
    with pytest.raises(ValueError, match="no stationary law"):
        gaussian_tail_index(1.0, 5.0, 4)
    with pytest.raises(ValueError, match="positive"):
        gaussian_tail_index(0.0, 1.0, 4)
    with pytest.raises(ValueError, match="finite"):
        kesten_tail_index(np.array([]), 0.1)
