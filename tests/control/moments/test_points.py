"""Moment compression of points and data sets: what must stay, stays to rounding, whatever the cloud looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.control import compress_dataset, compress_points, moment_error
from gaugefix.errors import ControlError, ValidityWarning
from gaugefix.theory import n_atoms

CLOUDS = {
    "cube": lambda rng, d, m: rng.uniform(-1, 1, (d, m)),
    "gauss": lambda rng, d, m: rng.standard_normal((d, m)) * 10.0 ** rng.uniform(-3, 3, m) + 5,
    "lattice": lambda rng, d, m: rng.integers(0, 3, (d, m)).astype(float),
    "line": lambda rng, d, m: rng.standard_normal((d, 1)) * np.ones(m),
    "constant column": lambda rng, d, m: np.column_stack([np.ones(d), rng.standard_normal((d, m - 1))]),
    "heavy tails": lambda rng, d, m: rng.standard_cauchy((d, m)),
}


@st.composite
def problems(draw):
    """Points, weights with zeros among them, a degree and a target."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    m, k = draw(st.sampled_from([(1, 1), (1, 4), (2, 0), (2, 1), (2, 3), (3, 2), (4, 1)]))
    d = draw(st.integers(n_atoms(m, k) + 1, 400))
    x = CLOUDS[draw(st.sampled_from(sorted(CLOUDS)))](rng, d, m)
    weights = rng.uniform(0, 2, d) * (rng.uniform(size=d) > 0.1)
    weights[0] = 1.0
    target = draw(st.none() | st.integers(n_atoms(m, k), d))
    return x, weights, k, target


@settings(deadline=None, max_examples=60)
@given(problems())
def test_weights_are_nonnegative_and_keep_total_and_moments(problem):
    x, weights, k, target = problem
    found = compress_points(x, k, target, weights)
    indices, kept = found
    assert (kept > 0).all()
    assert kept.sum() == pytest.approx(weights.sum(), rel=1e-12)
    assert len(np.unique(indices)) == len(indices) == len(found)
    assert (np.diff(indices) > 0).all()
    assert (weights[indices] > 0).all()
    assert len(found) <= (n_atoms(x.shape[1], k) if target is None else target)
    assert found.error == moment_error(x, indices, kept, k, weights=weights) < 1e-12


@settings(deadline=None, max_examples=30)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(problem, random):
    x, weights, k, target = problem
    weights = np.ones(len(x))  # so that equal points are interchangeable
    order = np.array(random.sample(range(len(x)), len(x)))
    one, other = compress_points(x, k, target, weights), compress_points(x[order], k, target, weights[order])

    def measure(points, found):
        return sorted(map(tuple, np.column_stack([points[found.indices], found.weights])))

    assert measure(x, one) == measure(x[order], other)


@settings(deadline=None, max_examples=30)
@given(problems(), st.integers(0, 1000))
def test_moments_of_affine_images_are_kept_and_a_common_scale_changes_nothing(problem, seed):
    x, weights, k, target = problem
    rng = np.random.default_rng(seed)
    indices, kept = compress_points(x, k, target, weights)
    matrix = rng.standard_normal((x.shape[1], x.shape[1]))
    scale = np.abs(x).max()
    assert moment_error(x / scale @ matrix + rng.standard_normal(x.shape[1]), indices, kept, k, weights=weights) < 1e-11
    again = compress_points(4.0 * x, k, target, weights)  # a power of two, so that nothing is rounded
    assert np.array_equal(again.indices, indices)
    assert np.array_equal(again.weights, kept)


@pytest.mark.parametrize(("m", "k"), [(1, 5), (2, 3), (3, 2), (3, 3), (5, 2)])
def test_raw_moments_are_kept_and_an_explicit_target_is_met_exactly(m, k):
    x = np.random.default_rng(m).uniform(-1, 1, (1500, m))
    for target in (n_atoms(m, k), 100, 777, 1499):
        indices, kept = compress_points(x, k, target)
        assert len(indices) == target
        for degree in range(k + 1):
            tensor, few = np.ones(len(x)), np.ones(len(indices))
            for _ in range(degree):
                tensor = tensor[..., None] * x.reshape(len(x), *[1] * (tensor.ndim - 1), m)
                few = few[..., None] * x[indices].reshape(len(indices), *[1] * (few.ndim - 1), m)
            assert np.allclose(np.tensordot(kept, few, 1), tensor.sum(0), rtol=0, atol=1e-10)


def test_a_polynomial_is_exact_and_the_next_degree_is_not():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1000, 2))
    indices, kept = compress_points(x, 3)
    cubic, quartic = (lambda z: z[:, 0] ** 2 * z[:, 1]), (lambda z: z[:, 0] ** 4)
    assert kept @ cubic(x[indices]) == pytest.approx(cubic(x).sum(), abs=1e-10)
    assert abs(kept @ quartic(x[indices]) - quartic(x).sum()) > 1e-3
    assert moment_error(x, indices, kept, 4) > 1e-4


