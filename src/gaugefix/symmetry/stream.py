"""Symmetries around normalisations: mean shifts, null directions, rotations of a residual stream, rotary pairs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.cells import Cell, Cells, Slot
from gaugefix.symmetry.classes import AxisClass, Classes, SlotKey
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Cut, Norm, Operand, Product, Record, Softmax, Sum
from gaugefix.symmetry.units import Params, Slice


@dataclass(eq=False)
class Flow:
    """Who consumes what, slot by slot.

    Attributes:
        classes: of the lowered graph.
        consumers: value -> records that read it, with the position of the operand.
        producers: value -> the record that makes it.
    """

    classes: Classes
    consumers: dict[Value, list[tuple[Record, int]]] = field(default_factory=lambda: defaultdict(list))
    producers: dict[Value, Record] = field(default_factory=dict)
    concatenations: set[Value] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Index the records."""
        lower = self.classes.cells.lower
        self.outputs = set(lower.zero)
        for record in lower.records:
            if isinstance(record, Cut):
                # a cut of a made value is read from it; a cut of a concatenation makes it
                made = record.whole in self.producers or record.whole.kind != "op"
                self.consumers[record.whole if made else record.out.value].append((record, 1 if made else 0))
                if made:
                    self.producers.setdefault(record.out.value, record)
                else:
                    self.concatenations.add(record.whole)
                continue
            self.producers[record.out.value] = record
            for i, operand in enumerate(record.operands()):
                self.consumers[operand.value].append((record, i + 1))

    def removed(self, value: Value, cell: Cell, slot: Slot, seen: set[tuple[Value, Cell, Slot]] | None = None) -> bool:
        """Whether adding any multiple of the all-ones vector along a slot never reaches an output.

        Args:
            value: where the multiple is added, possibly different for every sample and position.
            cell: its cell.
            slot: the axis.
            seen: used by the recursion.

        Returns:
            True if every path ends in a centred normalisation or a softmax over exactly that axis.
        """
        seen = set() if seen is None else seen
        if (value, cell, slot) in seen:
            return True
        seen.add((value, cell, slot))
        if value in self.outputs or not self.consumers[value] or value in self.concatenations:
            return False
        for record, i in self.consumers[value]:
            for joint in self.classes.cells.joint(record):
                if i >= len(joint.operands) or joint.cells[i] != cell:
                    continue
                name = joint.slot_names(i).get(slot)
                if name is None or (isinstance(record, Cut) and i == 0):
                    return False
                match record:
                    case Norm():
                        if not (i == 1 and record.centred and self._alone(record, name[0], joint.slot_names(1))):
                            return False
                    case Softmax():
                        if name[0] != record.label or sum(n[0] == name[0] for n in joint.slot_names(1).values()) > 1:
                            return False
                    case Sum() | Cut() | Product():
                        target = {n: s for s, n in joint.slot_names(0).items()}.get(name)
                        shared = sum(name in joint.slot_names(j).values() for j in range(1, len(joint.operands)))
                        if target is None or (shared > 1 and isinstance(record, Product)):
                            return False
                        if not self.removed(joint.operands[0].value, joint.cells[0], target, seen):
                            return False
                    case _:
                        return False
        return True

    @staticmethod
    def _alone(record: Norm, label: object, names: dict[Slot, tuple[object, int]]) -> bool:
        """Whether a normalisation runs over one label that is one atom."""
        return record.reduced == {label} and sum(n[0] == label for n in names.values()) == 1

    def normalised(self, value: Value) -> Norm | None:
        """The centred normalisation of which a value is a copy or an average over positions."""
        while True:
            record = self.producers.get(value)
            if isinstance(record, Norm):
                return record if record.centred else None
            if isinstance(record, Sum) and len(record.terms) == 1 and record.coefficients == (1.0,):
                value = record.terms[0].value
            elif isinstance(record, Product) and len(record.factors) == 1 and self._is_mean(record):
                value = record.factors[0].value
            else:
                return None

    @staticmethod
    def _is_mean(record: Product) -> bool:
        factor = record.factors[0]
        count = prod(factor.value.shape[d] for k, g in factor.groups.items() if k not in record.out.groups for d in g)
        return abs(count * record.scale - 1) < 1e-12


