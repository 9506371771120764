"""The curve of a mode solves its equation, starts and ends where it should, and is half at the half-rise time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.theory import half_rise_time, mode_strength

sizes = st.floats(0.1, 10)
starts = st.floats(1e-6, 0.1)


@given(sizes, starts, st.floats(0, 20))
def test_it_solves_the_equation_of_the_mode(s, start, t):
    step = 1e-5
    before, now, after = mode_strength(t + step * np.array([-1.0, 0.0, 1.0]), s, start)
    assert (after - before) / (2 * step) == pytest.approx(2 * now * (s - now), rel=1e-4, abs=1e-7)


@given(sizes, starts)
def test_its_ends_and_its_middle(s, start):
    ends = mode_strength(np.array([0.0, 1e4]), s, start)
    assert ends == pytest.approx([start**2, s])
    assert mode_strength(half_rise_time(s, start), s, start) == pytest.approx(s / 2)


@given(sizes, sizes, st.floats(1e-6, 1e-3))
def test_stronger_modes_rise_earlier(a, b, start):
    weak, strong = sorted([a, b])
    assert half_rise_time(strong, start) <= half_rise_time(weak, start)


def test_what_has_no_meaning_is_refused():
    assert half_rise_time(1.0, 2.0) == 0
    for bad in ((0.0, 0.1), (np.array([1.0, -1.0]), 0.1), (1.0, 0.0)):
        with pytest.raises(ValueError, match="must be positive"):
            half_rise_time(*bad)
