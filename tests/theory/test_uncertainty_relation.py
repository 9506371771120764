"""The uncertainty relation by enumeration: never violated, reached, and refused where it means nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.errors import ValidityWarning
from gaugefix.theory import (
    average_bound,
    entropy_production_lower_bound,
    markov_tur,
    optimal_current,
    universal_bound,
)


def chain(seed: int, n: int = 3, steps: int = 2):
    rng = np.random.default_rng(seed)
    current = rng.standard_normal((n, n))
    return rng.dirichlet(np.ones(n), n).T, rng.dirichlet(np.ones(n)), steps, current - current.T


@given(st.integers(0, 100_000), st.integers(2, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_chain_violates_a_bound(seed, n, steps):
    found = markov_tur(*chain(seed, n, steps))
    assert found.relative_variance >= found.universal_bound * (1 - 1e-9)
    assert found.relative_variance >= found.tight_bound * (1 - 1e-9)
    assert found.tight_bound >= found.average_bound * (1 - 1e-9)
    assert found.entropy == pytest.approx(found.total_entropy + found.divergence, abs=1e-9)
    assert min(found.entropy, found.total_entropy, found.divergence) >= -1e-12


def test_without_the_divergence_it_is_no_bound():
    found = [markov_tur(*chain(s, 3, 1 + s % 4)) for s in range(400)]
    assert any(f.relative_variance < average_bound(max(f.total_entropy, 0)) for f in found)
    assert any(f.relative_variance < 2 / f.entropy for f in found)


@given(st.integers(0, 10_000), st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_the_universal_bound_holds_for_any_observable_and_is_reached(seed, n):
    rng = np.random.default_rng(seed)
    p, q, f = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n)), rng.standard_normal(n)
    r = np.log(q / p)
    variance = p @ (f - p @ f) ** 2
    assert universal_bound(p @ f, q @ f, r, p) <= variance * (1 + 1e-9)
    best = 2 - 3 * q / p
    assert universal_bound(p @ best, q @ best, r, p) == pytest.approx(p @ (best - p @ best) ** 2, rel=1e-8)


def test_outcomes_that_q_lacks_and_that_only_q_has():
    """With Q(c) = 0 ⟨e^R⟩ is still one; an outcome of Q alone leaves it below."""
    p, q, f = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.6, 0.0]), np.array([1.0, -1.0, 4.0])
    with np.errstate(divide="ignore"):
        r = np.log(q / p)
    variance = p @ (f - p @ f) ** 2
    assert 0 < universal_bound(p @ f, q @ f, r, p) <= variance
    lost = 0.5 * q  # half of Q lies where P is zero: ⟨f⟩_Q becomes ⟨f e^R⟩
    with np.errstate(divide="ignore"):
        assert universal_bound(p @ f, lost @ f, np.log(lost / p), p) == pytest.approx(
            universal_bound(p @ f, q @ f, r, p), rel=1e-12
        )
    assert universal_bound(1.0, 1.0, np.zeros(3)) == 0
    assert universal_bound(1.0, 0.0, np.full(2, -np.inf)) == 0


def test_a_start_without_some_states_has_no_finite_entropy_but_a_bound():
    kernel, _, steps, current = chain(1)
    found = markov_tur(kernel, np.array([0.6, 0.4, 0.0]), steps, current)
    assert found.entropy == math.inf
    assert found.average_bound == 0
    assert 0 < found.universal_bound <= found.relative_variance
    assert 0 < found.tight_bound <= found.relative_variance


def test_detailed_balance_has_no_current_and_no_entropy():
    symmetric = np.array([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]])
    found = markov_tur(symmetric, np.full(3, 1 / 3), 3, chain(0)[3])
    assert abs(found.mean) < 1e-15
    assert abs(found.entropy) < 1e-14
    assert found.average_bound > 1e12
    assert found.relative_variance > 1e12


def test_the_average_bound_is_the_conventional_one_close_to_equilibrium():
    assert average_bound(1e-6) == pytest.approx(2e6, rel=1e-5)
    assert average_bound(0.0) == math.inf
    assert average_bound(1e4) == 0
    with pytest.raises(ValueError, match=">= 0"):
        average_bound(-0.1)


def test_the_bound_from_samples():
    f = np.random.default_rng(0).normal(0.5, 1.0, 20_000)
    found = entropy_production_lower_bound(f)
    assert found.significant
    assert found.low < math.log(1.5) < found.high
    assert found.value == pytest.approx(math.log1p(2 * found.mean**2 / found.variance))
    idle = entropy_production_lower_bound(f - f.mean())
    assert not idle.significant
    assert idle.value == idle.low == 0
    wide = entropy_production_lower_bound(np.repeat(f[:200], 10), block=10)  # ten copies are one observation
    narrow = entropy_production_lower_bound(np.repeat(f[:200], 10))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_current_that_never_fluctuates():
    with pytest.warns(ValidityWarning, match="infinite"):
        assert entropy_production_lower_bound(np.ones(5)).value == math.inf
    with pytest.warns(ValidityWarning, match="zero"):
        assert entropy_production_lower_bound(np.zeros(5)).value == 0


def test_the_best_current_is_better_than_a_single_area_and_finds_none_in_noise():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 3))
    turn = np.array([[0.0, 0.4, 0.0], [-0.4, 0.0, 0.4], [0.0, -0.4, 0.0]])
    y = x @ turn.T + rng.standard_normal((20_000, 3))
    found = optimal_current(x, y)
    assert np.array_equal(found.matrix, -found.matrix.T)
    one = entropy_production_lower_bound(x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0])
    assert found.bound.value > 1.5 * one.value
    assert optimal_current(x, rng.standard_normal((20_000, 3))).bound.value < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: markov_tur(np.ones((2, 2)), np.full(2, 0.5), 1, np.zeros((2, 2))), "add up"),
        (lambda: markov_tur(np.eye(2), np.array([0.5, 0.6]), 1, np.zeros((2, 2))), "start must be"),
        (lambda: markov_tur(np.eye(2), np.full(2, 0.5), 1, np.ones((2, 2))), "antisymmetric"),
        (lambda: markov_tur(np.eye(2), np.full(2, 0.5), 20, np.zeros((2, 2))), "steps must be"),
        (lambda: markov_tur(np.eye(3), np.full(2, 0.5), 1, np.zeros((2, 2))), r"must be \(2, 2\)"),
        (lambda: entropy_production_lower_bound(np.ones(1)), "At least two"),
        (lambda: entropy_production_lower_bound(np.arange(4.0), block=3), "block"),
        (lambda: optimal_current(np.ones((9, 1)), np.ones((9, 1))), "2 to 20"),
        (lambda: optimal_current(np.ones((9, 4)), np.ones((9, 4))), "too few"),
        (lambda: optimal_current(np.ones((9, 2)), np.ones((9, 3))), "one shape"),
        (lambda: universal_bound(0, 1, np.zeros(0)), "at least one"),
        (lambda: universal_bound(0, 1, np.zeros(2), np.array([0.5, 0.6])), "add up to one"),
    ],
)
def test_what_is_no_process_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