@dataclass(frozen=True, eq=False)
class MeanShift(Symmetry):
    """W → W + 1vᵀ for weights that write only into centred normalisations. Elements: v, the other entries of W.

    Attributes:
        where: the slice of the weight; the vector of ones runs over its units.
    """

    where: Slice | None = None
    length: int = 0

    @property
    def n_generators(self) -> int:
        """The entries of v."""
        return self.length

    def sample(self, generator: torch.Generator) -> Tensor:
        """Gaussian v."""
        return torch.randn(self.length, generator=generator, dtype=torch.float64)

    def path(self, k: int, t: Tensor) -> Tensor:
        """The entry k of v is t."""
        if not 0 <= k < self.length:
            raise IndexError(f"{self.name}: generator {k} of {self.length}.")
        return t * torch.eye(self.length, dtype=t.dtype)[k]

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Add the same row to every unit."""
        assert self.where is not None
        w = params[self.where.param]
        block = self.where.take(w)
        shifted = block + element.to(block).reshape(1, 1, *block.shape[2:])
        return {**params, self.where.param: self.where.put(w, shifted)}


@dataclass(frozen=True, eq=False)
class NullDirection(Symmetry):
    """Readers of a LayerNorm may change along 1/g, which its output β + g⊙x̂ does not see because Σ x̂ = 0.

    W → W + v(1/g)ᵀ and b → b − vΣβ/g for one reader with a bias; without one, all readers together:
    W → W(1 + δ(1/g)ᵀ), β → (1 + δ(1/g)ᵀ)⁻¹β. Elements: v, or δ.
    """

    readers: tuple[Slice, ...] = ()
    gain: str | None = None
    shift: str | None = None
    reader_bias: str | None = None
    length: int = 0
    joint: bool = False

    @property
    def n_generators(self) -> int:
        """The entries of v or δ."""
        return self.length

    def sample(self, generator: torch.Generator) -> Tensor:
        """Gaussian numbers; small for δ, so that the map is invertible."""
        z = torch.randn(self.length, generator=generator, dtype=torch.float64)
        return 0.1 * z / self.length**0.5 if self.joint else z

    def path(self, k: int, t: Tensor) -> Tensor:
        """The entry k is t."""
        if not 0 <= k < self.length:
            raise IndexError(f"{self.name}: generator {k} of {self.length}.")
        return t * torch.eye(self.length, dtype=t.dtype)[k]

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Change the readers and take the constant back in a bias."""
        out = dict(params)
        n = self.readers[0].index.shape[1]
        w0 = params[self.readers[0].param]
        element = element.to(w0)
        g = params[self.gain] if self.gain is not None else w0.new_ones(n)
        beta = params[self.shift] if self.shift is not None else w0.new_zeros(n)
        total = (beta / g).sum()
        for s in self.readers:
            block = s.take(out[s.param])  # (1, n, 1, *rest)
            if self.joint:
                pulled = torch.einsum("n,fn...->f...", element, block)
            else:
                pulled = element.reshape(1, *block.shape[2:])
            out[s.param] = s.put(out[s.param], block + torch.einsum("n,f...->fn...", 1 / g, pulled))
        if self.joint and self.shift is not None:
            out[self.shift] = beta - element * (total / (1 + (element / g).sum()))
        elif self.reader_bias is not None and self.shift is not None:
            b = out[self.reader_bias]
            out[self.reader_bias] = b - total * element.reshape(b.shape)
        return out


