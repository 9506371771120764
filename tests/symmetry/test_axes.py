"""Axis terms: unification finds the coarsest common refinement, layouts cover every position once."""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.symmetry.axes import (
    Axis,
    AxisError,
    concat_axis,
    join_parts,
    layout,
    pin_leaves,
    product_axis,
    split_concat,
    unify,
)


@st.composite
def factorings(draw: st.DrawFn, size: int = 24) -> list[int]:
    """A list of factors > 1 of a number."""
    out, left = [], size
    while left > 1:
        factor = draw(st.sampled_from([f for f in range(2, left + 1) if left % f == 0]))
        out.append(factor)
        left //= factor
    return out


@st.composite
def cuts(draw: st.DrawFn, size: int = 12) -> list[int]:
    """Sizes of consecutive parts."""
    at = sorted(draw(st.sets(st.integers(1, size - 1), max_size=4)))
    return [b - a for a, b in zip([0, *at], [*at, size], strict=True)]


def product_of(sizes: list[int]) -> Axis:
    return product_axis([Axis(n) for n in sizes])


def concat_of(sizes: list[int]) -> Axis:
    return concat_axis([Axis(n) for n in sizes])


def shape(axis: Axis) -> list[tuple[int, ...]]:
    return [tuple(leaf.size for leaf in part.leaves) for part in layout(axis)]


def assert_covers(axis: Axis) -> None:
    positions = np.concatenate([part.index.reshape(-1) for part in layout(axis)])
    np.testing.assert_array_equal(np.sort(positions), np.arange(axis.size))
    for part in layout(axis):
        assert part.index.shape == tuple(leaf.size for leaf in part.leaves)
        assert part.size == prod(part.index.shape)


@given(factorings())
def test_an_axis_unified_with_itself_does_not_change(sizes: list[int]) -> None:
    axis = product_of(sizes)
    before = shape(axis)
    unify(axis, axis)
    assert shape(axis) == before == [tuple(sizes)]


@given(factorings(), factorings())
def test_unification_of_products_does_not_depend_on_the_order(a: list[int], b: list[int]) -> None:
    results = []
    for flip in (False, True):
        x, y = product_of(a), product_of(b)
        try:
            unify(*((y, x) if flip else (x, y)))
        except AxisError:
            results.append(None)
            continue
        assert shape(x) == shape(y)
        assert [p.leaves for p in layout(x)] == [p.leaves for p in layout(y)]
        assert_covers(x)
        results.append(shape(x))
    assert results[0] == results[1]


@given(factorings(), factorings())
def test_products_unify_to_the_common_refinement_if_there_is_one(a: list[int], b: list[int]) -> None:
    inner_a = set(np.cumprod(a[::-1]).tolist())
    inner_b = set(np.cumprod(b[::-1]).tolist())
    strides = sorted(inner_a | inner_b)
    nested = all(y % x == 0 for x, y in combinations(strides, 2))
    x, y = product_of(a), product_of(b)
    if not nested:
        with pytest.raises(AxisError):
            unify(x, y)
        return
    unify(x, y)
    refined = [n // m for m, n in zip([1, *strides], strides, strict=False)][::-1]
    assert shape(x) == [tuple(refined)]


@given(cuts(), cuts())
def test_concatenations_unify_at_the_union_of_their_cuts(a: list[int], b: list[int]) -> None:
    x, y = concat_of(a), concat_of(b)
    unify(x, y)
    ends = sorted({*np.cumsum(a).tolist(), *np.cumsum(b).tolist()})
    expected = [n - m for m, n in zip([0, *ends], ends, strict=False)]
    assert [part.size for part in layout(x)] == [part.size for part in layout(y)] == expected
    assert_covers(x)


@given(cuts(), st.integers(2, 4))
def test_a_factor_of_a_concatenation_is_shared_by_its_parts(sizes: list[int], inner: int) -> None:
    """A fused projection viewed as (parts, heads): every part is cut at whole heads, or the axes do not fit."""
    fused = concat_of([n * inner for n in sizes])
    viewed = product_axis([concat_of(sizes), Axis(inner)])
    unify(fused, viewed)
    assert_covers(fused)
    assert [p.size for p in layout(fused)] == [n * inner for n in sizes]


@given(cuts(), st.integers(1, 11))
def test_splitting_keeps_every_position(sizes: list[int], head: int) -> None:
    axis = concat_of(sizes)
    front, back = split_concat(axis, head)
    assert (front.size, back.size) == (head, axis.size - head)
    assert_covers(front)
    assert_covers(back)


def test_atoms_take_the_structure_of_what_they_meet() -> None:
    atom, other = Axis(12), Axis(12)
    unify(atom, other)
    unify(other, product_of([3, 4]))
    assert shape(atom) == shape(other) == [(3, 4)]
    assert layout(atom)[0].leaves == layout(other)[0].leaves


def test_a_cut_inside_a_factor_is_refused() -> None:
    with pytest.raises(AxisError, match="inside a factor 4"):
        split_concat(product_of([3, 4]), 6)


def test_sizes_must_agree() -> None:
    with pytest.raises(AxisError, match="sizes 3 and 4"):
        unify(Axis(3), Axis(4))


def test_factors_without_a_common_refinement_are_refused() -> None:
    with pytest.raises(AxisError):
        unify(product_of([2, 3]), product_of([3, 2]))


def test_a_pin_survives_unification_and_reaches_the_leaves() -> None:
    pinned, free = Axis(12), Axis(12)
    pinned.pin()
    unify(free, pinned)
    assert free.find().pinned
    whole = product_of([3, 4])
    unify(free, whole)
    pin_leaves([whole])
    assert all(leaf.find().pinned for leaf in layout(whole)[0].leaves)


def test_size_one_factors_and_empty_parts_drop_out() -> None:
    axis = Axis(5)
    assert product_axis([Axis(1), axis, Axis(1)]) is axis
    assert concat_axis([Axis(0), axis]) is axis
    assert product_axis([Axis(1), Axis(1)]).size == 1
    assert layout(Axis(1))[0].leaves == ()


def test_join_parts_multiplies_positions_outermost_first() -> None:
    (part,) = join_parts([layout(Axis(2)), layout(Axis(3))], [2, 3])
    np.testing.assert_array_equal(part.index, np.arange(6).reshape(2, 3))
