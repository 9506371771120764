"""The bar: on real digits, training just below the predicted critical weight decay lives, just above it dies."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gaugefix import find_symmetries, load_task
from gaugefix.forecast import certificate, forecast
from gaugefix.measure import collapse_report

pytestmark = pytest.mark.long


def _minimise(model, data, weight_decay, iterations=400):
    """L-BFGS on the penalised objective, from the model's initial weights."""
    x, y = data
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        max_eval=3 * iterations,
        tolerance_grad=1e-9,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        penalty = weight_decay / 2 * sum(p.square().sum() for p in model.parameters())
        value = nn.functional.cross_entropy(model(x), y) + penalty
        value.backward()
        return value

    optimizer.step(closure)
    model.zero_grad(set_to_none=True)
    return float(model[2].weight.detach().norm())


@pytest.mark.parametrize(("activation", "published"), [("identity", 0.22507), ("tanh", 0.22507), ("relu", 0.15738)])
@pytest.mark.parametrize("seed", [0, 1])
def test_alive_below_and_dead_above(mlp, mlp_units, make_task, digits, activation, published, seed):
    def fresh():
        return mlp((64, 16, 10), activation, seed=seed, bias=False)

    model = fresh()
    found = forecast(make_task(model, digits), mlp_units(model, activation)).collapse
    assert found.lambda_c == pytest.approx(published, rel=5e-4)  # published with a free output bias, ours is decayed
    assert found.homogeneous == (activation == "relu")
    assert _minimise(fresh(), digits, 0.95 * found.lambda_c) > 0.1
    dead = fresh()
    assert _minimise(dead, digits, 1.05 * found.lambda_c) < 1e-2
    assert collapse_report(dict(dead.named_parameters()), mlp_units(dead, activation)).units[0].verdict == "collapsed"


@pytest.mark.slow
def test_a_decayed_hidden_bias_of_a_relu_layer_counts(mlp, mlp_units, make_task, digits):
    model = mlp((64, 16, 10), "relu")
    found = forecast(make_task(model, digits), mlp_units(model, "relu")).collapse
    assert found.lambda_c > 1.1 * 0.15738
    assert _minimise(mlp((64, 16, 10), "relu"), digits, 0.95 * found.lambda_c) > 0.1
    assert _minimise(mlp((64, 16, 10), "relu"), digits, 1.05 * found.lambda_c) < 1e-2


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param("relu", marks=pytest.mark.slow),
        pytest.param("identity", marks=pytest.mark.slow),
        pytest.param("tanh", marks=pytest.mark.slow),
    ],
)
def test_the_built_in_network_lives_and_dies_as_its_audit_foretells(activation):
    """The built-in digits tasks and their linear twin: λ_c from `forecast`, then full-batch descent."""

    def fresh():
        task = load_task("digits-mlp-tanh" if activation == "tanh" else "digits-mlp")
        return task if activation != "identity" else replace(task, model=_linear(task.model))

    task = fresh()
    data = [torch.cat(parts) for parts in zip(*task.batches(seed=0), strict=True)]
    limit = forecast(task, find_symmetries(task, verify=False)).collapse.lambda_c
    for factor, lives in ((0.95, True), (1.05, False)):
        model = fresh().model
        _descend(model, data, factor * limit, steps=1500, lr=1.0)
        norm = float(model[2].weight.detach().norm())
        assert norm > 0.1 if lives else norm < 1e-2, (activation, limit, factor, norm)


def _linear(model):
    return nn.Sequential(model[0], nn.Identity(), model[2])


def _descend(model, data, weight_decay, steps, lr=0.5):
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)


@pytest.mark.slow
def test_a_converged_relu_layer_is_certified(mlp, mlp_units, make_task, digits):
    model, decay = mlp((64, 32, 10), "relu", bias=False), 0.1
    _descend(model, digits, decay, 5000)
    task, units = make_task(model, digits, weight_decay=decay), mlp_units(model, "relu")
    found = forecast(task, units).classes[0]
    assert found.residual < 0.01
    assert 1 - 1e-6 < found.headroom < 1.01
    assert found.verdict == "saturated: more width cannot help"
    assert found.valid
    proof = certificate(task, units)
    assert proof.saturated
    assert proof.kappa == found.kappa
    folded = collapse_report(dict(model.named_parameters()), units).units[0]
    assert folded.distinct < 32  # the optimum has fewer directions than units: the rest are copies


def test_a_converged_tanh_layer_wants_more_width(mlp, mlp_units, make_task, digits):
    model, decay = mlp((64, 32, 10), "tanh", bias=False), 0.1
    _descend(model, digits, decay, 1500)
    found = forecast(make_task(model, digits, weight_decay=decay), mlp_units(model, "tanh")).classes[0]
    assert found.residual < 0.01
    assert found.headroom == pytest.approx(1.13, abs=0.01)
    assert found.verdict == "wants more width"


def test_rank_of_a_converged_linear_layer(mlp, mlp_units, make_task, digits):
    model, decay = mlp((64, 16, 10), "identity", bias=False), 0.06
    _minimise(model, digits, decay)
    units = mlp_units(model, "identity")
    found = forecast(make_task(model, digits, weight_decay=decay), units).classes[0]
    product = torch.linalg.svdvals((model[2].weight @ model[0].weight).detach())
    measured = int((product > 1e-4 * product[0]).sum())
    assert found.predicted_rank == measured
    assert 1 < measured < 9
    assert found.spectrum[:measured] == pytest.approx([decay] * measured, rel=1e-3)
