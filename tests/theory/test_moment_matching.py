from itertools import product

import pytest

from gaugefix.theory import n_atoms, predict_exponent


@pytest.mark.parametrize(("m", "k"), [(1, 0), (1, 5), (2, 3), (3, 2), (4, 4)])
def test_the_number_of_monomials_by_counting(m, k):
    assert n_atoms(m, k) == sum(sum(powers) <= k for powers in product(range(k + 1), repeat=m))


def test_the_exponent_grows_by_one_over_m_with_the_degree():
    assert predict_exponent(3, 2) == 1.5
    assert predict_exponent(4, 6) - predict_exponent(4, 5) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("m", "k"), [(0, 1), (1, -1)])
def test_bad_input_is_refused(m, k):
    for f in (n_atoms, predict_exponent):
        with pytest.raises(ValueError, match="at least"):
            f(m, k)
