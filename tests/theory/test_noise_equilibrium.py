import numpy as np
import pytest

from gaugefix.theory import matrix_equilibrium, rescaling_equilibrium


def test_two_sides_have_a_closed_form():
    u, w = np.array([1.0, 8.0, 1e-9]), np.array([1.0, 0.5, 1e3])
    assert rescaling_equilibrium({1.0: u, -1.0: w}) == pytest.approx(np.log(u / w) / 4, abs=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_a_root_with_several_charges_and_decay(decay):
    rng = np.random.default_rng(0)
    noise, norms = ({q: rng.uniform(0.1, 3, 6) for q in (1.0, -2.0, 3.0)} for _ in range(2))
    c = rescaling_equilibrium(noise, norms, temperature=0.2, weight_decay=decay)
    drift = sum(q * (0.2 * np.exp(-2 * q * c) * noise[q] - 2 * decay * np.exp(2 * q * c) * norms[q]) for q in noise)
    assert drift == pytest.approx(np.zeros(6), abs=1e-9)


def test_missing_sides():
    one, none = np.array([1.0]), np.array([0.0])
    assert rescaling_equilibrium({1.0: one, -1.0: none})[0] == np.inf
    assert rescaling_equilibrium({1.0: none, -1.0: one})[0] == -np.inf
    assert np.isnan(rescaling_equilibrium({1.0: none, -1.0: none})[0])
    with pytest.raises(ValueError, match="norms"):
        rescaling_equilibrium({1.0: one}, weight_decay=0.1)


def test_matrices_balance():
    rng = np.random.default_rng(1)
    p, k = (m @ m.T for m in rng.standard_normal((2, 4, 7)))
    a = matrix_equilibrium(p, k)
    inverse = np.linalg.inv(a)
    assert inverse @ p @ inverse == pytest.approx(a @ k @ a, abs=1e-10)
    assert a == pytest.approx(a.T)
    assert np.isnan(matrix_equilibrium(np.zeros((2, 2)), np.eye(2))).all()
