import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import (
    homogeneous_pull,
    homogeneous_threshold,
    predicted_rank,
    signal_matrix,
    smooth_threshold,
)


@pytest.fixture(scope="module")
def prior(digits):
    """Pull and input of the collapsed layer on digits: onehot − class prior."""
    x, y = digits
    onehot = np.eye(10)[y.numpy()]
    return onehot - onehot.mean(0), x.numpy()


def test_digits_thresholds_of_2205_12510(prior):
    g, x = prior
    assert smooth_threshold(g, x) == pytest.approx(0.22507, abs=5e-6)
    values = [homogeneous_threshold(g, x, seed=seed).value for seed in range(3)]
    assert values == pytest.approx([0.15738] * 3, abs=5e-6)
    assert np.ptp(values) < 1e-7  # three sets of random starts find one maximum


def test_slope_one_on_both_sides_is_the_top_singular_value(prior):
    g, x = prior
    best = homogeneous_threshold(g, x, negative_slope=1.0)
    assert best.converged
    assert best.value == pytest.approx(np.linalg.svd(signal_matrix(g, x))[1][0], rel=1e-8)


def test_relu_ascent_beats_a_dense_scan_in_two_dimensions():
    rng = np.random.default_rng(3)
    h, g = rng.standard_normal((200, 2)), rng.standard_normal((200, 3))
    angles = np.linspace(0, 2 * np.pi, 20001)
    scan = homogeneous_pull(g, h, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    best = homogeneous_threshold(g, h)
    assert best.value >= scan.max() - 1e-12
    assert best.value <= scan.max() + 1e-6
    assert np.linalg.norm(best.direction) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0), st.floats(0.0, 0.9))
def test_threshold_scales_with_the_data_and_ignores_rotations(seed, scale, slope):
    rng = np.random.default_rng(seed)
    h, g = rng.standard_normal((40, 4)), rng.standard_normal((40, 3))
    turn, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    base = homogeneous_threshold(g, h, negative_slope=slope)
    turned = homogeneous_threshold(scale * g, h @ turn, negative_slope=slope, starts=base.direction[None] @ turn)
    assert turned.value >= scale * base.value * (1 - 1e-9)
    back = homogeneous_pull(g, h, (turned.direction @ turn.T)[None], slope)[0]
    assert back * scale == pytest.approx(turned.value, rel=1e-9)


def test_scale_of_a_direction_does_not_count_and_zero_pulls_nothing():
    rng = np.random.default_rng(0)
    h, g, w = rng.standard_normal((20, 3)), rng.standard_normal((20, 2)), rng.standard_normal((1, 3))
    assert homogeneous_pull(g, h, 7 * w) == pytest.approx(homogeneous_pull(g, h, w))
    assert homogeneous_pull(g, h, 0 * w) == 0
    assert homogeneous_threshold(0 * g, h).value == 0


def test_rank_counts_modes_above_the_decay():
    spectrum = np.array([0.5, 0.2, 0.199, 0.01])
    assert predicted_rank(spectrum, 0.2) == 1
    assert predicted_rank(spectrum, 0.2, margin=0.02) == 3
    assert predicted_rank(np.zeros(0), 0.2) == 0


@pytest.mark.parametrize(
    ("g", "h"),
    [(np.zeros((3, 1)), np.zeros((4, 1))), (np.zeros((0, 1)), np.zeros((0, 1))), (np.zeros(3), np.zeros((3, 1)))],
)
def test_bad_shapes_are_named(g, h):
    with pytest.raises(ValueError, match="g must be"):
        signal_matrix(g, h)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        smooth_threshold(np.full((2, 1), np.nan), np.ones((2, 1)))


def test_no_start_is_refused():
    with pytest.raises(ValueError, match="start"):
        homogeneous_threshold(np.ones((2, 1)), np.ones((2, 1)), n_random=0)
