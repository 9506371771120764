"""The stationary law of SGD on a product: closed forms, limits, the collapse, and what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gaugefix.errors import ValidityWarning
from gaugefix.theory import StationaryDistribution, collapse_lr, landscape_moments, lyapunov_exponent, zero_exponent

ALPHA, BETA = (0.8, 0.8, 100.8), (1.0, 1.0)
T_C = 1 / 100.8


def law(share: float, **changes: object) -> StationaryDistribution:
    return StationaryDistribution(**{"alpha": ALPHA, "beta": BETA, "temperature": share * T_C, **changes})  # type: ignore[arg-type]


def closed_form(v: np.ndarray, t: float, b2: float = 1.0) -> np.ndarray:
    """Depth 1, written out: result 7 of arXiv 2308.06671."""
    (a1, a2, a3), b1 = ALPHA, BETA[0]
    root = math.sqrt(a1 * a3 - a2**2)
    noise = a1 * v**2 - 2 * a2 * v + a3
    angle = np.arctan((a1 * v - a2) / root)
    return np.asarray(
        v ** (b2 / (2 * a3 * t) - 1.5)
        * noise ** (-1 - b2 / (4 * t * a3))
        * np.exp(-(a3 * b1 - a2 * b2) / (2 * t * a3 * root) * angle)
    )


@pytest.mark.parametrize(("share", "decay"), [(0.25, 0.0), (0.5, 0.0), (0.3, 0.4)])
def test_depth_one_has_its_closed_form(share: float, decay: float) -> None:
    found = law(share, weight_decay=decay)
    v = np.geomspace(1e-3, 30, 50)
    ratio = found.pdf(v) / closed_form(v, share * T_C, 1 - decay / 2)
    assert np.allclose(ratio, ratio[0], rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 10])
def test_depth_one_does_not_depend_on_the_width(width: int) -> None:
    assert law(0.4, width=width).mean == pytest.approx(law(0.4).mean, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "mean"),
    [
        ({"depth": 2, "temperature": 0.25 / 100.8}, 0.6120),
        ({"depth": 2, "temperature": 0.5 / 100.8, "width": 3}, 0.510),
        ({"temperature": 0.4 / 100.8, "weight_decay": 0.4}, 0.4010),
    ],
)
def test_known_means(changes: dict[str, float], mean: float) -> None:
    assert law(1, **changes).mean == pytest.approx(mean, abs=6e-4)


def test_linear_regression_is_a_student_like_law() -> None:
    found = StationaryDistribution((0.8, 0.8, 9.8), (1.0, 1.0), 0.01, depth=0, weight_decay=0.2)
    assert (found.mean, found.std) == pytest.approx((1 / 1.1, 0.28719), abs=1e-4)  # λ = 2γ: the minimum is β₂/(β₁ + γ)
    assert float(found.cdf(found.mean)) == pytest.approx(0.5, abs=0.05)


@given(
    share=st.floats(0.05, 0.95), depth=st.integers(0, 3), width=st.integers(1, 4), a2=st.floats(-3, 3),
    scale=st.floats(0.01, 100),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_it_is_a_distribution(share: float, depth: int, width: int, a2: float, scale: float) -> None:
    """Also with another unit of v: y → c·y multiplies v by c."""
    alpha, beta = (0.8, a2 * scale, 100.8 * scale**2), (1.0, scale)
    found = StationaryDistribution(alpha, beta, share / 100.8 / scale, depth, width)
    assert found._mass[-1] == pytest.approx(1, abs=1e-6)
    assert np.all(np.diff(found._mass) >= 0)
    assert np.all(found._density >= 0)
    q = np.array([0.3, 0.5, 0.9])
    assert np.allclose(found.cdf(found.ppf(q)), q, atol=1e-4) or found.ppf(0.3) < 1e-200
    assert found.std >= 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_law_narrows_around_the_minimum_as_the_temperature_falls(depth: int) -> None:
    cold = law(1e-3, depth=depth)
    assert cold.mean == pytest.approx(1, abs=0.01)
    assert cold.mode == pytest.approx(1, abs=0.02)
    assert cold.std < law(0.01, depth=depth).std < 0.2


def test_without_input_noise_it_is_a_gamma_law() -> None:
    a3, t = 4.0, 0.02
    found = StationaryDistribution((1e-9, 0.0, a3), (1.0, 1.0), t)
    gamma = stats.gamma(1 / (2 * t * a3) - 0.5, scale=2 * t * a3)
    v = np.linspace(0.3, 2, 9)
    assert np.allclose(found.pdf(v), gamma.pdf(v), rtol=1e-4)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_tail(depth: int) -> None:
    found = law(0.5, depth=depth)
    far = np.array([1e4, 1e5])
    if depth == 0:
        assert found.pdf(far)[0] < 1e-100
        return
    slope = np.diff(np.log(found.pdf(far))) / np.diff(np.log(far))
    assert slope[0] == pytest.approx(found.tail_exponent, abs=0.02)


def test_moments_agree_with_quadrature() -> None:
    found, t = law(0.25), 0.25 * T_C
    total, first = (
        integrate.quad(lambda s, k=k: np.exp(s * (k + 1)) * closed_form(np.exp(s), t), -30, 25, limit=2000)[0]
        for k in (0, 1)
    )
    assert found.mean == pytest.approx(first / total, rel=1e-6)


def test_towards_the_collapse_all_mass_goes_to_zero() -> None:
    shares = (0.5, 0.9, 0.98, 0.999)
    laws = [law(s) for s in shares]
    assert [x.mean for x in laws] == sorted((x.mean for x in laws), reverse=True)
    assert laws[-1].mean < 0.002
    assert float(laws[-1].cdf(1e-6)) > 0.98
    with pytest.warns(ValidityWarning, match="collapse temperature"):
        dead = law(1.0)
    assert (dead.collapsed, dead.mean, dead.std, dead.mode) == (True, 0.0, 0.0, 0.0)
    assert (float(dead.pdf(0.1)), float(dead.cdf(0.0)), float(dead.cdf(-1.0)), float(dead.ppf(0.7))) == (0, 1, 0, 0)


def test_weight_decay_lowers_the_collapse_temperature() -> None:
    assert law(0.1, weight_decay=0.4).collapse_temperature == pytest.approx(0.8 * T_C)
    with pytest.warns(ValidityWarning):
        assert law(0.1, weight_decay=2.0).collapse_temperature == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"temperature": math.nan}, "temperature > 0"),
        ({"alpha": (1.0, 1.0, 1.0)}, "is not a noise"),
        ({"alpha": (0.0, 0.0, 1.0)}, r"alpha\[0\] > 0"),
        ({"beta": (1.0, -0.5)}, "flip the sign of y"),
        ({"depth": 2, "weight_decay": 0.1}, "No law is known"),
        ({"depth": -1}, "depth >= 0"),
    ],
)
def test_what_has_no_law_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        law(0.5, **changes)


def test_from_data_flips_a_negative_relation() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 2000)
    y = 0.7 * x + rng.normal(size=2000)
    one = StationaryDistribution.from_data(x, y, lr=0.02, batch_size=4)
    other = StationaryDistribution.from_data(x, -y, lr=0.02, batch_size=4)
    assert one.temperature == 0.005
    assert one.mean == pytest.approx(other.mean, rel=1e-9)
    with pytest.raises(ValueError, match="vectors of one length"):
        landscape_moments(x, y[:-1])


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_collapse_lr_is_where_the_exponent_vanishes(seed: int) -> None:
    z = np.random.default_rng(seed).normal(0.3, 1.5, 400)
    lr = collapse_lr(z)
    if 0 < lr < math.inf:
        assert abs(lyapunov_exponent(-2 * z, lr)) < 1e-9
        assert lyapunov_exponent(-2 * z, lr / 3) > 0


def test_collapse_lr_at_its_limits() -> None:
    assert collapse_lr(np.array([-1.0, 0.5])) == 0  # nothing to learn
    assert collapse_lr(np.array([1.0, 1.0]), weight_decay=2.0) == 0
    assert collapse_lr(np.array([1.0, 2.0])) == math.inf  # every sample pulls away
    x = np.linspace(-math.sqrt(3), math.sqrt(3), 200)
    z = np.concatenate([x * (x + 0.01 * 10 * e) for e in (-1, 1)]) / 10  # small noise: continuous time is exact
    assert collapse_lr(z, exact=False) == pytest.approx(z.mean() / (z.var() + z.mean() ** 2))
    assert collapse_lr(z, batch_size=8, exact=False) > collapse_lr(z, exact=False)
    with pytest.raises(ValueError, match="batch means"):
        collapse_lr(z, batch_size=8)


def test_no_warning_below_the_collapse() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law(0.99)


def test_zero_exponent_is_the_power_of_the_distribution_function() -> None:
    """In continuous time against the law itself, at a finite step against the threshold."""
    rng = np.random.default_rng(0)
    z = rng.normal(1, 10, 400_000)
    z *= 1 / z.mean()
    lr = 0.7 * z.mean() / z.var()
    found = law(0.7)
    slope = np.diff(np.log(found.cdf(np.array([1e-9, 1e-6])))) / math.log(1e3)
    assert zero_exponent(z, lr) == pytest.approx(slope[0], abs=0.02)
    assert zero_exponent(z, 0.999 * collapse_lr(z)) < 1e-3
    assert math.isnan(zero_exponent(z, 1.01 * collapse_lr(z)))
    assert math.isnan(zero_exponent(z, lr / 10))
