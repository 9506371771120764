"""Slices read and write what they say, restricted dimensions included."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cases import CASES, Attention, numbers

from gaugefix.symmetry import Slice, Units, find_symmetries


@st.composite
def slices(draw: st.DrawFn) -> tuple[Slice, tuple[int, ...]]:
    """A slice with all its positions distinct, and the shape of its tensor."""
    fibers, units, entries = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    ndim, per_fiber = draw(st.integers(1, 3)), draw(st.booleans())
    shape = [draw(st.integers(2, 5)) for _ in range(ndim)]
    dim = draw(st.integers(0, ndim - 1))
    shape[dim] = fibers * units * entries + draw(st.integers(0, 2))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    index = rng.permutation(shape[dim])[: fibers * units * entries].reshape(fibers, units, entries)
    others = {}
    for d in range(ndim):
        if d != dim and draw(st.booleans()):
            rows = fibers if per_fiber else 1
            others[d] = np.stack([np.sort(rng.permutation(shape[d])[:2]) for _ in range(rows)])
    return Slice("w", dim, index, "write", others), tuple(shape)


@given(slices())
def test_put_undoes_take_and_touches_nothing_else(drawn: tuple[Slice, tuple[int, ...]]) -> None:
    s, shape = drawn
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    block = s.take(tensor)
    assert block.shape[:2] == s.index.shape[:2]
    assert torch.equal(s.put(tensor, block), tensor)
    changed = s.put(tensor, block + 1000.0)
    assert torch.equal(s.take(changed), block + 1000.0)
    assert int((changed != tensor).sum()) == block.numel()
    assert torch.equal(tensor, torch.arange(float(np.prod(shape))).reshape(shape))


@given(slices())
def test_only_keeps_the_units_asked_for(drawn: tuple[Slice, tuple[int, ...]]) -> None:
    s, shape = drawn
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    fiber, unit = s.index.shape[0] - 1, s.index.shape[1] - 1
    whole, one = s.take(tensor), s.only(fiber, [unit]).take(tensor)
    assert torch.equal(one[0, 0], whole[fiber, unit])


def test_a_transposed_parameter_can_be_written() -> None:
    s = Slice("w", 0, np.arange(3).reshape(1, 3, 1), "write", {1: np.array([[0, 2]])})
    tensor = torch.arange(12.0).reshape(4, 3).T  # not contiguous
    assert torch.equal(s.take(s.put(tensor, -s.take(tensor))), -s.take(tensor))


def test_heads_own_their_block_of_a_fused_weight() -> None:
    model = Attention(bias=True)
    found = find_symmetries(model, (numbers(3, 4, 6),))
    heads = next(u for u in found.units if u.kind == "head")
    params = dict(model.named_parameters())
    assert (heads.size, heads.fibers) == (2, 1)
    rows = heads.rows(params)
    total = sum(params[n].numel() for n in ("qkv.weight", "qkv.bias", "out.weight"))
    assert rows.shape == (2, total // 2)  # every entry of these belongs to exactly one head
    assert torch.allclose(rows.square().sum(), sum(params[n].square().sum() for n in heads.parameters))


def test_roles_of_a_hidden_layer() -> None:
    case = next(c for c in CASES if c.name == "mlp-leaky")
    found = find_symmetries(case.make(), case.args)
    first = found.units[0]
    assert isinstance(first, Units)
    assert (first.name, first.size, first.activation, first.homogeneous) == ("0", 6, "leaky_relu", True)
    assert [s.param for s in first.incoming] == ["0.weight", "0.bias"]
    assert [s.param for s in first.outgoing] == ["2.weight"]
    assert first.gains == ()
    assert len(first) == len(list(first)) == 6
