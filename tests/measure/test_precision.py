"""Measurements in float32: the same numbers to fewer digits, and float64 again afterwards."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import (
    HessianOperator,
    TiedNeurons,
    entropic_loss,
    exact_copy,
    gradient_noise,
    hvp,
    lambda_min,
    lyapunov_exponent,
    precision,
    unit_noise,
    working_precision,
)


@pytest.fixture
def task(mlp, make_task, blobs):
    """A float32 network on float32 data, as a user has it."""
    made = make_task(mlp((5, 8, 3), "tanh").float(), (blobs[0].float(), blobs[1]), batch_size=16)
    return dataclasses.replace(made, lr=0.1, weight_decay=1e-3)


def _ones(task):
    return {k: torch.ones_like(p) for k, p in task.model.named_parameters()}


def _flat(product):
    return torch.cat([t.reshape(-1) for t in product.values()]).double().numpy()


MEASUREMENTS = {
    "noise": lambda task, _: [g.trace for g in gradient_noise(task).groups],
    "noise of units": lambda task, units: unit_noise(task, units)[0].incoming,
    "kept product": lambda task, _: _flat(HessianOperator(task) @ _ones(task)),
    "fresh product": lambda task, _: _flat(hvp(task, _ones(task))),
    "lowest curvature": lambda task, _: lambda_min(task)[0],
    "entropic loss": lambda task, _: entropic_loss(task).entropy,
    "Lyapunov": lambda task, _: lyapunov_exponent(task, TiedNeurons("0", "2", 0, 1), steps=60, burn_in=20).value,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_both_precisions_agree(name, task, mlp_units):
    units = mlp_units(task.model, "tanh")
    exact = np.asarray(MEASUREMENTS[name](task, units), dtype=float)
    with precision(torch.float32):
        single = np.asarray(MEASUREMENTS[name](task, units), dtype=float)
    assert single == pytest.approx(exact, rel=1e-3, abs=1e-4 * np.abs(exact).max())
    assert not np.array_equal(single, exact)


def test_the_precision_ends_with_the_block(task):
    assert working_precision() == torch.float64
    with precision(torch.float32):
        assert HessianOperator(task).params["0.weight"].dtype == torch.float32
        with precision(torch.float64):
            assert HessianOperator(task).params["0.weight"].dtype == torch.float64
        assert working_precision() == torch.float32
    with pytest.raises(KeyError), precision(torch.float32):
        raise KeyError
    assert HessianOperator(task).params["0.weight"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_types_that_are_too_coarse(dtype):
    with pytest.raises(MeasurementError, match=r"torch\.float32 or torch\.float64"), precision(dtype):
        pass


class _SinglePrecisionDevice(nn.Sequential):
    """Casts like a model on a device that has no float64."""

    def _apply(self, fn, recurse=True):
        if fn(torch.zeros(1)).dtype == torch.float64:
            raise TypeError("this device does not support float64")
        return super()._apply(fn, recurse)


def test_a_device_without_float64_keeps_its_own_precision(task):
    model = _SinglePrecisionDevice(*task.model)
    found = gradient_noise(dataclasses.replace(task, model=model))
    assert next(exact_copy(dataclasses.replace(task, model=model)).model.parameters()).dtype == torch.float32
    assert found.total.trace == pytest.approx(gradient_noise(task).total.trace, rel=1e-5)


class _Suspicious(torch.autograd.Function):
    """Its derivative is off by 1e-5 where the gradients of all samples arrive together."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 1e-5) if grad.abs().sum(1).all() else grad


def test_a_check_in_float32_does_not_vouch_for_float64():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    task = Task(
        nn.Linear(4, 2),
        lambda m, b: _Suspicious.apply(m(b)).square().sum(1),
        lambda: [x],
        lr=0.1,
        weight_decay=0.0,
        batch_size=6,
    )
    with precision(torch.float32):
        assert gradient_noise(task).method == "ghost norms"
    assert gradient_noise(task).method == "loop"
    with precision(torch.float32):
        assert gradient_noise(task).method == "ghost norms"


class _SlightlyWrong(torch.autograd.Function):
    """The square, with a forward derivative that is off by 1e-5."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * (1 + 1e-5) * ctx.saved_tensors[0] * tangent


def test_a_forward_derivative_that_does_for_float32_is_not_used_in_float64():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    task = Task(
        nn.Linear(4, 2), lambda m, b: _SlightlyWrong.apply(m(b)).pow(3).sum(1), lambda: [x],
        lr=0.1, weight_decay=0.0, batch_size=6,
    )  # fmt: skip
    with precision(torch.float32):
        coarse = hvp(task, _ones(task))
    exact = HessianOperator(task) @ _ones(task)
    assert _flat(hvp(task, _ones(task))) == pytest.approx(_flat(exact), rel=1e-12)
    assert _flat(coarse) == pytest.approx(_flat(exact), rel=1e-3)
