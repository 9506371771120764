"""The claims of the studies of constraints can fail: each is given a wrong theory or a wrong method."""

from __future__ import annotations

import numpy as np
import pytest

from gaugefix.studies import Setting, constraint_solvers, l1_by_redundancy, symmetry_removal
from gaugefix.studies.registry import find_study
from gaugefix.studies.runner import run_claim

ONE = Setting((0,))


def claim(paper, name):
    return next(c for c in find_study(paper).claims if c.name == name)


def test_without_momentum_the_rate_is_another(monkeypatch):
    monkeypatch.setattr(l1_by_redundancy, "RATES", ((0.9, 0.0),))
    right = l1_by_redundancy.factor_decay
    monkeypatch.setattr(l1_by_redundancy, "factor_decay", lambda s, lr, momentum, gradient: right(s, lr))
    assert not run_claim(claim("2210.01212", "dying-rate"), ONE).passed


def test_a_wrong_factor_of_two_is_no_lasso(monkeypatch):
    right = l1_by_redundancy._coordinate_descent
    monkeypatch.setattr(l1_by_redundancy, "STEPS", 500)
    monkeypatch.setattr(l1_by_redundancy, "_coordinate_descent", lambda x, y, s: right(x, y, s / 2))
    l1_by_redundancy._solutions.cache_clear()
    assert not run_claim(claim("2210.01212", "lasso"), ONE).passed
    l1_by_redundancy._solutions.cache_clear()


def test_columns_and_ceiling_need_their_formulas(monkeypatch):
    """The part of the anchor along the survivors counts; so does the push of the decay itself."""

    def off_the_survivors(target, anchor, survivors, decay):
        alive = target > decay
        basis = np.linalg.svd(survivors[:, alive], full_matrices=False)[0]
        off = anchor[:, ~alive] - basis @ (basis.T @ anchor[:, ~alive])
        return decay * np.linalg.norm(off, axis=0) / (decay - target[~alive])

    monkeypatch.setattr(symmetry_removal, "collapsed_columns", off_the_survivors)
    assert not run_claim(claim("2408.15495", "columns"), ONE).passed
    right = symmetry_removal.relearning_ceiling
    monkeypatch.setattr(symmetry_removal, "relearning_ceiling", lambda *a: right(*a) * 1.3)
    assert not run_claim(claim("2408.15495", "ceiling"), ONE).passed


def test_a_wrong_strength_is_found_by_the_convex_solvers(monkeypatch):
    right = constraint_solvers.impose.penalty
    monkeypatch.setattr(constraint_solvers, "STRENGTHS", (0.1,))
    monkeypatch.setattr(constraint_solvers.impose, "penalty", lambda layer: right(layer, scale=1.01))
    found = run_claim(claim("2309.16932", "constraints"), ONE)
    assert found.error is None
    assert not found.cell_passed.any()


@pytest.mark.long
def test_a_slightly_wrong_strength_is_another_logistic_regression(monkeypatch):
    """One percent changes the objective at its minimum in second order, and that is seen."""
    right = constraint_solvers.impose.penalty
    monkeypatch.setattr(l1_by_redundancy, "LOGISTIC_STRENGTHS", (0.03,))
    assert run_claim(claim("2210.01212", "logistic"), ONE).passed
    monkeypatch.setattr(constraint_solvers.impose, "penalty", lambda layer: right(layer, scale=1.01))
    assert not run_claim(claim("2210.01212", "logistic"), ONE).passed
