import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import factor_decay, steps_to_zero


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(1e-4, 1), st.floats(0, 0.99), st.floats(-2, 2))
def test_factor_decay_is_the_spectral_radius_of_one_step(strength, lr, momentum, gradient):
    h = strength - abs(gradient)
    step = np.array([[1 + momentum - lr * h, -momentum], [1.0, 0.0]])
    radius = np.abs(np.linalg.eigvals(step)).max()
    rate = float(factor_decay(strength, lr, momentum=momentum, gradient=gradient))
    assert rate == pytest.approx(radius, rel=1e-6)
    assert rate >= 1 - 1e-9 or h > 0


def test_what_has_no_meaning_is_refused():
    assert math.isinf(steps_to_zero(1.0, 1e-6, 0.1, 0.1, gradient=0.2))
    assert float(steps_to_zero(1e-8, 1e-6, 0.1, 0.1)) == 0
    for bad in (
        {"strength": -1.0, "lr": 0.1},
        {"strength": 1.0, "lr": -0.1},
        {"strength": 1.0, "lr": 0.1, "momentum": 1.0},
    ):
        with pytest.raises(ValueError, match="must be"):
            factor_decay(**bad)
    with pytest.raises(ValueError, match="tolerance"):
        steps_to_zero(1.0, 0.0, 0.1, 0.1)
