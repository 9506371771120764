import numpy as np
import pytest

from gaugefix.theory import critical_decay, growth_rates


def test_sign_of_the_rate_flips_at_the_critical_decay():
    curvature = np.array([-0.3, -0.1, 0.4])
    critical = critical_decay(curvature)
    assert critical == pytest.approx(0.3)
    assert growth_rates(curvature, lr=0.1, weight_decay=0.99 * critical)[0] > 0
    assert (growth_rates(curvature, lr=0.1, weight_decay=1.01 * critical) < 0).all()


def test_a_convex_block_needs_no_decay_and_an_empty_one_is_refused():
    assert critical_decay(np.array([0.1, 2.0])) == 0
    with pytest.raises(ValueError, match="at least one"):
        critical_decay(np.zeros(0))


def test_one_step_onto_the_plane():
    assert growth_rates(np.array([10.0]), lr=0.1)[0] == -np.inf
