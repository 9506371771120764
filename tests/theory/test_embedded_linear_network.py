"""The solution fits the target, has one kernel in every layer, and no other minimum has less entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import edln_solution


def problem(seed, d=3, e=4):
    rng = np.random.default_rng(seed)
    square = lambda n: rng.standard_normal((n, n)) + 2 * np.eye(n)  # noqa: E731
    a, b = square(d), square(e)
    maps = {"before": square(d), "after": square(e), "view": square(d)}
    return rng.standard_normal((e, d)), a @ a.T, b @ b.T, maps


def entropy(weights, inputs, noise, maps):
    before = [maps["before"] @ maps["view"]]
    for w in weights[:-1]:
        before.append(w @ before[-1])
    after = [maps["after"]]
    for w in weights[:0:-1]:
        after.append(after[-1] @ w)
    pairs = zip(before, reversed(after), strict=True)
    return sum(np.trace(a.T @ noise @ a) * np.trace(b @ inputs @ b.T) for b, a in pairs)


def product(weights, maps):
    out = maps["before"] @ maps["view"]
    for w in weights:
        out = w @ out
    return maps["after"] @ out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(3, 6), min_size=1, max_size=4))
def test_it_is_a_minimum_of_the_loss_with_the_entropy_it_says(seed, widths):
    target, inputs, noise, maps = problem(seed)
    found = edln_solution(target, inputs, noise, widths=widths, **maps, seed=seed)
    assert np.allclose(product(found.weights, maps), target, atol=1e-8)
    assert entropy(found.weights, inputs, noise, maps) == pytest.approx(found.fluctuation, rel=1e-8)
    for layer in found.layers:
        gram = layer.T @ layer
        assert np.allclose(gram / np.trace(gram), found.kernel / np.trace(found.kernel), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1))
def test_another_basis_of_the_hidden_layers_has_more_entropy(seed, size):
    target, inputs, noise, maps = problem(seed)
    found = edln_solution(target, inputs, noise, widths=(4, 4), **maps)
    rng = np.random.default_rng(seed + 1)
    g = [np.eye(4) + size * rng.standard_normal((4, 4)) / 4 for _ in range(2)]
    moved = [g[0] @ found.weights[0], g[1] @ found.weights[1] @ np.linalg.inv(g[0])]
    moved.append(found.weights[2] @ np.linalg.inv(g[1]))
    assert np.allclose(product(moved, maps), target, atol=1e-6)
    assert entropy(moved, inputs, noise, maps) >= found.fluctuation * (1 - 1e-9)


@given(st.integers(0, 1000))
def test_the_kernel_does_not_know_width_depth_maps_and_view(seed):
    target, inputs, noise, maps = problem(seed)
    other = problem(seed + 1)[3]
    one = edln_solution(target, inputs, noise, widths=(3,), **maps)
    two = edln_solution(target, inputs, noise, widths=(5, 7, 4), **other)
    assert np.allclose(one.kernel, two.kernel)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]
    turned = edln_solution(2 * turn @ target, inputs, 4 * turn @ noise @ turn.T, widths=(3,))
    assert np.allclose(turned.kernel / np.trace(turned.kernel), one.kernel / np.trace(one.kernel))


def test_a_target_of_low_rank_needs_no_more_width_than_its_rank():
    target = np.outer([1.0, 2.0], [1.0, -1.0, 3.0])
    found = edln_solution(target, np.eye(3), np.eye(2), widths=(1, 1))
    assert np.allclose(found.weights[2] @ found.weights[1] @ found.weights[0], target)
    assert len(found.singular_values) == 1


def test_directions_without_noise_are_not_fixed():
    assert edln_solution(np.eye(2), np.eye(2), np.eye(2), widths=(2,)).valid
    assert not edln_solution(np.eye(2), np.eye(2), np.diag([1.0, 0.0]), widths=(2,)).valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "at least one hidden layer"),
        ({"widths": (1,)}, "at least 2 units"),
        ({"widths": (2,), "before": np.zeros((2, 2))}, "before must be an invertible"),
        ({"widths": (2,), "view": np.eye(3)}, "view must be an invertible"),
        ({"widths": (2,), "noise": -np.eye(2)}, "noise must be a covariance"),
        ({"widths": (2,), "inputs": np.eye(3)}, r"inputs must be \(2, 2\)"),
    ],
)
def test_what_has_no_solution_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        edln_solution(np.eye(2), **{"inputs": np.eye(2), "noise": np.eye(2)} | options)