@dataclass(frozen=True, eq=False)
class StreamRotation(Symmetry):
    """O(d) on a residual stream that is read only through normalisations. Elements: orthogonal ``(d, d)``.

    Writers turn by Q; behind a normalisation with gain g the axis turns by M = diag(g) Q diag(1/g), its shift by M and
    its readers by M⁻ᵀ. With LayerNorm Q keeps the vector of ones.

    Attributes:
        writers: slices that turn by Q.
        behind: per normalisation: the gain (or None), slices that turn by M, slices that turn by M⁻ᵀ.
        centred: Q keeps the vector of ones.
        size: d.
    """

    writers: tuple[Slice, ...] = ()
    behind: tuple[tuple[str | None, tuple[Slice, ...], tuple[Slice, ...]], ...] = ()
    centred: bool = False
    size: int = 0

    @property
    def _n(self) -> int:
        return self.size - self.centred

    @property
    def n_generators(self) -> int:
        """Pairs of axes orthogonal to the vector of ones, if that is kept."""
        return self._n * (self._n - 1) // 2

    def _frame(self, like: Tensor) -> Tensor:
        """Orthonormal columns spanning what may turn."""
        if not self.centred:
            return torch.eye(self.size, dtype=like.dtype)
        full = torch.eye(self.size, dtype=like.dtype)
        full[:, 0] = 1
        return torch.linalg.qr(full)[0][:, 1:]

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random orthogonal matrix near no particular point."""
        z = torch.randn(self._n, self._n, generator=generator, dtype=torch.float64)
        return self._embed(torch.linalg.qr(z)[0])

    def _embed(self, q: Tensor) -> Tensor:
        frame = self._frame(q)
        return frame @ q @ frame.T + torch.eye(self.size, dtype=q.dtype) - frame @ frame.T

    def path(self, k: int, t: Tensor) -> Tensor:
        """1 + t(E_ij − E_ji) in the frame."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        i, j = torch.triu_indices(self._n, self._n, 1)[:, k].tolist()
        skew = torch.zeros(self._n, self._n, dtype=t.dtype)
        skew[i, j], skew[j, i] = 1, -1
        frame = self._frame(skew)
        turned: Tensor = torch.eye(self.size, dtype=t.dtype) + t * (frame @ skew @ frame.T)
        return turned

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Turn every slice."""
        out = dict(params)

        def turn(s: Slice, matrix: Tensor) -> None:
            block = s.take(out[s.param])
            out[s.param] = s.put(out[s.param], torch.einsum("ij,fj...->fi...", matrix.to(block), block))

        for s in self.writers:
            turn(s, element)
        for gain, covariant, contravariant in self.behind:
            g = params[gain].to(element) if gain is not None else element.new_ones(self.size)
            m = g[:, None] * element / g
            inverse_t = element / g[:, None] * g  # M⁻ᵀ = diag(1/g) Q diag(g)
            for s in covariant:
                turn(s, m)
            for s in contravariant:
                turn(s, inverse_t)
        return out


@dataclass(frozen=True, eq=False)
class RotaryPairs(Symmetry):
    """SO(2) on every rotary pair (j, j + half) of queries and keys together. Elements: angles ``(fibers, half)``.

    Attributes:
        pairs: first and second halves of each weight or bias.
    """

    pairs: tuple[tuple[Slice, Slice], ...] = ()

    @property
    def _shape(self) -> tuple[int, int]:
        fibers, half, _ = self.pairs[0][0].index.shape
        return int(fibers), int(half)

    @property
    def n_generators(self) -> int:
        """One angle for each pair of each fiber."""
        return self._shape[0] * self._shape[1]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Random angles."""
        return torch.rand(self._shape, generator=generator, dtype=torch.float64) * 6.28

    def path(self, k: int, t: Tensor) -> Tensor:
        """One angle is t."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        return t * torch.eye(self.n_generators, dtype=t.dtype)[k].reshape(self._shape)

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Turn every pair."""
        out = dict(params)
        for a, b in self.pairs:
            first, second = a.take(out[a.param]), b.take(out[b.param])
            angle = element.to(first).reshape(*self._shape, *[1] * (first.ndim - 2))
            c, s = torch.cos(angle), torch.sin(angle)
            out[a.param] = a.put(out[a.param], c * first - s * second)
            out[b.param] = b.put(out[b.param], s * first + c * second)
        return out


def slice_of(classes: Classes, key: SlotKey, fibers: tuple[Axis, ...] = (), role: str = "write") -> Slice:
    """The slice of one slot."""
    at = classes.positions(key, fibers)
    return Slice(at.param, at.dim, at.index, role, at.others)  # type: ignore[arg-type]


def _others(classes: Classes, key: SlotKey) -> int:
    """Entries of a cell besides the slot."""
    value, cell, slot = key
    layouts = classes.cells.layout(value)
    total = prod(parts[k].size for parts, k in zip(layouts, cell, strict=True))
    return total // next(leaf.size for s, leaf in classes.cells.slots(value, cell) if s == slot)


def find_stream_symmetries(classes: Classes, names: dict[Axis, str], shifting: set[Value]) -> list[Symmetry]:
    """Everything that normalisations allow beyond permutations, scales and constant shifts.

    Args:
        classes: the axis classes.
        names: readable names of the classes.
        shifting: parameters that may move by a constant (see `shifts`), so that the common part is counted once.

    Returns:
        Mean shifts, null directions, stream rotations, rotary pairs.
    """
    flow = Flow(classes)
    out: list[Symmetry] = []
    for c in classes.by_leaf.values():
        out += _mean_shifts(flow, c, shifting)
    out += _null_directions(flow)
    for c in classes.by_leaf.values():
        if c.norms:
            out += _rotation(flow, c, names)
        if c.rotary:
            out += _rotary(classes, c, names)
    return out


