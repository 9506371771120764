"""Axis terms and their unification: which tensor axes must transform together.

The axis of a tensor is a term: an atom, a product (a view split 12 into 3 x 4) or a concatenation (a fused
projection). First-order unification with union-find finds the coarsest common refinement; afterwards every axis is
a list of *parts* (the choices of a concatenation), each a product of leaf *atoms*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import numpy as np


class AxisError(Exception):
    """Two axes cannot be the same; the caller pins them."""


class Axis:
    """A node of a term. Compare representatives: ``axis.find()``."""

    __slots__ = ("kids", "kind", "parent", "pinned", "size")

    def __init__(self, size: int, kind: str = "atom", kids: Sequence[Axis] = ()) -> None:
        self.size = size
        self.kind = kind
        self.kids = list(kids)
        self.parent: Axis | None = None
        self.pinned = False

    def find(self) -> Axis:
        """The representative, with path compression."""
        root = self
        while root.parent is not None:
            root = root.parent
        node = self
        while node.parent is not None:
            node.parent, node = root, node.parent
        return root

    def pin(self) -> None:
        """Forbid permutations and rotations of this axis (charges stay allowed)."""
        self.find().pinned = True

    def __repr__(self) -> str:
        a = self.find()
        if a.kind == "atom":
            return f"{a.size}{'!' if a.pinned else ''}#{id(a) % 9973}"
        return ("*" if a.kind == "prod" else "+").join(map(repr, a.kids)).join("()")


def product_axis(kids: Iterable[Axis]) -> Axis:
    """The flattened product of axes, the last one fastest; size-1 factors drop out."""
    kids = [k for k in kids if k.size != 1]
    if len(kids) == 1:
        return kids[0]
    return Axis(prod(k.size for k in kids), "prod", kids) if kids else Axis(1)


def concat_axis(kids: Sequence[Axis]) -> Axis:
    """The concatenation of axes; empty ones drop out."""
    kids = [k for k in kids if k.size]
    return kids[0] if len(kids) == 1 else Axis(sum(k.size for k in kids), "cat", kids)


def unify(a: Axis, b: Axis) -> None:
    """Make two axes one.

    Args:
        a: an axis.
        b: an axis of the same size.

    Raises:
        AxisError: if their sizes differ or they have no common refinement.
    """
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.size != b.size:
        raise AxisError(f"axes of sizes {a.size} and {b.size} cannot be the same")
    if a.kind == "atom" or b.kind == "atom":
        source, target = (a, b) if a.kind == "atom" else (b, a)
        source.parent = target
        target.pinned = target.pinned or source.pinned
        return
    if a.kind != b.kind:
        cat, factors = (a, b) if a.kind == "cat" else (b, a)
        a, b = cat, _as_cat(factors)
        factors.parent = b
    (_align_products if a.kind == "prod" else _align_concats)(a, b)
    b.pinned = b.pinned or a.pinned
    if a is not b.find():
        a.parent = b


def _flat(axis: Axis, kind: str) -> list[Axis]:
    """Kids with nested nodes of the same kind expanded."""
    axis = axis.find()
    if axis.kind != kind:
        return [axis]
    return [leaf for kid in axis.kids for leaf in _flat(kid, kind)]


def _become(atom: Axis, kind: str, kids: list[Axis]) -> None:
    """Refine an atom in place; everything unified with it is refined too."""
    atom.kind, atom.kids = kind, kids


def _align_products(a: Axis, b: Axis) -> None:
    left, right = _flat(a, "prod"), _flat(b, "prod")
    while left and right:
        x, y = left.pop().find(), right.pop().find()
        if x.size < y.size:
            x, y, left, right = y, x, right, left  # x is the larger
        if x.size == y.size:
            unify(x, y)
        elif x.size % y.size:
            raise AxisError(f"factors {x.size} and {y.size} have no common refinement")
        else:
            outer = _split_factor(x, y.size)
            unify(outer[1], y)
            left.append(outer[0])
    if left or right:
        raise AxisError("products of different sizes")


def _split_factor(axis: Axis, inner: int) -> tuple[Axis, Axis]:
    """Write an axis as (outer, inner of the given size)."""
    if axis.kind == "atom":
        kids = [Axis(axis.size // inner), Axis(inner)]
        _become(axis, "prod", kids)
        return kids[0], kids[1]
    if axis.kind == "prod":
        kids = _flat(axis, "prod")
        taken: list[Axis] = []
        while prod(k.size for k in taken) < inner:
            taken.insert(0, kids.pop())
        if prod(k.size for k in taken) == inner:
            return product_axis(kids), product_axis(taken)
        first = taken.pop(0).find()
        rest = prod(k.size for k in taken)
        if inner % rest:
            raise AxisError(f"{axis.size} does not split off {inner}")
        outer, cut = _split_factor(first, inner // rest)
        return product_axis([*kids, outer]), product_axis([cut, *taken])
    raise AxisError("a concatenation is not a product")


def _as_cat(axis: Axis) -> Axis:
    """A product whose first factor is (made) a concatenation, distributed: (a + b) * r = a * r + b * r."""
    kids = _flat(axis, "prod")
    first, rest = kids[0], kids[1:]
    if first.kind == "atom":
        _become(first, "cat", [Axis(1) for _ in range(first.size)])
    inner = prod(k.size for k in rest)
    parts = [product_axis([part, *rest]) for part in _flat(first, "cat")]
    if inner == 1 or not rest:
        return concat_axis(parts)
    return Axis(axis.size, "cat", parts)


def _align_concats(a: Axis, b: Axis) -> None:
    left, right = _flat(a, "cat")[::-1], _flat(b, "cat")[::-1]
    while left and right:
        x, y = left.pop().find(), right.pop().find()
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        if x.size == y.size:
            unify(x, y)
        else:
            head, tail = split_concat(x, y.size)
            unify(head, y)
            left.append(tail)
    if left or right:
        raise AxisError("concatenations of different sizes")


def split_concat(axis: Axis, head: int) -> tuple[Axis, Axis]:
    """Write an axis as a concatenation of the first ``head`` entries and the rest.

    Args:
        axis: any axis; an atom is refined in place.
        head: ``0 < head < axis.size``.

    Returns:
        The two parts.

    Raises:
        AxisError: if the cut would fall inside a factor of a product.
    """
    axis = axis.find()
    if axis.kind == "atom":
        parts = [Axis(head), Axis(axis.size - head)]
        _become(axis, "cat", parts)
        return parts[0], parts[1]
    if axis.kind == "cat":
        kids = _flat(axis, "cat")
        taken: list[Axis] = []
        while kids and sum(k.size for k in taken) + kids[0].size <= head:
            taken.append(kids.pop(0))
        missing = head - sum(k.size for k in taken)
        if missing:
            front, back = split_concat(kids.pop(0), missing)
            taken.append(front)
            kids.insert(0, back)
        return concat_axis(taken), concat_axis(kids)
    kids = _flat(axis, "prod")
    inner = prod(k.size for k in kids[1:])
    if head % inner:
        raise AxisError(f"cutting {axis.size} at {head} falls inside a factor {inner}")
    front, back = split_concat(kids[0], head // inner)
    return product_axis([front, *kids[1:]]), product_axis([back, *kids[1:]])


@dataclass(frozen=True, eq=False)
class Part:
    """One choice of every concatenation in an axis: a product of leaf atoms.

    Attributes:
        leaves: representatives, outermost first; size-1 atoms are left out.
        index: positions on the axis, of shape ``tuple(leaf.size for leaf in leaves)``.
    """

    leaves: tuple[Axis, ...]
    index: np.ndarray

    @cached_property
    def size(self) -> int:
        """Number of positions."""
        return int(self.index.size)


def layout(axis: Axis) -> tuple[Part, ...]:
    """Expand an axis into its parts.

    Args:
        axis: after all unification.

    Returns:
        Parts in order of position; together they cover the axis exactly once.
    """
    axis = axis.find()
    if axis.kind == "atom":
        index = np.arange(axis.size)
        return (Part((axis,), index),) if axis.size != 1 else (Part((), index.reshape(())),)
    if axis.kind == "cat":
        parts, offset = [], 0
        for kid in axis.kids:
            parts += [Part(p.leaves, p.index + offset) for p in layout(kid)]
            offset += kid.size
        return tuple(parts)
    return join_parts([layout(kid) for kid in axis.kids], [kid.size for kid in axis.kids])


def join_parts(factors: Sequence[Sequence[Part]], sizes: Sequence[int]) -> tuple[Part, ...]:
    """Parts of a product from the parts of its factors."""
    out = []
    for choice in product(*factors):
        index = np.zeros((), dtype=np.int64)
        for part, size in zip(choice, sizes, strict=True):
            index = np.add.outer(index * size, part.index)
        out.append(Part(tuple(leaf for part in choice for leaf in part.leaves), index))
    return tuple(out)


def pin_leaves(axes: Iterable[Axis]) -> None:
    """Push the pins of structured axes down to their leaves; call once after unification."""
    seen: set[int] = set()
    stack = [(a.find(), False) for a in axes]
    while stack:
        axis, pinned = stack.pop()
        pinned = pinned or axis.pinned
        key = id(axis) * 2 + pinned
        if key in seen:
            continue
        seen.add(key)
        axis.pinned = pinned
        stack += [(kid.find(), pinned) for kid in axis.kids]