@pytest.mark.parametrize(
    ("x", "atoms"),
    [
        (np.ones((50, 2)), 1),
        (np.repeat([[0.0, 1.0], [2.0, 3.0]], 30, axis=0), 2),
        (np.linspace(0, 1, 80)[:, None] * [1.0, 2.0], 3),  # on a line: one variable
        (np.random.default_rng(0).integers(0, 2, (80, 2)).astype(float), 4),  # x² = x, so four monomials are left
    ],
)
def test_a_degenerate_cloud_needs_fewer(x, atoms):
    found = compress_points(x, 2)
    assert len(found) == atoms
    assert found.error < 1e-13


def test_points_of_weight_zero_are_never_kept_and_tensors_are_taken():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    weights = np.r_[np.zeros(100), np.ones(100)]
    found = compress_points(x, 2, 40, weights)
    assert found.indices.min() >= 100
    assert found.to_dict()["degree"] == 2


def test_what_cannot_be_met_is_said():
    x = np.random.default_rng(0).uniform(size=(30, 3))
    with pytest.warns(ValidityWarning, match="raised to 20"):
        assert len(compress_points(x, 3, 5)) == 20
    with pytest.warns(ValidityWarning, match="no fewer than the 30 points"):
        indices, kept = compress_points(x, 4, 5)
    assert np.array_equal(indices, np.arange(30))
    assert np.array_equal(kept, np.ones(30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones(5)}, r"matrix .points, coordinates.*\(5,\)"),
        ({"X": np.ones((0, 2))}, "at least one entry"),
        ({"X": np.array([[1.0, np.nan]])}, r"X\[0, 1\] is nan"),
        ({"k": -1}, "k must be an integer >= 0, got -1"),
        ({"k": 1.5}, "got 1.5"),
        ({"target": 0}, "target.*got 0"),
        ({"target": -0.1}, "got -0.1"),
        ({"target": 2.5}, "got 2.5"),
        ({"target": float("nan")}, "got nan"),
        ({"weights": -np.ones(9)}, "weights must be numbers >= 0.*got -1"),
        ({"weights": np.zeros(9)}, "not all zero"),
        ({"weights": np.full(9, np.inf)}, "got inf"),
        ({"weights": np.ones(3)}, r"each of the 9 points, got shape \(3,\)"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ControlError, match=message):
        compress_points(**{"X": np.arange(18.0).reshape(9, 2), "k": 1, **change})
    assert issubclass(ControlError, ValueError)


def test_indices_that_do_not_fit_are_refused():
    for at in (np.array([9]), np.array([-1]), np.array([0, 1])):
        with pytest.raises(ControlError, match="positions below 9"):
            moment_error(np.arange(18.0).reshape(9, 2), at, np.ones(1), 1)


# Data sets


def test_every_linear_model_has_the_same_loss_on_few_rows_of_diabetes():
    """442 rows of 10 features, one of them binary: 77 rows are enough for every squared loss."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    rows, c = compress_dataset(x, y, k=2)
    assert len(rows) == 77
    theta = np.random.default_rng(0).standard_normal((10, 50))
    losses = ((x @ theta - y[:, None]) ** 2).mean(0)
    few = c @ (x[rows] @ theta - y[rows, None]) ** 2 / len(x)
    assert np.abs(losses - few).max() < 1e-10
    root = np.sqrt(c)
    full = np.linalg.lstsq(x, y)[0]
    assert np.abs(np.linalg.lstsq(root[:, None] * x[rows], root * y[rows])[0] - full).max() < 1e-10
    ridge = np.linalg.solve(x.T @ x + 3 * np.eye(10), x.T @ y)
    weighted = x[rows].T * c
    assert np.abs(np.linalg.solve(weighted @ x[rows] + 3 * np.eye(10), weighted @ y[rows]) - ridge).max() < 1e-10


def test_classes_are_compressed_on_their_own():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((600, 2)), np.r_[np.zeros(400), np.ones(200)].astype(int)
    found = compress_dataset(torch.from_numpy(x), torch.from_numpy(y), 2, 90)
    assert len(found) == 90
    for label, size in ((0, 400), (1, 200)):
        mine = y[found.indices] == label
        assert mine.sum() == 90 * size / 600
        assert found.weights[mine].sum() == pytest.approx(size)
        assert found.weights[mine] @ x[found.indices][mine] == pytest.approx(x[y == label].sum(0))
    together = compress_dataset(x, y, 2, 90, stratify=False)  # moments of (x, y)
    assert together.weights @ (x * y[:, None])[together.indices] == pytest.approx((x * y[:, None]).sum(0))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(8), "each of the 9 rows"),
        (np.zeros((9, 2), dtype=int), "one number for each row"),
        (np.full(9, np.nan), "y has entries that are not finite"),
    ],
)
def test_targets_that_do_not_fit_are_refused(y, message):
    with pytest.raises(ControlError, match=message):
        compress_dataset(np.arange(18.0).reshape(9, 2), y, 1)
