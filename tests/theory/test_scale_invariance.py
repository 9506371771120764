"""The norm of scale-invariant weights: growth, rest, the exact law behind both, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import angular_step, scale_equilibrium_norm, scale_norm

positive = st.floats(1e-3, 10)


@given(positive, st.floats(1e-3, 0.5), st.floats(1e-4, 1))
@settings(deadline=None)
def test_at_rest_noise_and_decay_cancel_exactly(gradient_sq, lr, decay):
    norm = scale_equilibrium_norm(gradient_sq, lr=lr, weight_decay=decay)
    after = (1 - lr * decay) ** 2 * norm**2 + lr**2 * gradient_sq / norm**2
    assert after == pytest.approx(norm**2, rel=1e-9)
    assert angular_step(lr=lr, weight_decay=decay) == pytest.approx(lr * math.sqrt(gradient_sq) / norm**2, rel=1e-9)


@given(positive, positive, st.floats(1e-3, 0.01), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_growth_follows_from_the_law_step_by_step(norm, gradient_sq, lr, steps):
    norm = 1 + norm
    square = norm**2
    for _ in range(steps):
        square += lr**2 * gradient_sq / square
    assert float(scale_norm(norm, gradient_sq, steps, lr=lr)) == pytest.approx(math.sqrt(square), rel=1e-3)


def test_limits():
    assert scale_equilibrium_norm(1.0, lr=0.1, weight_decay=0.0) == math.inf
    assert math.isnan(scale_equilibrium_norm(0.0, lr=0.1, weight_decay=0.0))
    assert scale_equilibrium_norm(0.0, lr=0.1, weight_decay=0.1) == 0
    assert angular_step(lr=0.1, weight_decay=0.0) == 0
    assert scale_norm(2.0, 0.0, np.arange(3), lr=0.1).tolist() == pytest.approx([2.0] * 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: scale_equilibrium_norm(1.0, lr=0.0, weight_decay=0.1),
        lambda: scale_equilibrium_norm(-1.0, lr=0.1, weight_decay=0.1),
        lambda: scale_equilibrium_norm(1.0, lr=10.0, weight_decay=0.2),
        lambda: scale_norm(0.0, 1.0, 5, lr=0.1),
        lambda: scale_norm(1.0, -1.0, 5, lr=0.1),
        lambda: angular_step(lr=1.0, weight_decay=2.0),
        lambda: angular_step(lr=1.0, weight_decay=-0.1),
    ],
)
def test_what_has_no_rest_is_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call()
