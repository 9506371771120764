import numpy as np
import pytest

from gaugefix.theory import collapsed_columns, relearning_ceiling


def test_columns_are_the_stationary_point_to_first_order():
    """Gradient descent on the model itself; the error is of second order in the anchor."""
    rng = np.random.default_rng(0)
    m, decay = np.array([3.0, 1.6, 0.7, 0.2]), 1.0
    direction = rng.standard_normal((4, 4))
    errors = []
    for size in (1e-2, 1e-3):
        anchor, w = size * direction, 0.5 * rng.standard_normal((4, 4))
        for _ in range(20_000):
            w -= 0.05 * (w @ (w.T @ w - np.diag(m)) + decay * (w - anchor))
        predicted = collapsed_columns(m, anchor, w, decay)
        measured = np.linalg.norm(w, axis=0)[m < decay]
        errors.append(np.abs(measured / predicted - 1).max())
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]


def test_the_ceiling_is_the_time_of_the_linear_growth():
    """With u = w the start is linear: count its steps without the saturation of the full model."""
    lr, decay, b, floor, goal = 0.01, 0.4, 0.6, 1e-3, 0.3
    u, steps = floor, 0
    while u * u < goal:
        u, steps = u - lr * (-2 * b * u + decay * (u - floor)), steps + 1
    assert steps == pytest.approx(float(relearning_ceiling(goal, floor, b, lr, decay)), abs=1.5)
    for bad in ({"floor": 0.0, "b": 0.6}, {"floor": 1e-3, "b": 0.1}):
        with pytest.raises(ValueError, match="floor"):
            relearning_ceiling(goal, lr=lr, weight_decay=decay, **bad)
