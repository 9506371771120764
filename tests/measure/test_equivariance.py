"""Identities of generators that change the output: exact for true ones, false for others, on several losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import Generator, HessianOperator, check_first_order, check_second_order, predicted_products

LOSSES = {
    "square": lambda m, b: (m(b[0]) - b[1]).square().sum(1),
    "exponential": lambda m, b: torch.exp(-(m(b[0]) * b[1]).sum(1) / 4),
    "cross-entropy": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1].argmax(1), reduction="none"),
}


class Normed(nn.Module):
    """A layer whose size a normalisation removes."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        h = self.inner(x)
        return self.outer((h / h.norm(dim=1, keepdim=True)).tanh())


def net(*layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*[make() for make in layers]).double()


def relu():
    return net(lambda: nn.Linear(4, 6, bias=False), nn.ReLU, lambda: nn.Linear(6, 3, bias=False))


def task(model, loss="square"):
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(11, n, generator=g, dtype=torch.float64) for n in (4, 3))
    data = [(x[:7], y[:7]), (x[7:], y[7:])]
    return Task(model.double(), LOSSES[loss], lambda: data, lr=0.1, weight_decay=0.01, batch_size=7)


def turn(n, seed=2):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a - a.mT


ROWS = torch.arange(6.0)[:, None]
TRUE = {
    "unit rescaled": (relu, Generator("rescale", {"0.weight": ROWS, "2.weight": -ROWS.mT})),
    "homogeneous": (relu, Generator("homogeneous", output=2)),
    "last layer": (relu, Generator("homogeneous", ("2.weight",), output=1.0)),
    "output turned": (relu, Generator("rotation", {"2.weight": (0, turn(3))}, output=turn(3))),
    "hidden turned": (
        lambda: net(lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 3)),
        Generator("rotation", {"0.weight": (0, turn(6)), "0.bias": (0, turn(6)), "1.weight": (1, turn(6))}),
    ),
    "scale-free": (Normed, Generator("scale", ("inner.weight",))),
    "shift of the output": (
        lambda: net(lambda: nn.Linear(4, 3)),
        Generator(lambda p: {"0.bias": torch.ones_like(p["0.bias"])}, output=torch.ones_like, name="shift"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", TRUE)
def test_identities_hold_to_rounding(case, loss):
    make, generator = TRUE[case]
    for check in (check_first_order, check_second_order):
        (found,) = check(task(make(), loss), generator)
        assert found.residual < 1e-13
        assert found.passed
        assert found.n_samples == 11


FALSE = {
    "wrong degree": (relu, Generator("homogeneous", output=3)),
    "not a symmetry": (relu, Generator("rescale", {"0.weight": ROWS, "2.weight": ROWS.mT})),
    "tanh is not homogeneous": (
        lambda: net(lambda: nn.Linear(4, 6, bias=False), nn.Tanh, lambda: nn.Linear(6, 3, bias=False)),
        Generator("homogeneous", output=2),
    ),
    "forgotten output": (relu, Generator("rotation", {"2.weight": (0, turn(3))})),
}


@pytest.mark.parametrize("case", FALSE)
def test_what_is_not_true_is_found(case):
    make, generator = FALSE[case]
    assert not any(check(task(make()), [generator])[0].passed for check in (check_first_order, check_second_order))


def test_the_product_is_that_of_the_hessian_and_needs_none():
    problem = task(relu(), "cross-entropy")
    h = HessianOperator(problem)
    slope, product = predicted_products(problem, Generator("homogeneous", output=2))
    assert slope == pytest.approx(sum(float((g * h.params[k]).sum()) for k, g in h.gradient().items()))
    image = h @ h.params
    assert all(torch.allclose(product[k], image[k], atol=1e-12) for k in image)


def test_bad_generators_are_named():
    with pytest.raises(MeasurementError, match="kind must be one of scale"):
        Generator("shear")
    with pytest.raises(MeasurementError, match="needs output=k"):
        Generator("homogeneous")
    with pytest.raises(MeasurementError, match=r"no parameter 3\.weight"):
        check_first_order(task(relu()), Generator("scale", ("3.weight",)))
    with pytest.raises(MeasurementError, match="need a task"):
        check_second_order(HessianOperator(task(relu())), Generator("homogeneous", output=2))
