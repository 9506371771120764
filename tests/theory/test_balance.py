import numpy as np
import pytest

from gaugefix.theory import (
    predict_charge_step,
    predict_layerwise_charge_step,
    predict_momentum_charge_step,
)


def _pair_gradient(rng, u, w):
    """Gradients of a function of c = u·w alone: ⟨u, g_u⟩ = ⟨w, g_w⟩ for every sample."""
    pull = rng.standard_normal()
    return pull * w, pull * u


def test_sgd_with_decay_is_exact():
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal(4), rng.standard_normal(4)
    charge = np.array([u @ u - w @ w])
    for _ in range(30):
        gu, gw = _pair_gradient(rng, u, w)
        charge = predict_charge_step(charge, np.array([gu @ gu - gw @ gw]), lr=0.1, weight_decay=0.3)
        u, w = u - 0.1 * (gu + 0.3 * u), w - 0.1 * (gw + 0.3 * w)
    assert charge[0] == pytest.approx(u @ u - w @ w, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_momentum_is_exact_for_the_shifted_parameters(decay):
    rng = np.random.default_rng(1)
    theta, lr, mu = rng.standard_normal((2, 4)), 0.05, 0.8
    m = np.zeros_like(theta)
    shift = lr * mu / (1 - mu)
    form = np.array([1.0, -1.0])
    square = lambda a, b: np.array([form @ (a * b).sum(1)])  # noqa: E731
    charge = square(theta, theta)
    for _ in range(40):
        full = np.stack(_pair_gradient(rng, *theta)) + decay * theta
        charge = predict_momentum_charge_step(
            charge, square(theta, theta), square(full, full), square(m, full), lr=lr, momentum=mu, weight_decay=decay
        )
        m = mu * m + full
        theta = theta - lr * m
    assert charge == pytest.approx(square(theta - shift * m, theta - shift * m), rel=1e-11)


def test_layerwise_rates_conserve_their_own_charge():
    rng = np.random.default_rng(2)
    u, w = rng.standard_normal(3), rng.standard_normal(3)
    charge = np.array([u @ u / 0.2 - w @ w / 0.05])
    for _ in range(20):
        gu, gw = _pair_gradient(rng, u, w)
        sides = (np.array([gu @ gu]), np.array([gw @ gw]))
        charge = predict_layerwise_charge_step(charge, *sides, lr_outgoing=0.2, lr_incoming=0.05)
        u, w = u - 0.2 * gu, w - 0.05 * gw
    assert charge[0] == pytest.approx(u @ u / 0.2 - w @ w / 0.05, rel=1e-11)


def test_momentum_out_of_range():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        predict_momentum_charge_step(*[np.zeros(1)] * 4, lr=0.1, momentum=1.0)
