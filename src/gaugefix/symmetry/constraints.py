"""What is known about the values on an axis at given parameters: constraints that they satisfy.

A value y satisfies a *constraint* (a, α) if aᵀy = α for all data: the output of a centred normalisation does, so does
that of a narrow linear map. Constraints are carried forward through the records as matrices at actual parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaugefix.symmetry.constraint_axes import Dims, dims_of, embed, labels_of, null_space, order_of, positions_of
from gaugefix.symmetry.flow import Flow
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.records import Cut, Label, Norm, Operand, Pointwise, Product, Sum
from gaugefix.symmetry.shift_action import parameter_value, relabel
from gaugefix.symmetry.units import Params


@dataclass(eq=False)
class Constraints:
    """Constraints on values at one point.

    Attributes:
        flow: who makes and reads what.
        params: the point.
        dense: look for those that need a null space too (cost: the cube of a width); else only what normalisations,
            copies, concatenations and gains say directly.
    """

    flow: Flow
    params: Params
    dense: bool = True
    _known: dict[tuple[Value, Dims], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _unseen: dict[tuple[Value, Dims], Tensor] = field(default_factory=dict)
    _smallest: str | None = None

    def _like(self) -> Tensor:
        """The smallest parameter, for its dtype; the point may make its numbers when they are asked for."""
        if self._smallest is None:
            params = self.flow.classes.cells.lower.graph.params
            self._smallest = min((n for n in params if n in self.params), key=lambda n: math.prod(params[n].shape))
        return self.params[self._smallest]

    def _size(self, value: Value, dims: Dims) -> int:
        return math.prod(value.shape[d] for d in dims)

    def number(self, operand: Operand, labels: list[Label], out: Operand) -> Tensor:
        """A value made of parameters as a tensor over some labels of a record, size 1 where it has none."""
        value = parameter_value(operand.value, self.flow.producers, self.params)
        placed = relabel(value, operand, Operand(out.value, {k: out.groups[k] for k in labels}))
        kept = [d for k in labels for d in out.groups[k]]
        shape = [out.value.shape[d] for d in kept]
        rest = [d for d in range(placed.ndim) if d not in kept]
        flat = placed.permute(*kept, *rest).reshape([placed.shape[d] for d in kept])
        return flat.expand(shape).reshape(-1)

    # constraints

    def known(self, value: Value, dims: Dims) -> tuple[Tensor, Tensor]:
        """Constraints on the entries along some dimensions (flattened in order).

        Args:
            value: any value.
            dims: its dimensions.

        Returns:
            Columns a, ``(size, k)``, and the constants α, ``(k,)``; the columns are independent.
        """
        key = (value, dims)
        if key not in self._known:
            self._known[key] = self._none(value, dims)  # what is being worked on knows nothing of itself
            found = self._find_known(value, dims)
            self._known[key] = self._none(value, dims) if found is None else found
        return self._known[key]

    def _none(self, value: Value, dims: Dims) -> tuple[Tensor, Tensor]:
        like = self._like()
        return like.new_zeros(self._size(value, dims), 0), like.new_zeros(0)

    def _find_known(self, value: Value, dims: Dims) -> tuple[Tensor, Tensor] | None:
        if value in self.flow.joined:
            return self._joined(value, dims)
        record = self.flow.producers.get(value)
        if isinstance(record, Cut):
            return self._cut(record, dims)
        if record is None:
            return None
        labels = labels_of(record.out, dims)
        if labels is None:
            return None
        match record:
            case Sum():
                return self._sum(record, labels)
            case Product():
                return self._product(record, labels)
            case Norm():
                return self._norm(record, labels)
            case Pointwise() if record.name == "identity":
                return self.known(record.x.value, dims_of(record.x, labels))
            case _:
                return None

    def _joined(self, whole: Value, dims: Dims) -> tuple[Tensor, Tensor] | None:
        cuts = self.flow.joined[whole]
        (dim,) = {c.dim for c in cuts}
        found = [self.known(c.out.value, dims) for c in cuts]
        if dim in dims:
            columns, constants = [], []
            for c, (n, alpha) in zip(cuts, found, strict=True):
                columns.append(embed(n, whole, dims, c))
                constants.append(alpha)
            return torch.cat(columns, dim=1), torch.cat(constants)
        if not self.dense:
            return None
        n, alpha = found[0]
        for m, beta in found[1:]:
            both = null_space(torch.cat([torch.cat([n, -m], dim=1), torch.cat([alpha, -beta])[None]]))
            n, alpha = n @ both[: n.shape[1]], both[: n.shape[1]].T @ alpha
        return n, alpha

    def _cut(self, record: Cut, dims: Dims) -> tuple[Tensor, Tensor] | None:
        n, alpha = self.known(record.whole, dims)
        if record.dim not in dims:
            return n, alpha
        if not self.dense or not n.shape[1]:
            return None
        inside = positions_of(record.whole, dims, record)
        outside = torch.ones(len(n), dtype=torch.bool)
        outside[inside] = False
        inner = null_space(n[outside])
        return n[inside] @ inner, inner.T @ alpha

    def _sum(self, record: Sum, labels: list[Label]) -> tuple[Tensor, Tensor] | None:
        if len(record.terms) > 1 and not self.dense and sum(self._is_data(t) for t in record.terms) > 1:
            return None
        n: Tensor | None = None
        alpha = self._like().new_zeros(0)
        offset: list[tuple[float, Tensor]] = []
        for term, c in zip(record.terms, record.coefficients, strict=True):
            if self._is_data(term):
                found = self._term(term, labels)
                if found is None:
                    return None
                m, beta = found
                if n is None:
                    n, alpha = m, c * beta
                elif not self.dense:
                    return None
                else:
                    both = null_space(torch.cat([n, -m], dim=1))
                    first, second = both[: n.shape[1]], both[n.shape[1] :]
                    n, alpha = n @ first, first.T @ alpha + c * (second.T @ beta)
            else:
                offset.append((c, self.number(term, labels, record.out)))
        if n is None:
            return None
        for c, b in offset:
            alpha = alpha + c * (n.T @ b)
        return n, alpha

    def _is_data(self, term: Operand) -> bool:
        """Whether a term is more than one vector: data, the rows of a table, positions."""
        flow = self.flow
        if term.value in flow.classes.data or not flow.is_parameter(term.value) or term.hidden_dims():
            return True
        return sum(n > 1 for n in term.value.shape) > 1

    def _term(self, term: Operand, labels: list[Label]) -> tuple[Tensor, Tensor] | None:
        if any(label not in term.groups for label in labels):
            return None
        dims = dims_of(term, labels)
        if not self.flow.is_parameter(term.value):
            return self.known(term.value, dims)
        if not self.dense:
            return None
        rows = parameter_value(term.value, self.flow.producers, self.params)
        rest = [d for d in range(rows.ndim) if d not in dims]
        rows = rows.permute(*rest, *dims).reshape(-1, self._size(term.value, dims))
        n = null_space(rows - rows.mean(dim=0))
        return n, n.T @ rows[0]

    def _product(self, record: Product, labels: list[Label]) -> tuple[Tensor, Tensor] | None:
        data = [f for f in record.factors if not self.flow.is_parameter(f.value)]
        weights = [f for f in record.factors if self.flow.is_parameter(f.value)]
        holders = [f for f in data if all(label in f.groups for label in labels)]
        touched = [f for f in record.factors if any(label in f.groups for label in labels)]
        if len(holders) == 1 and all(f in holders or f in weights for f in touched):
            return self._gained(record, labels, holders[0], data, weights)
        if len(data) == 1 and len(weights) == 1 and touched == weights and self.dense and not record.border:
            return self._mapped(record, labels, weights[0], data[0])
        return None

    def _gained(
        self, record: Product, labels: list[Label], x: Operand, data: list[Operand], weights: list[Operand]
    ) -> tuple[Tensor, Tensor] | None:
        """The axis goes through, perhaps times gains, averaged over positions, or times a number made of data."""
        n, alpha = self.known(x.value, dims_of(x, labels))
        if any(label not in record.out.groups for w in weights for label in w.groups):
            return None
        for w in weights:
            if any(label not in labels for label in w.groups):
                return None
            n = n / self.number(w, labels, record.out)[:, None]
        summed = [k for k in x.groups if k not in record.out.groups]
        count = math.prod(x.value.shape[d] for k in summed for d in x.groups[k])
        average = len(data) == 2 and any(self.flow.averages(f, summed) for f in data if f is not x)
        if len(data) == 1 or average:
            return n, alpha * record.scale * (1 if average else count)
        return self._homogeneous(n, alpha)

    def _homogeneous(self, n: Tensor, alpha: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Constraints with α = 0 survive an unknown factor."""
        if not n.shape[1]:
            return None
        rows = alpha[None] if extra is None else torch.cat([alpha[None], extra])
        if not self.dense:
            return None if bool(rows.any()) else (n, alpha)
        kept = null_space(rows) if bool(rows.any()) else torch.eye(n.shape[1], dtype=n.dtype)
        return n @ kept, alpha.new_zeros(kept.shape[1])

    def _mapped(self, record: Product, labels: list[Label], w: Operand, x: Operand) -> tuple[Tensor, Tensor] | None:
        """aᵀWx is constant if Wᵀa is a constraint on x."""
        matrix = self.matrix(record, w, x)
        if matrix is None or set(matrix[1]) != set(labels):
            return None
        weight, out_labels, in_labels = matrix
        n, alpha = self.known(x.value, dims_of(x, in_labels))
        order = order_of(record.out, w, out_labels, labels)
        both = null_space(torch.cat([weight[order].T, -n], dim=1))
        a = both[: weight.shape[0]]
        return a, record.scale * (both[weight.shape[0] :].T @ alpha)

    def matrix(self, record: Product, w: Operand, x: Operand) -> tuple[Tensor, list[Label], list[Label]] | None:
        """A weight as (what only it and the output have) x (what is contracted with x), if it has nothing else."""
        out_labels = [k for k in w.groups if k in record.out.groups and k not in x.groups]
        in_labels = [k for k in w.groups if k in x.groups and k not in record.out.groups]
        contracted = {k for f in record.factors for k in f.groups if k not in record.out.groups}
        if len(out_labels) + len(in_labels) != len(w.groups) or contracted != set(in_labels) or not in_labels:
            return None
        dims = [d for k in (*out_labels, *in_labels) for d in w.groups[k]]
        if len(dims) != len(w.value.shape):
            return None
        value = parameter_value(w.value, self.flow.producers, self.params).permute(dims)
        rows = math.prod(w.value.shape[d] for k in out_labels for d in w.groups[k])
        return value.reshape(rows, -1), out_labels, in_labels

    def _norm(self, record: Norm, labels: list[Label]) -> tuple[Tensor, Tensor] | None:
        affine = [o.value for o in (record.gain, record.bias) if o is not None]
        if not record.reduced <= set(labels) or not all(self.flow.is_parameter(v) for v in affine):
            return None
        like = self._like()
        size = math.prod(record.out.value.shape[d] for k in labels for d in record.out.groups[k])
        gain = like.new_ones(size) if record.gain is None else self.number(record.gain, labels, record.out)
        groups = self.blocks(record.out, labels, record.reduced)
        columns = [groups] if record.centred else []
        if groups.shape[1] == 1:  # one unknown factor for all
            n, alpha = self.known(record.x.value, dims_of(record.x, labels))
            found = self._homogeneous(n, alpha, n.sum(0, keepdim=True) if record.centred else None)
            if found is not None:
                columns.append(found[0])
        if not columns:
            return None
        n = torch.cat(columns, dim=1) / gain[:, None]
        shift = like.new_zeros(size) if record.bias is None else self.number(record.bias, labels, record.out)
        return n, n.T @ shift

    def blocks(self, operand: Operand, labels: list[Label], reduced: frozenset[Label]) -> Tensor:
        """One column for each group that is normalised by itself: ones on it."""
        sizes = [math.prod(operand.value.shape[d] for d in operand.groups[k]) for k in labels]
        kept = [1 if k in reduced else n for n, k in zip(sizes, labels, strict=True)]
        number = torch.arange(math.prod(kept)).reshape([
            1 if k in reduced else n for n, k in zip(sizes, labels, strict=True)
        ])
        flat = number.expand(sizes).reshape(-1)
        return torch.eye(math.prod(kept), dtype=self._like().dtype)[flat]
