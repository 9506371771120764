"""Held or escaping: exponents, windows and toy landscapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gaugefix.theory import escape_exponent, landscapes, lyapunov_exponent


@given(arrays(float, st.integers(2, 30), elements=st.floats(-2, 2)), st.floats(0.01, 1.0), st.floats(0, 0.5))
def test_the_exponent_is_the_mean_of_logs_and_negative_inside_its_window(h, lr, decay):
    found = escape_exponent(h, lr, decay)
    assert found.value == pytest.approx(lyapunov_exponent(h, lr, decay))
    low, high = found.lr_window
    if low * 1.001 < lr < high * 0.999 and math.isfinite(found.value):
        assert found.value < 1e-9


def test_small_momentum_is_no_momentum_and_a_constant_curvature_is_closed():
    h = np.array([0.9, -1.0])
    plain = escape_exponent(h, 0.5)
    near = escape_exponent(h, 0.5, momentum=1e-3)
    assert near.value == pytest.approx(plain.value, abs=4 * near.stderr + 2e-3)
    mu, lr, k = 0.9, 0.1, -0.5
    root = max(np.roots([1, -(1 + mu - lr * k), mu]).real)  # w'' = (1 + μ − lr·k)w' − μw
    assert escape_exponent(np.array([k]), lr, momentum=mu).value == pytest.approx(math.log(root), abs=1e-6)


def test_a_maximum_can_hold_and_a_minimum_can_repel():
    held = escape_exponent(np.tile([0.9, -1.0], 2000), 0.5)
    assert (held.mean_curvature < 0, held.verdict) == (True, "collapses")
    repelled = escape_exponent(np.tile([4.0] + [0.0] * 9, 400), 1.0)
    assert (repelled.mean_curvature > 0, repelled.verdict) == (True, "escapes")
    assert held.critical_batch > 1
    assert repelled.critical_batch == math.inf


@given(st.floats(-0.9, -0.01))
def test_the_window_of_the_toy_maximum_is_closed(a):
    found = escape_exponent(np.array(landscapes.local_max(a).curvatures), 0.3)
    assert found.lr_window[0] == pytest.approx(-a / (1 + a), rel=1e-6)
    assert found.lr_window[1] == pytest.approx((-a + math.sqrt(a * a + 8 * (1 + a))) / (2 * (1 + a)), rel=1e-6)


@pytest.mark.parametrize("toy", [landscapes.quartic(-0.3), landscapes.sharp_vs_flat(0.1, 4.0, 1.5)])
def test_gradients_of_samples_average_to_the_slope_of_the_loss(toy):
    rng, w, step = np.random.default_rng(0), np.array([-1.3, -0.4, 0.5, 1.7]), 1e-5
    h = toy.draw(rng, (200_000, 1))
    slope = (toy.loss(w + step) - toy.loss(w - step)) / (2 * step)
    assert toy.gradient(w, h).mean(0) == pytest.approx(slope, abs=0.02)


def test_the_two_wells_change_places_at_two_over_the_curvature():
    toy = landscapes.sharp_vs_flat(0.1, 4.0, 1.5)
    assert toy.exponents(0.499)[0] < 0 < toy.exponents(0.501)[0]
    assert toy.exponents(1.0)[1] == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: escape_exponent(np.array([]), 0.1), "at least one"),
        (lambda: escape_exponent(np.array([np.nan]), 0.1), "finite"),
        (lambda: escape_exponent(np.ones(2), 0.0), "lr"),
        (lambda: escape_exponent(np.ones(2), 0.1, momentum=1.0), "momentum"),
        (lambda: landscapes.local_max(0.1), "a must"),
        (lambda: landscapes.sharp_vs_flat(0.5, 4.0, 1.5), "sharp"),
    ],
)
def test_ranges_are_checked(call, match):
    with pytest.raises(ValueError, match=match):
        call()
