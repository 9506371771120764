"""The minimum of least fluctuation of a deep linear network: weights, sharpness, spectrum, limits, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.errors import ValidityWarning
from gaugefix.theory import DeepLinearSharpness, initial_sharpness, layer_sum


def random_model(seed: int, depth: int, n_out: int = 3, n_in: int = 4) -> DeepLinearSharpness:
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((n_in, 9)), rng.standard_normal((n_out, 9))
    return DeepLinearSharpness(rng.standard_normal((n_out, n_in)), x @ x.T / 9, noise @ noise.T / 9, depth)


def product(weights):
    out = np.eye(weights[0].shape[1])
    for w in weights:
        out = w @ out
    return out


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_the_weights_are_a_minimum_with_the_closed_form_sharpness_and_fluctuation(seed, depth, n_out, n_in):
    model = random_model(seed, depth, n_out, n_in)
    weights = model.weights(5, seed)
    assert product(weights) == pytest.approx(model.signal, abs=1e-8)
    assert model.trace_at(weights) == pytest.approx(model.trace, rel=1e-8)
    assert model.fluctuation_at(weights) == pytest.approx(model.fluctuation, rel=1e-8)
    assert model.trace_at(model.flattest().weights(5, seed)) == pytest.approx(model.trace_min, rel=1e-8)
    assert model.trace >= model.trace_min * (1 - 1e-9)
    assert model.spectrum().sum() == pytest.approx(model.trace, rel=1e-8)
    assert model.spectrum()[0] >= -1e-9 * model.lambda_max


@given(st.integers(0, 1000), st.integers(2, 4), st.floats(-0.4, 0.4))
@settings(max_examples=15, deadline=None)
def test_no_other_minimum_fluctuates_less(seed, depth, size):
    """Move along the orbit of the weights by any invertible matrix between two layers."""
    model = random_model(seed, depth)
    first, second, *rest = model.weights(4, seed)
    change = np.eye(4) + size * np.random.default_rng(seed).standard_normal((4, 4)) / 2
    moved = [change @ first, second @ np.linalg.inv(change), *rest]
    assert model.fluctuation_at(moved) >= model.fluctuation * (1 - 1e-9)
    assert model.trace_at(moved) >= model.trace_min * (1 - 1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_spectrum_is_that_of_the_network(depth):
    model = random_model(3, depth)
    root = torch.linalg.cholesky(torch.from_numpy(model.input_cov))

    def outputs(*weights):
        out = root
        for w in weights:
            out = w @ out
        return out.flatten()

    blocks = torch.autograd.functional.jacobian(outputs, tuple(map(torch.from_numpy, model.weights(4, 1))))
    jacobian = torch.cat([b.flatten(1) for b in blocks], dim=1)
    assert model.spectrum() == pytest.approx(torch.linalg.eigvalsh(jacobian @ jacobian.T).numpy(), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_commuting_covariances_have_the_largest_eigenvalue_written_out(depth):
    s_e, s_x, v = np.array([1.5, 0.8, 0.4]), np.array([1.2, 0.7, 0.3]), np.array([0.5, 1.0, 2.0])
    model = DeepLinearSharpness(np.diag(v), np.diag(s_x), np.diag(s_e), depth)
    s, d = np.sqrt(s_e) * v * np.sqrt(s_x), depth
    total, e, x = s.sum(), s_e.sum(), s_x.sum()
    c2 = total ** (-2 / d) * (e * x) ** (1 / d)
    c_last = total ** ((d - 2) / d) * e ** (-(d - 1) / d) * x ** (1 / d)
    c_first = total ** ((d - 2) / d) * e ** (1 / d) * x ** (-(d - 1) / d)
    pairs = [(d - 2) * c2 * a / b * t + c_last * t + c_first * a / b * u for a, b in zip(s, s_e, strict=True)
             for t, u in zip(s, s_x, strict=True)]  # fmt: skip
    assert model.lambda_max == pytest.approx(max(pairs), rel=1e-10)


@pytest.mark.parametrize(("depth", "ratio"), [(2, 0.3), (3, 0.3), (4, 0.1)])
def test_two_outputs_have_the_printed_example(depth, ratio):
    d, s = depth, ratio
    model = DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1, s**2]), d)
    printed = (d - 1) * 2 ** (1 / d) * (1 + s) ** ((d - 2) / d) * (1 + s**2) ** (1 / d) * (1 + 1 / s)
    printed += 2 ** ((d + 1) / d) * (1 + s) ** (2 * (d - 1) / d) * (1 + s**2) ** (-(d - 1) / d)
    assert model.trace == pytest.approx(printed, rel=1e-12)
    assert model.trace_min == pytest.approx(4 * d, rel=1e-12)  # D·d², not D·d^((D+2)/D)


@given(st.integers(0, 1000), st.integers(2, 4), st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_only_the_shape_of_the_noise_counts_and_equal_noise_is_flattest(seed, depth, size):
    model = random_model(seed, depth)
    louder = DeepLinearSharpness(model.signal, model.input_cov, size * model.noise_cov, depth)
    assert louder.trace == pytest.approx(model.trace, rel=1e-9)
    assert louder.fluctuation == pytest.approx(size * model.fluctuation, rel=1e-9)
    equal = DeepLinearSharpness(model.signal, model.input_cov, size * np.eye(3), depth)
    assert equal.ratio == pytest.approx(1, abs=1e-9)
    assert model.whitened().ratio == pytest.approx(1, abs=1e-9)


def test_directions_without_variance_do_not_count():
    base = random_model(0, 3, 2, 3)
    wider = np.zeros((4, 4))
    wider[:3, :3] = base.input_cov
    model = DeepLinearSharpness(np.hstack([base.signal, [[5.0], [-3.0]]]), wider, base.noise_cov, 3)
    assert model.trace == pytest.approx(base.trace, rel=1e-9)


def test_an_output_without_noise_makes_the_sharpness_grow_without_bound():
    model = DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1.0, 0.0]), 3)
    assert not model.valid
    assert model.trace == model.lambda_max == math.inf
    assert DeepLinearSharpness(np.eye(2), np.eye(2), np.diag([1.0, 1e-8]), 3).trace > 1e4  # the limit
    with pytest.raises(ValueError, match="without"):
        model.weights(2)
    with pytest.raises(ValueError, match="cannot be whitened"):
        model.whitened()
    alone = DeepLinearSharpness(
        np.array([[1.0], [2.0]]), np.eye(1), np.diag([1.0, 0.0]), 2
    )  # one mode, and it is noisy
    assert alone.valid
    assert alone.trace == pytest.approx(float(alone.trace_at(alone.weights(1))), rel=1e-12)


def test_a_narrow_network_keeps_the_largest_modes():
    model = DeepLinearSharpness(np.diag([2.0, 1.0]), np.eye(2), np.eye(2), 2)
    with pytest.warns(ValidityWarning, match="below the rank 2"):
        found = model.weights(1)
    assert product(found) == pytest.approx(np.diag([2.0, 0.0]), abs=1e-12)


def test_moments_of_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 3)) @ np.diag([1.5, 1.0, 0.5])
    signal = rng.standard_normal((2, 3))
    y = x @ signal.T + 4 + rng.standard_normal((20_000, 2)) * [1.0, 0.4]
    truth = DeepLinearSharpness(signal, np.diag([2.25, 1.0, 0.25]), np.diag([1.0, 0.16]), 2)
    assert DeepLinearSharpness.from_data(x, y, 2).trace == pytest.approx(truth.trace, rel=0.02)


def test_many_eigenvalues_of_a_wide_model_agree_with_lanczos(monkeypatch):
    model = random_model(1, 3, 6, 7)
    dense = model.spectrum()
    monkeypatch.setattr("gaugefix.theory.deep_linear_sharpness._DENSE", 10)
    assert model.spectrum(3) == pytest.approx(dense[-3:], rel=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1}, "depth >= 2"),
        ({"noise_cov": np.zeros((2, 2))}, "noise_cov is zero"),
        ({"noise_cov": np.diag([1.0, -1.0])}, "positive semidefinite"),
        ({"input_cov": np.eye(3)}, r"input_cov must be \(2, 2\)"),
        ({"input_cov": np.array([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
        ({"signal": np.zeros((2, 2))}, "sees no input"),
        ({"signal": np.full((2, 2), np.nan)}, "finite matrix"),
    ],
)
def test_what_has_no_solution_is_refused(change, message):
    given_ = {"signal": np.eye(2), "input_cov": np.eye(2), "noise_cov": np.eye(2), "depth": 2} | change
    with pytest.raises(ValueError, match=message):
        DeepLinearSharpness(**given_)


def test_the_mean_sharpness_of_random_weights():
    rng = np.random.default_rng(0)
    cov = np.diag([2.0, 1.0])
    weights = [0.5 * rng.standard_normal((20_000, 3, 2)), 0.8 * rng.standard_normal((20_000, 4, 3))]
    assert initial_sharpness((2, 3, 4), (0.25, 0.64), cov) == pytest.approx(
        layer_sum(weights, cov, np.eye(4)).mean(), rel=0.02
    )
    with pytest.raises(ValueError, match="One variance"):
        initial_sharpness((2, 3, 4), (0.25,), cov)
