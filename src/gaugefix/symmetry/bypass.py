"""Linear maps side by side: W x + s·B A x depends on W + s·BA only, so W takes back whatever A and B do (adapters)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Operand, Product, Sum
from gaugefix.symmetry.units import Params


@dataclass(frozen=True)
class Matrix:
    """A weight of a linear map.

    Attributes:
        param: its name.
        transposed: stored as (in, out).
        shape: (out, in).
    """

    param: str
    transposed: bool
    shape: tuple[int, int]

    def read(self, params: Params) -> Tensor:
        """The map, (out, in)."""
        weight = params[self.param]
        return weight.T if self.transposed else weight

    def store(self, matrix: Tensor) -> Tensor:
        """A map as it is stored."""
        return matrix.T.contiguous() if self.transposed else matrix


@dataclass(frozen=True, eq=False)
class Bypass(Symmetry):
    """A → A + a, B → B + b, W → W + s(BA − (B + b)(A + a)). Elements: vectors (a, b) of r(in + out) numbers.

    Attributes:
        base: W.
        down: A.
        up: B.
        scale: s.
    """

    base: Matrix | None = None
    down: Matrix | None = None
    up: Matrix | None = None
    scale: float = 1.0

    @property
    def n_generators(self) -> int:
        """The entries of a and b."""
        assert self.down is not None
        assert self.up is not None
        return self.down.shape[0] * self.down.shape[1] + self.up.shape[0] * self.up.shape[1]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Gaussian numbers of standard deviation 0.3."""
        return 0.3 * torch.randn(self.n_generators, generator=generator, dtype=torch.float64)

    def path(self, k: int, t: Tensor) -> Tensor:
        """Entry k is t."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        return t * torch.eye(self.n_generators, dtype=t.dtype)[k]

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Move A and B, and take the change of their product back in W."""
        assert self.base is not None
        assert self.down is not None
        assert self.up is not None
        a, b = element.to(params[self.down.param]).split([torch.Size(m.shape).numel() for m in (self.down, self.up)])
        down, up = self.down.read(params), self.up.read(params)
        new_down, new_up = down + a.reshape(self.down.shape), up + b.reshape(self.up.shape)
        base = self.base.read(params) + self.scale * (up @ down - new_up @ new_down)
        return {
            **params,
            self.base.param: self.base.store(base),
            self.down.param: self.down.store(new_down),
            self.up.param: self.up.store(new_up),
        }


def find_bypasses(flow: Flow) -> list[Symmetry]:
    """Every weight that lies beside a product of two others.

    Args:
        flow: who makes and reads what.

    Returns:
        One symmetry for each adapter.
    """
    out: list[Symmetry] = []
    for record in flow.classes.cells.lower.records:
        if not isinstance(record, Sum) or len(record.terms) != 2:
            continue
        for i, j in ((0, 1), (1, 0)):
            symmetry = _bypass(flow, record, i, j) or _merged(flow, record, i, j)
            if symmetry is not None:
                out.append(symmetry)
    return out


def _merged(flow: Flow, record: Sum, i: int, j: int) -> Symmetry | None:
    """Term i is W, term j is s·B A: parameters that are added before anything is mapped."""
    w = record.terms[i]
    value, scale = _copied(flow, record.terms[j].value, alone=True)
    product = flow.producers.get(value)
    if not _is_matrix(flow, w.value) or value.shape != w.value.shape or len(flow.consumers[value]) != 1:
        return None
    if not isinstance(product, Product) or len(product.factors) != 2 or product.border:
        return None
    rows, columns = (
        [k for k, dims in record.terms[j].groups.items() if dims == w.groups.get(k) == (d,)] for d in (0, 1)
    )
    if len(rows) != 1 or len(columns) != 1:
        return None
    base, parts = Matrix(w.value.name, False, (w.value.shape[0], w.value.shape[1])), []
    for side in (0, 1):  # the factor that makes the rows of the product, then the one that makes its columns
        (outer,) = [k for k, dims in product.out.groups.items() if dims == (side,)] or [None]
        holders = [f for f in product.factors if outer in f.groups]
        if len(holders) != 1 or len(holders[0].groups) != 2:
            return None
        param, factor = _copied(flow, holders[0].value)
        if not _is_matrix(flow, param) or len(flow.consumers[holders[0].value]) != 1:
            return None
        (at,) = holders[0].groups[outer]
        turned = at != side
        parts.append(
            Matrix(param.name, turned, (param.shape[1], param.shape[0]) if turned else (param.shape[0], param.shape[1]))
        )
        scale *= factor
    up, down = parts
    if up.param == down.param or up.shape[1] != down.shape[0]:
        return None
    return _adapter(base, down, up, record.coefficients[j] * scale * product.scale / record.coefficients[i])