def _mean_shifts(flow: Flow, c: AxisClass, shifting: set[Value]) -> list[Symmetry]:
    out: list[Symmetry] = []
    for key, _ in c.slots:
        value, cell, slot = key
        n = _others(flow.classes, key)
        counted = value in shifting
        if n - counted <= 0 or not flow.removed(value, cell, slot):
            continue
        out.append(
            MeanShift(
                f"{value.name}: add to every unit", f"T({n})", n - counted, (f"{value.name}[{slot[0]}]",), False,
                where=slice_of(flow.classes, key), length=n,
            )
        )  # fmt: skip
    return out


def _null_directions(flow: Flow) -> list[Symmetry]:
    readers: dict[Norm, list[tuple[SlotKey, str | None]]] = defaultdict(list)
    uses: dict[Value, int] = defaultdict(int)
    cells = flow.classes.cells
    for record in cells.lower.records:
        for operand in record.operands():
            uses[operand.value] += 1
    spoiled: set[Norm] = set()
    for record in cells.lower.records:
        if isinstance(record, Product) and len(record.factors) == 2:
            for w, x in (record.factors, record.factors[::-1]):
                norm = flow.normalised(x.value)
                key = _read_slot(cells, record, w, norm) if norm is not None and w.value.kind == "param" else None
                if norm is not None and key is not None and uses[w.value] == 1:
                    readers[norm].append((key, _bias_behind(flow, record.out)))
                elif norm is not None:
                    spoiled.add(norm)
    out: list[Symmetry] = []
    for norm, found in readers.items():
        gain, shift = (None if o is None else o.value for o in (norm.gain, norm.bias))
        if any(v is not None and v.kind != "param" for v in (gain, shift)):
            continue
        free = [(k, b) for k, b in found if b is not None or shift is None]
        for key, bias in free:
            n = _others(flow.classes, key)
            out.append(_null(flow, norm, (key,), n, n, bias, joint=False))
        bound = [k for k, b in found if b is None and shift is not None]
        whole = norm not in spoiled and _only_read(flow, norm)
        if bound and whole and shift is not None and uses[shift] == 1:
            d = classes_size(flow, found[0][0])
            rows = sum(_others(flow.classes, k) for k in bound)
            out.append(_null(flow, norm, tuple(k for k, _ in found), d, min(d, rows), None, joint=True))
    return out


def classes_size(flow: Flow, key: SlotKey) -> int:
    """Number of units of a slot."""
    return next(leaf.size for s, leaf in flow.classes.cells.slots(key[0], key[1]) if s == key[2])


def _null(
    flow: Flow, norm: Norm, keys: tuple[SlotKey, ...], length: int, dim: int, bias: str | None, *, joint: bool
) -> Symmetry:
    slices = tuple(slice_of(flow.classes, k, (), "read") for k in keys)
    gain = norm.gain.value.name if norm.gain is not None else None
    shift = norm.bias.value.name if norm.bias is not None else None
    moved = [f"{s.param}[{s.dim}]" for s in slices]
    moved += [f"{p}[0]" for p in ((shift if joint else bias),) if p is not None]
    name = f"{shift or norm.place}: null direction" if joint else f"{slices[0].param}: null direction"
    return NullDirection(
        name, f"T({length})", dim, tuple(moved), False,
        readers=slices, gain=gain, shift=shift, reader_bias=bias, length=length, joint=joint,
    )  # fmt: skip


def _read_slot(cells: Cells, record: Product, w: Operand, norm: Norm) -> SlotKey | None:
    """The slot of a weight contracted with the whole normalised axis, if the weight is one cell in it."""
    label = next((k for k in w.groups if k not in record.out.groups), None)
    contracted = [k for f in record.factors for k in f.groups if k not in record.out.groups]
    if label is None or set(contracted) != {label} or len(w.groups[label]) != 1:
        return None
    d = w.groups[label][0]
    parts = cells.layout(w.value)
    target = [p.leaves for dim in _reduced_dims(norm) for p in cells.layout(norm.x.value)[dim]]
    if len(parts[d]) != 1 or len(parts[d][0].leaves) != 1 or target != [parts[d][0].leaves]:
        return None
    if any(len(p) > 1 for i, p in enumerate(parts) if i != d):  # a fused reader: one slot for the whole weight
        return (w.value, tuple(-1 if i != d else 0 for i in range(w.value.ndim)), (d, 0))
    return (w.value, (0,) * w.value.ndim, (d, 0))


def _reduced_dims(norm: Norm) -> list[int]:
    return [d for label in norm.reduced for d in norm.x.groups.get(label, ())]


