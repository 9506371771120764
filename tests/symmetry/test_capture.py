"""Modules that torch.export refuses: traced another way and said so, or refused with the line and the way out."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.cases import X
from torch import Tensor, nn

from gaugefix.errors import TraceError
from gaugefix.symmetry import find_symmetries
from gaugefix.testing import check_symmetries


class Body(nn.Module):
    """tanh(W₁ x) read by W₂, with something of Python around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.log = nn.Linear(4, 6), nn.Linear(6, 3), []

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))


class KeepsArrays(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        self.log.append(h.detach().numpy().tolist())
        return self.second(h)


class FormatsNumbers(Body):
    def forward(self, x: Tensor, *, scale: float = 2.0, extra: Tensor | None = None) -> Tensor:
        h = self.hidden(x)
        self.log.append(f"{float(h.mean()):.2f}")
        return scale * self.second(h) if extra is None else extra


@pytest.mark.parametrize(
    ("make", "way"),
    [(KeepsArrays, "torch.fx was used"), (FormatsNumbers, "strict mode was used")],
)
def test_what_export_refuses_is_traced_another_way(make: type[Body], way: str) -> None:
    model = make()
    found = find_symmetries(model, (X,))
    plain = find_symmetries(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (X,))
    assert [s.group for s in found] == [s.group for s in plain] == ["S_6", "Z_2^6"]
    assert found[0].axes == ("first.weight[0]", "first.bias[0]", "second.weight[1]")
    assert found.verified
    assert found.opaque == ()
    assert len(found.skipped) == 1
    assert "torch.export refused the module" in found.skipped[0]
    assert way in found.skipped[0]
    check_symmetries(found, model, (X,))


def test_what_export_takes_is_not_remarked_upon() -> None:
    assert find_symmetries(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (X,)).skipped == ()


class Branching(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        if h.sum() > 0:
            return self.second(h)
        return -self.second(h)


class Chosen(Body):
    """The same with torch.where, as the error recommends."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        return torch.where(h.sum() > 0, self.second(h), -self.second(h))


class Conditional(Body):
    """The same with torch.cond."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        return torch.cond(h.sum() > 0, lambda h: self.second(h), lambda h: -self.second(h), (h,))


def test_a_branch_on_values_is_refused_with_its_line_and_the_way_out() -> None:
    with pytest.raises(TraceError) as caught:
        find_symmetries(Branching(), (X,))
    text = str(caught.value)
    assert text.startswith("Branching could not be exported by torch.export")
    assert "test_capture.py:" in text
    assert "in forward: `if h.sum() > 0:`" in text
    assert "depends on the values of tensors" in text
    assert "Eq(u0" not in text
    assert "torch.where" in text
    assert "torch.cond" in text


def test_the_recommended_torch_where_is_seen_through_as_far_as_it_goes() -> None:
    found = find_symmetries(Chosen(), (X,), verify=True)
    assert found.rejected == ()


def test_the_recommended_torch_cond_can_be_searched() -> None:
    found = find_symmetries(Conditional(), (X,), verify=True)
    assert found.rejected == ()
    assert "cond" in {o.op for o in found.opaque}


class Broken(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(x)


def test_an_error_of_the_module_itself_names_its_line() -> None:
    with pytest.raises(TraceError, match=r"test_capture.py:\d+, in forward: `return self.second\(x\)`"):
        find_symmetries(Broken(), (X,))


def test_an_operation_without_a_shape_rule_is_named() -> None:
    @torch.library.custom_op("gaugefix_tests::shapeless", mutates_args=())
    def shapeless(x: Tensor) -> Tensor:
        return x.clone()

    class Shapeless(Body):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.ops.gaugefix_tests.shapeless(self.hidden(x)))

    with pytest.raises(TraceError, match=r"shapeless.*in forward: `return self"):
        find_symmetries(Shapeless(), (X,))


def test_loggers_are_given_back() -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = (logger.disabled, logger.level)
    with pytest.raises(TraceError):
        find_symmetries(Branching(), (X,))
    assert (logger.disabled, logger.level) == before