def _is_matrix(flow: Flow, value: Value) -> bool:
    """A two-dimensional parameter with one use."""
    return value.kind == "param" and len(value.shape) == 2 and len(flow.consumers[value]) == 1


def _bypass(flow: Flow, record: Sum, i: int, j: int) -> Symmetry | None:
    """Term i is W x (plus a bias), term j is s·B A x."""
    straight = _linear(flow, _without_bias(flow, record.terms[i].value))
    second = _linear(flow, record.terms[j].value)
    first = None if second is None else _linear(flow, second.source)
    if straight is None or second is None or first is None or straight.source is not first.source:
        return None
    base, up, down = straight.matrix, second.matrix, first.matrix
    scale = record.coefficients[j] * second.scale * first.scale / (record.coefficients[i] * straight.scale)
    return _adapter(base, down, up, scale)


def _adapter(base: Matrix, down: Matrix, up: Matrix, scale: float) -> Symmetry | None:
    """The symmetry of W + s·B A, unless B A can be any matrix."""
    if base.shape != (up.shape[0], down.shape[1]) or down.shape[0] >= min(base.shape):
        return None
    r, n = down.shape[0], sum(base.shape)
    return Bypass(
        f"{base.param}: takes back {down.param}, {up.param}", f"T({r * n})", r * (n - r),
        tuple(f"{m.param}[{d}]" for m in (base, down, up) for d in (0, 1)), False,
        base=base, down=down, up=up, scale=scale,
    )  # fmt: skip


@dataclass(frozen=True)
class _Map:
    """``scale`` · matrix · source."""

    matrix: Matrix
    source: Value
    scale: float


def _copied(flow: Flow, value: Value, *, alone: bool = False) -> tuple[Value, float]:
    """A value before copies and multiples, and the factor; ``alone``: back to the first that something else reads."""
    factor = 1.0
    while (
        not (alone and len(flow.consumers[value]) > 1)
        and isinstance(record := flow.producers.get(value), Sum)
        and len(record.terms) == 1
    ):
        (term,) = record.terms
        if term.value.shape != value.shape or set(term.groups.items()) != set(record.out.groups.items()):
            break
        value, factor = term.value, factor * record.coefficients[0]
    return value, factor


def _without_bias(flow: Flow, value: Value) -> Value:
    """Wx of Wx + b."""
    value, factor = _copied(flow, value, alone=True)
    record = flow.producers.get(value)
    if (
        len(flow.consumers[value]) == factor == 1
        and isinstance(record, Sum)
        and len(record.terms) == 2
        and record.coefficients == (1.0, 1.0)
    ):
        plain, bias = record.terms
        if bias.value.kind == "param" and len(bias.value.shape) == 1:
            return plain.value
    return value


def _linear(flow: Flow, value: Value) -> _Map | None:
    """The weight that makes a value out of another one, if both are used here only."""
    value, factor = _copied(flow, value, alone=True)
    record = flow.producers.get(value)
    if not isinstance(record, Product) or len(record.factors) != 2 or record.border:
        return None
    for w, x in (record.factors, record.factors[::-1]):
        matrix = _matrix(record, w, x)
        if matrix is not None and len(flow.consumers[w.value]) == 1 and len(flow.consumers[value]) == 1:
            source, more = _copied(flow, x.value)
            return _Map(matrix, source, factor * more * record.scale)
    return None


def _matrix(record: Product, w: Operand, x: Operand) -> Matrix | None:
    """A two-dimensional parameter with one side contracted and the other in the result only."""
    if w.value.kind != "param" or len(w.value.shape) != 2 or x.value.kind == "param" or len(w.groups) != 2:
        return None
    inner = [k for k in w.groups if k in x.groups and k not in record.out.groups]
    outer = [k for k in w.groups if k in record.out.groups and k not in x.groups]
    contracted = {k for f in record.factors for k in f.groups if k not in record.out.groups}
    if len(inner) != 1 or len(outer) != 1 or contracted != set(inner):
        return None
    (out_dim,), (in_dim,) = w.groups[outer[0]], w.groups[inner[0]]
    return Matrix(w.value.name, out_dim == 1, (w.value.shape[out_dim], w.value.shape[in_dim]))