def _bias_behind(flow: Flow, out: Operand) -> str | None:
    """The bias that is added right behind a product, if it covers the same entries as the product's own axes."""
    users = flow.consumers[out.value]
    if len(users) != 1 or not isinstance(users[0][0], Sum):
        return None
    record = users[0][0]
    for term in record.terms:
        if term.value.kind == "param" and len(flow.consumers[term.value]) == 1:
            return term.value.name
    return None


def _only_read(flow: Flow, norm: Norm) -> bool:
    """Whether the output of a normalisation is only ever contracted with weights (after copies)."""
    stack = [norm.out.value]
    while stack:
        value = stack.pop()
        if value in flow.outputs or not flow.consumers[value]:
            return False
        for record, _ in flow.consumers[value]:
            if (isinstance(record, Sum) and len(record.terms) == 1) or (isinstance(record, Product) and len(record.factors) == 1 and Flow._is_mean(record)):
                stack.append(record.out.value)
            elif not (isinstance(record, Product) and any(f.value.kind == "param" for f in record.factors)):
                return False
    return True


def _rotation(flow: Flow, c: AxisClass, names: dict[Axis, str]) -> list[Symmetry]:
    classes = flow.classes
    if c.pinned or c.elementwise or c.rotary or c.fibers:
        return []
    find = classes.parity.find
    cells = classes.cells
    inside, behind = set(), {}
    for norm in c.norms:
        d = _reduced_dims(norm)[0]
        cell_in = tuple(0 for _ in range(norm.x.value.ndim))
        root_in, _ = find((norm.x.value, cell_in, (d, 0)))
        label = next(iter(norm.reduced))
        d_out = norm.out.groups[label][0]
        root_out, sign = find((norm.out.value, tuple(0 for _ in range(norm.out.value.ndim)), (d_out, 0)))
        gain = norm.gain.value if norm.gain is not None else None
        if gain is not None and gain.kind != "param":
            return []
        if root_out in behind and behind[root_out][0] is not gain:
            return []
        behind[root_out] = (gain, sign)
        inside.add(root_in)
    if inside & behind.keys() or any(r in classes.parity.odd for r in behind) or len(inside) != 1:
        return []
    writers, turned = [], {r: ([], []) for r in behind}
    for key, role in c.slots:
        root, sign = find(key)
        s = slice_of(classes, key, (), role)
        if root in inside:
            writers.append(s)
        elif root in behind:
            gain, base = behind[root]
            if key[0] is gain:
                continue
            turned[root][0 if sign == base else 1].append(s)
        else:
            return []
    centred = any(norm.centred for norm in c.norms)
    n = c.size - centred
    if n < 2:
        return []
    every = [*writers, *(s for pair in turned.values() for part in pair for s in part)]
    gains = [gain for gain, _ in behind.values() if gain is not None]
    name = names[c.leaf]
    del cells
    return [
        StreamRotation(
            f"{name}: rotate the stream", f"O({n})", n * (n - 1) // 2,
            tuple(dict.fromkeys(f"{s.param}[{s.dim}]" for s in every)), not gains,
            writers=tuple(writers),
            behind=tuple(
                (behind[r][0].name if behind[r][0] is not None else None, tuple(co), tuple(contra))
                for r, (co, contra) in turned.items()
            ),
            centred=centred, size=c.size,
        )
    ]  # fmt: skip


def _rotary(classes: Classes, c: AxisClass, names: dict[Axis, str]) -> list[Symmetry]:
    if c.elementwise or c.norms:
        return []
    order = list(classes.by_leaf)
    fibers = tuple(sorted(c.fibers, key=order.index))
    halves: dict[tuple[Value, int, tuple[int, ...]], list[SlotKey]] = defaultdict(list)
    for key, _ in c.slots:
        value, cell, slot = key
        rest = tuple(k for d, k in enumerate(cell) if d != slot[0])
        halves[value, slot[0], rest].append(key)
    pairs = []
    for keys in halves.values():
        keys.sort(key=lambda k: k[1])
        if len(keys) % 2:
            return []
        for a, b in zip(keys[::2], keys[1::2], strict=True):
            pairs.append((slice_of(classes, a, fibers), slice_of(classes, b, fibers)))
    if not pairs:
        return []
    dim = c.size * prod(f.size for f in fibers)
    axes = tuple(dict.fromkeys(f"{a.param}[{a.dim}]" for a, _ in pairs))
    return [RotaryPairs(f"{names[c.leaf]}: turn rotary pairs", f"SO(2)^{dim}", dim, axes, True, pairs=tuple(pairs))]
