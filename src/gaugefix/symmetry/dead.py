"""Changes of one parameter that nobody sees: what it writes is unseen, or what it reads satisfies a constraint.

W → W + U E for directions U of its output that nobody sees, and W → W + vNᵀ for constraints Nᵀx = α of its input, with
b → b − vα if it has a bias. Without a bias, constraints with α = 0 are left, and one with α ≠ 0 makes W take up a
constant as a bias would (`VirtualBiases`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaugefix.symmetry.constraint_axes import Dims, dims_of, null_space
from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.generic import generic_parameters
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Cut, Norm, Operand, Product, Sum
from gaugefix.symmetry.stream_groups import LastPoint, VectorSymmetry
from gaugefix.symmetry.units import Params
from gaugefix.symmetry.unseen import Unseen

#: numbers in a model up to which null spaces are looked for
MAX_PARAMETERS = 20_000


@dataclass(frozen=True, eq=False)
class Place:
    """Where a parameter is read.

    Attributes:
        param: its name.
        shape: of the parameter.
        rows: its dimensions that are in the output only, with the value and dimensions that they become.
        inner: its dimensions that are contracted with data, with that value and its dimensions; empty for what is
            added.
        bias: a parameter added right behind, one number for each row.
        scale: factor of the product.
    """

    param: str
    shape: tuple[int, ...]
    rows: Dims
    out: tuple[Value, Dims]
    inner: Dims = ()
    source: tuple[Value, Dims] | None = None
    bias: str | None = None
    scale: float = 1.0

    def blocks(self) -> tuple[int, int]:
        """Number of rows, and of the other entries of each."""
        n = math.prod(self.shape[d] for d in self.rows)
        return n, math.prod(self.shape) // n

    def put(self, matrix: Tensor) -> Tensor:
        """A matrix (rows, others) in the layout of the parameter."""
        others = [d for d in range(len(self.shape)) if d not in self.rows and d not in self.inner]
        order = [*self.rows, *others, *self.inner]
        full = matrix.reshape([self.shape[d] for d in order])
        return full.permute([order.index(d) for d in range(len(order))])


@dataclass(frozen=True, eq=False)
class DeadDirections(VectorSymmetry):
    """W → W + U E + vNᵀ, b → b − vα. Elements: the entries of E, then of v.

    U and N are null spaces at the other parameters, which do not move, so this is a group of translations.

    Attributes:
        flow: who makes and reads what.
        place: where W is.
        unseen: number of columns of U.
        known: number of columns of N.
    """

    overlaps = True
    flow: Flow | None = None
    place: Place | None = None
    unseen: int = 0
    known: int = 0
    _last: LastPoint[tuple[Tensor, Tensor, Tensor]] = field(default_factory=LastPoint, repr=False)

    def generator(self, params: Params, k: int) -> dict[str, Tensor]:
        """The change is linear in the element, so this is exact."""
        moved = self.apply(params, self.path(k, torch.ones((), dtype=torch.float64)))
        return {n: moved[n] - params[n] for n in self.parameters}

    def generators(self, params: Params) -> dict[str, Tensor]:
        """All of them, in one batch."""
        moved = [n for n in self.parameters if n in params]

        def act(element: Tensor) -> tuple[Tensor, ...]:
            new = self.apply(params, element)
            return tuple(new[n] - params[n] for n in moved)

        units = torch.eye(self.length, dtype=params[moved[0]].dtype)
        self._spaces(params)  # outside the batch
        return dict(zip(moved, torch.func.vmap(act)(units), strict=True))

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Add to W and take the constant back in the bias."""
        assert self.place is not None
        w = params[self.place.param]
        u, n, alpha = self._spaces(params)
        rows, others = self.place.blocks()
        e = element[: self.unseen * others].reshape(self.unseen, others).to(w)
        v = element[self.unseen * others :].reshape(rows, self.known).to(w)
        change = u @ e
        if self.known:
            change = change + v @ n.T
        out = {**params, self.place.param: w + self.place.put(change)}
        if self.place.bias is not None:
            b = params[self.place.bias]
            out[self.place.bias] = b - self.place.scale * (v @ alpha).reshape(b.shape)
        return out

    def _spaces(self, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        """U, N and α at a point, kept for the next generator."""
        assert self.flow is not None
        assert self.place is not None
        flow, place = self.flow, self.place

        def compute() -> tuple[Tensor, Tensor, Tensor]:
            u, n, alpha = spaces(Unseen(flow, params), place)
            return _fit(u, self.unseen), _fit(n, self.known), _fit(alpha[None], self.known)[0]

        return self._last(params, compute)


def _fit(matrix: Tensor, n: int) -> Tensor:
    """Exactly n columns; at points where there are fewer the rest is zero."""
    return torch.cat([matrix[:, :n], matrix.new_zeros(len(matrix), max(0, n - matrix.shape[1]))], dim=1)


def spaces(at: Unseen, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """What is unseen behind a parameter, and the constraints in front of it that it may use.

    Args:
        at: the point.
        place: the parameter.

    Returns:
        U, N and α.
    """
    u = at.unseen(*place.out)
    if place.source is None:
        return u, u.new_zeros(1, 0), u.new_zeros(0)
    n, alpha = at.known(*place.source)
    if place.bias is None and n.shape[1]:
        free = null_space(alpha[None]) if bool(alpha.any()) else torch.eye(n.shape[1], dtype=n.dtype)
        n, alpha = n @ free, alpha.new_zeros(free.shape[1])
    return u, n, alpha


def find_dead(flow: Flow) -> list[Symmetry]:
    """Every parameter with changes that nobody sees, in a model small enough to look.

    Args:
        flow: who makes and reads what.

    Returns:
        One symmetry for each such parameter.
    """
    shapes = {n: v.shape for n, v in flow.classes.cells.lower.graph.params.items()}
    if sum(math.prod(s) for s in shapes.values()) > MAX_PARAMETERS:
        return []
    at = Unseen(flow, generic_parameters(shapes, torch.Generator().manual_seed(0)))
    out: list[Symmetry] = []
    for place in _places(flow):
        u, n, _ = spaces(at, place)
        rows, others = place.blocks()
        length = u.shape[1] * others + rows * n.shape[1]
        if length:
            moved = [place.param] + ([place.bias] if place.bias is not None and n.shape[1] else [])
            out.append(
                DeadDirections(
                    f"{place.param}: unseen changes", f"T({length})", length, tuple(f"{p}[0]" for p in moved), False,
                    length=length, flow=flow, place=place, unseen=u.shape[1], known=n.shape[1],
                )
            )  # fmt: skip
    return out


def uses_of(flow: Flow) -> Counter[Value]:
    """How often every value is read."""
    records = flow.classes.cells.lower.records
    return Counter(
        v
        for r in records
        for v in ([r.out.value if r.joins else r.whole] if isinstance(r, Cut) else [o.value for o in r.operands()])
    )


def _places(flow: Flow) -> Iterator[Place]:
    """Parameters that are read once, by a product with data or a sum."""
    uses = uses_of(flow)
    for record in flow.classes.cells.lower.records:
        operands = [] if isinstance(record, Cut) else list(record.operands())
        for x in operands:
            if x.value.kind != "param" or uses[x.value] != 1 or record.out.value not in flow.classes.data:
                continue
            if isinstance(record, Product):
                place = read_place(flow, record, x)
                if place is not None:
                    yield place
            elif isinstance(record, Sum) or (isinstance(record, Norm) and x is record.bias):
                labels = list(x.groups)
                if labels:
                    yield Place(
                        x.value.name, x.value.shape, dims_of(x, labels), (record.out.value, dims_of(record.out, labels))
                    )


def read_place(flow: Flow, record: Product, w: Operand) -> Place | None:
    """Where a weight is read by a product.

    Args:
        flow: who makes and reads what.
        record: the product.
        w: the weight.

    Returns:
        The place, or None if it has no rows of its own in the output.
    """
    others = [f for f in record.factors if f is not w]
    shared = {k for f in others for k in f.groups}
    rows = [k for k in w.groups if k in record.out.groups and k not in shared]
    if not rows:
        return None
    place = Place(w.value.name, w.value.shape, dims_of(w, rows), (record.out.value, dims_of(record.out, rows)))
    if len(others) != 1 or record.border:
        return place
    (x,) = others
    inner = [k for k in w.groups if k in x.groups and k not in record.out.groups]
    contracted = {k for f in record.factors for k in f.groups if k not in record.out.groups}
    if not inner or len(rows) + len(inner) != len(w.groups) or contracted != set(inner) or w.hidden_dims():
        return place
    if len(place.rows) + sum(len(w.groups[k]) for k in inner) != len(w.value.shape):
        return place
    bias = private_bias(flow, record.out, place.blocks()[0]) if len(rows) == 1 else None
    return Place(
        place.param,
        place.shape,
        place.rows,
        place.out,
        dims_of(w, inner),
        (x.value, dims_of(x, inner)),
        bias,
        record.scale,
    )


def private_bias(flow: Flow, out: Operand, entries: int) -> str | None:
    """The bias that is added right behind a product, one number for every row of the weight."""
    users = flow.consumers[out.value]
    if len(users) != 1 or not isinstance(users[0][0], Sum):
        return None
    for term in users[0][0].terms:
        v = term.value
        if v.kind == "param" and len(flow.consumers[v]) == 1 and math.prod(v.shape) == entries:
            return v.name
    return None
