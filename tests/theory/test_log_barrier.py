"""Escape over a logarithmic barrier: limits, inverses, and the passage time of a diffusion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import log_barrier_escape, lr_to_escape, min_batch_to_stay, passage_steps

WELL = (0.1, 0.35, np.array([2.0]), np.array([-1.0]))


@given(st.floats(1e-3, 1.0), st.floats(1.1, 20), st.floats(0.01, 0.5), st.integers(1, 32), st.floats(0.01, 100))
def test_the_rate_depends_on_the_ratio_of_the_losses(loss, ratio, lr, batch, scale):
    h, s = np.array([2.0, 1.0]), np.array([1.5, -1.0])
    found = log_barrier_escape(loss, ratio * loss, h, s, lr, batch)
    scaled = log_barrier_escape(scale * loss, scale * ratio * loss, h, s, lr, batch)
    assert scaled.expected_steps == pytest.approx(found.expected_steps, rel=1e-9)
    assert found.rate_per_step >= 0
    assert found.n_c > found.n


@settings(deadline=None)  # the first example imports scipy
@given(st.floats(0.02, 0.3), st.integers(1, 8))
def test_both_inverses_come_back(lr, batch):
    found = log_barrier_escape(*WELL, lr, batch)
    if found.expected_steps < 1e100:
        assert min_batch_to_stay(found.expected_steps, *WELL, lr) == pytest.approx(batch, rel=1e-6)
        assert lr_to_escape(found.expected_steps, *WELL, batch) == pytest.approx(lr, rel=1e-6)


@settings(deadline=None)
@given(st.floats(0.1, 0.5))
def test_the_power_law_is_the_asymptote_of_the_integral(strength):
    """Double well with the noise 2·strength·L: the ratio of both times tends to one for weak noise."""
    line = np.linspace(-3, 1, 1001)
    slope = line * (line**2 - 1)
    noise = 2 * strength * (0.1 + (line**2 - 1) ** 2 / 4)
    exact = passage_steps(line, slope, noise, 1.0, -1.0, 0.8)
    law = log_barrier_escape(*WELL, 1e-3, 1, escape_curvature=strength / 1e-3).expected_steps * 1e-3
    assert law == pytest.approx(exact, rel=0.6 * strength)


@pytest.mark.parametrize("drift", [0.0, 0.7, -0.7])
def test_the_passage_of_a_diffusion_with_drift_is_closed(drift):
    """Reflected at 0, to 1, with D = 1: T = (v − 1 + e^−v)/v² for a drift v."""
    s = np.linspace(0, 1, 101)
    expected = 0.5 if drift == 0 else (drift - 1 + math.exp(-drift)) / drift**2
    found = passage_steps(s, np.full(101, -drift), np.full(101, 20.0), 0.1, 0.0, 1.0)
    assert found == pytest.approx(expected / 0.1, rel=1e-6)


def test_more_outliers_and_larger_rates_leave_earlier():
    one = log_barrier_escape(*WELL, 0.2, 1)
    three = log_barrier_escape(0.1, 0.35, np.full(3, 2.0), np.array([2.0, 2.0, -1.0]), 0.2, 1)
    assert three.expected_steps < one.expected_steps
    up, down = (log_barrier_escape(*WELL, 0.2 * f, 1) for f in (1.0001, 0.9999))
    slope = math.log(up.rate_per_step / down.rate_per_step) / math.log(1.0001 / 0.9999)
    assert slope == pytest.approx(one.sensitivity + 1, rel=1e-5)  # the steps themselves are longer too


def test_what_the_formula_does_not_cover_says_so():
    assert log_barrier_escape(*WELL, 3.0, 1).valid is False  # lr·h/B = 6: no barrier
    empty = log_barrier_escape(0.0, 0.35, *WELL[2:], 0.1, 1)
    assert (empty.rate_per_step, empty.expected_steps, empty.valid) == (0.0, math.inf, True)
    crowded = log_barrier_escape(0.1, 0.35, np.full(8, 2.0), np.array([2.0] * 7 + [-1.0]), 0.5, 1)
    assert crowded.n >= crowded.n_c
    assert (crowded.expected_steps, crowded.valid) == (0.0, False)
    two = log_barrier_escape(0.1, 0.35, np.full(2, 2.0), np.array([-1.0, -1.0]), 0.1, 1)
    assert "2 negative" in two.warnings[0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: log_barrier_escape(0.4, 0.35, *WELL[2:], 0.1, 1), "above the minimum"),
        (lambda: log_barrier_escape(0.1, 0.35, np.array([2.0]), np.array([1.0]), 0.1, 1), "no negative"),
        (lambda: log_barrier_escape(0.1, 0.35, np.array([-2.0]), np.array([-1.0]), 0.1, 1), "outlier"),
        (lambda: log_barrier_escape(*WELL, -0.1, 1), "lr"),
        (lambda: min_batch_to_stay(-1.0, *WELL, 0.1), "steps"),
        (lambda: lr_to_escape(10.0, 0.0, *WELL[1:], 1), "loss_min"),
        (lambda: passage_steps(np.arange(3.0), np.zeros(3), np.zeros(3), 0.1, 0.0, 1.0), "noise vanishes"),
        (lambda: passage_steps(np.arange(3.0), np.zeros(3), np.ones(3), 0.1, 1.0, 9.0), "start < end"),
        (lambda: passage_steps(np.zeros(3), np.zeros(3), np.ones(3), 0.1, 0.0, 1.0), "ascending"),
    ],
)
def test_ranges_are_checked(call, match):
    with pytest.raises(ValueError, match=match):
        call()
