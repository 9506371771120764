"""The same problems given to solvers that know nothing of factors: what strength is in their terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix.control import impose

pytestmark = pytest.mark.peer
N, SIZE = 80, 20


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, SIZE))
    truth = np.where(np.arange(SIZE) % 4 < 2, 0.0, rng.standard_normal(SIZE))
    return x, x @ truth + 0.3 * rng.standard_normal(N)


def solve(constrain, loss):
    layer = nn.Linear(SIZE, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(1, SIZE, generator=torch.Generator().manual_seed(0)))
    constrain(layer)
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=3000, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
                               tolerance_change=1e-16)  # fmt: skip

    def closure():
        solver.zero_grad()
        value = loss(layer) + impose.penalty(layer)
        value.backward()
        return value

    solver.step(closure)
    impose.collapse_(layer)
    return layer.weight.detach().numpy()[0]


def check(found, expected):
    assert 0 < (expected == 0).sum() < SIZE
    assert np.array_equal(found == 0, expected == 0)
    assert np.abs(found - expected).max() < 1e-6


def test_alpha_of_lasso_is_half_the_strength_with_mseloss(problem):
    """The benchmark of convex problems has celer and skglm too; they compile for a minute."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = problem
    expected = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-12).fit(x, y).coef_
    inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    loss = nn.MSELoss()
    check(solve(lambda m: impose.sparse(m, "weight", strength=0.2), lambda m: loss(m(inputs), outputs)), expected)


def test_c_of_logistic_regression_is_one_over_n_times_strength(problem):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = problem
    labels = (y > 0).astype(float)
    model = linear_model.LogisticRegression(
        C=1 / (N * 0.03), l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=10_000
    )
    expected = model.fit(x, labels).coef_[0]
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)

    def loss(layer):
        return nn.functional.binary_cross_entropy_with_logits(layer(inputs)[:, 0], targets)

    check(solve(lambda m: impose.sparse(m, "weight", strength=0.03), loss), expected)


def test_alpha_of_group_lasso_is_the_strength(problem):
    skglm = pytest.importorskip("skglm")
    x, y = problem
    expected = (
        skglm
        .GroupLasso(groups=[list(range(k, SIZE, 4)) for k in range(4)], alpha=0.3, fit_intercept=False, tol=1e-12)
        .fit(x, y)
        .coef_
    )
    inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)
    labels = (torch.arange(SIZE) % 4)[None]
    check(
        solve(
            lambda m: impose.group_sparse(m, "weight", strength=0.3, groups=labels),
            lambda m: (m(inputs)[:, 0] - outputs).square().sum() / (2 * N),
        ),
        expected,
    )
