"""The order of neurons on a line is kept below the threshold and broken above, for any error and any place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gaugefix.theory import order_keeping_lr, reversed_share


@given(st.floats(-5, 5), st.integers(0, 100))
def test_one_step_keeps_the_order_exactly_below_the_threshold(error, seed):
    assume(abs(error) > 1e-3)
    theta = np.sort(np.random.default_rng(seed).uniform(-3, 3, 500))
    critical = order_keeping_lr(error, -np.sin(np.linspace(-3, 3, 100_001)))
    for factor, kept in ((0.999, True), (1.5, False)):
        step = np.diff(theta - factor * critical * error * np.cos(theta))
        assert (step > 0).all() == kept


@given(st.floats(-5, 5))
def test_nobody_is_turned_over_below_the_threshold(error):
    second = -np.sin(np.linspace(-3, 3, 1000))
    critical = order_keeping_lr(error, second)
    assume(0 < critical < 1e6)
    below, above, far = reversed_share(critical * np.array([0.999, 1.01, 3.0]), error, second)
    assert below == 0 < above < far < 1


def test_neurons_that_only_part_have_no_threshold():
    assert math.isinf(order_keeping_lr(1.0, np.full(4, -2.0)))
    assert math.isinf(order_keeping_lr(0.0, np.ones(4)))
    assert reversed_share(1e9, 1.0, np.full(4, -2.0)).tolist() == [0.0]
    assert order_keeping_lr(2.0, np.array([0.25])) == pytest.approx(2.0)
