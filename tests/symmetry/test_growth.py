"""Where the entries of added units go: behind the last unit of every head, channel block and expert."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.errors import SymmetryError
from gaugefix.symmetry import Slice, Units
from gaugefix.symmetry.growth import grow_units


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Index of a class laid out with any order of fibers, units and entries, and the length of the dimension."""
    fibers, units, entries = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    order = draw(st.permutations("fue"))
    shape = {"f": fibers, "u": units, "e": entries}
    flat = np.arange(fibers * units * entries).reshape([shape[k] for k in order])
    index = flat.transpose([order.index(k) for k in "fue"])
    start = draw(st.integers(0, 2))
    return index + start, fibers * units * entries + start + draw(st.integers(0, 2)), draw(st.integers(1, 3))


@given(layouts())
def test_growing_is_the_same_layout_with_more_units(drawn: tuple[np.ndarray, int, int]) -> None:
    index, length, n = drawn
    fibers, size, _ = index.shape
    s = Slice("w", 0, index, "write")
    grown = grow_units(Units("c", size, fibers, (s,)), {"w": (length,)}, n)
    tensor = torch.arange(1.0, length + 1)
    wide, new = grown.apply("w", tensor), grown.units.slices[0]
    assert new.index.shape == (fibers, size + n, index.shape[2])
    assert torch.equal(new.take(wide)[:, :size], s.take(tensor))  # the old units are where the slice says
    assert torch.equal(new.take(wide)[:, size:], torch.zeros(fibers, n, index.shape[2]))
    assert torch.equal(wide[wide > 0], tensor)  # nothing is lost and nothing changes its order
    assert len(np.unique(new.index)) == new.index.size
    again = grow_units(grown.units, {"w": (len(wide),)}, 1)  # a grown class is a class again
    assert torch.equal(again.apply("w", wide)[again.apply("w", wide) > 0], tensor)


def test_parts_of_a_fused_weight_grow_each_behind_its_own_end() -> None:
    heads = np.arange(4).reshape(2, 2, 1)
    slices = tuple(Slice("qkv", 0, heads + 4 * part, "write") for part in (0, 2))  # values, in the middle, stay
    grown = grow_units(Units("v", 2, 2, slices), {"qkv": (12, 3)}, 1)
    wide = grown.apply("qkv", torch.arange(12.0)[:, None].expand(12, 3) + 1)
    assert wide[:, 0].tolist() == [1, 2, 0, 3, 4, 0, 5, 6, 7, 8, 9, 10, 0, 11, 12, 0]
    assert grown.added.slices[1].index.tolist() == [[[12]], [[15]]]


def test_experts_in_another_dimension_grow_together() -> None:
    experts = Slice("up", 2, np.tile(np.arange(5).reshape(1, 5, 1), (4, 1, 1)), "write", {0: np.arange(4)[:, None]})
    grown = grow_units(Units("e", 5, 4, (experts,)), {"up": (4, 3, 5)}, 2)
    wide = grown.apply("up", torch.ones(4, 3, 5))
    assert wide.shape == (4, 3, 7)
    assert float(grown.added.slices[0].take(wide).abs().sum()) == 0


@pytest.mark.parametrize(
    ("index", "others", "message"),
    [([0, 2, 3], {}, "no regular pattern"), ([0, 1, 2], {1: np.array([[0]])}, "in a part of dimension 1")],
)
def test_what_cannot_grow_is_refused(index, others, message) -> None:
    s = Slice("w", 0, np.array(index).reshape(1, 3, 1), "write", others)
    with pytest.raises(SymmetryError, match=message):
        grow_units(Units("c", 3, 1, (s,)), {"w": (4, 4)}, 1)
    with pytest.raises(SymmetryError, match="at least 1"):
        grow_units(Units("c", 3, 1, (s,)), {"w": (4, 4)}, 0)
