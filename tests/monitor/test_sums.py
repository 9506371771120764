"""Sums over units by index plans, against taking every slice apart."""

from __future__ import annotations

import pytest
import torch
from tests import cases
from torch import Tensor, nn

from gaugefix.monitor import sums
from gaugefix.monitor.sums import Slot, UnitSums
from gaugefix.monitor.watched import watch
from gaugefix.symmetry import find_symmetries

#: blocks, fibers, parts of fused and of stacked weights; the others of the zoo repeat them
CHOSEN = {
    "mlp-relu", "residual-open-rms", "einsum", "dense-leaky", "mixture-stacked", "attention-chunk-matmul-bias",
    "attention-rotary", "multihead", "encoder-pre-relu", "gpt2", "gpt2-tied", "convolutions",
}  # fmt: skip
CASES = [c if c.name in CHOSEN else pytest.param(c, marks=pytest.mark.slow, id=c.name) for c in cases.CASES]


def reference(slot: Slot, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Slice by slice."""
    parts = [w * (s.take(a[s.param]) * s.take(b[s.param])).reshape(slot.n, -1).sum(1) for s, w in slot.terms]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_over_units_of_the_zoo(case: cases.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.make()
    plan = watch(find_symmetries(model, case.args, verify=False), dict(model.named_parameters()))
    params = {n: p.detach().double() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    grads = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in params.items()}
    for chunk in (sums.CHUNK, 7):  # 7: every tensor is cut into pieces, nothing is stacked
        monkeypatch.setattr(sums, "CHUNK", chunk)
        add = UnitSums(params, list(plan.slots.values()))
        got = add({"p": params, "g": grads}, [("p", "p"), ("p", "g")])
        for slot in plan.slots.values():
            start, stop = add.ranges[slot.name]
            torch.testing.assert_close(got[0, start:stop], reference(slot, params, params), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(got[1, start:stop], reference(slot, params, grads), rtol=1e-10, atol=1e-10)


def stack(depth: int) -> tuple[dict[str, nn.Parameter], list[Slot]]:
    model = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())))
    plan = watch(find_symmetries(model, (torch.zeros(2, 6),), verify=False), dict(model.named_parameters()))
    return dict(model.named_parameters()), list(plan.slots.values())


def test_the_number_of_kernels_does_not_grow_with_depth() -> None:
    """Counted by the dispatcher: layers of one shape are stacked."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = str(func)
            self.calls += not any(view in name for view in ("view", "detach", "unsqueeze", "select", "slice", "alias"))
            return func(*args, **(kwargs or {}))

    counts = []
    for depth in (4, 40):
        params, slots = stack(depth)
        add = UnitSums(params, slots)
        with Count() as count, torch.no_grad():
            add({"p": params}, [("p", "p")])
        counts.append(count.calls)
    assert counts[1] <= counts[0] + 6  # a few more groups at most, not ten times more


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    params, slots = stack(3)
    half = {n: (100 * p.detach()).to(dtype) for n, p in params.items()}
    add = UnitSums(half, slots)
    got = add({"p": half}, [("p", "p")])[0]
    exact = {n: p.double() for n, p in half.items()}
    assert got.dtype == torch.float32
    for slot in slots:
        start, stop = add.ranges[slot.name]
        torch.testing.assert_close(got[start:stop].double(), reference(slot, exact, exact), rtol=1e-5, atol=0)


def test_parameters_without_a_gradient_count_as_zero() -> None:
    params, slots = stack(3)
    add = UnitSums(params, slots)
    some: dict[str, Tensor | None] = dict.fromkeys(params)
    assert not add({"p": params, "g": some}, [("g", "g")]).any()
    some["0.weight"] = torch.ones(6, 6)
    got = add({"p": params, "g": some}, [("g", "g"), ("p", "g")])
    assert got[0].max() == 6
    assert got.isfinite().all()
