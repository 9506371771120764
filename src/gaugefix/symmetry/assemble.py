"""From axis classes and charges to named symmetries and units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from math import prod

import numpy as np

from gaugefix.symmetry.axes import Axis
from gaugefix.symmetry.charges import ChargeSpace, Variable, solve_charges
from gaugefix.symmetry.classes import AxisClass, Classes, SlotKey
from gaugefix.symmetry.gauges import find_gauges
from gaugefix.symmetry.generic import settle_dims
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation, Symmetry
from gaugefix.symmetry.linear_system import Row, Span
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.units import Role, Slice, Units


def assemble(classes: Classes) -> Symmetries:
    """Build every symmetry of a lowered graph.

    Args:
        classes: the axis classes.

    Returns:
        The symmetries, not yet verified: axis-local groups class by class, then scales, signs and gauges.
    """
    lower = classes.cells.lower
    builder = _Builder(classes)
    gauges, notes = find_gauges(classes, builder.names)
    symmetries = [*builder.axis_groups(), *builder.scales(), *builder.signs(), *gauges]
    symmetries = _unique_names(symmetries)
    symmetries, note = settle_dims(symmetries, builder.shapes)
    notes = [*lower.graph.notes, *notes, *([note] if note else [])]
    params = lower.graph.params
    return Symmetries(
        tuple(symmetries),
        tuple(builder.units.values()),
        tuple(dict.fromkeys(lower.opaque)),
        sum(prod(v.shape) for v in params.values()),
        skipped=tuple(notes),
        output=lower.graph.output_name,
        shapes=builder.shapes,
    )


def _unique_names(symmetries: list[Symmetry]) -> list[Symmetry]:
    seen: Counter[str] = Counter()
    out = []
    for s in symmetries:
        seen[s.name] += 1
        out.append(s if seen[s.name] == 1 else replace(s, name=f"{s.name} #{seen[s.name]}"))
    return out


def subsets(sector: frozenset[Axis]) -> list[frozenset[Axis]]:
    """All subsets, the largest first."""
    items = list(sector)
    return [frozenset(c) for n in range(len(items), -1, -1) for c in combinations(items, n)]


class _Builder:
    """Names, units and symmetries of one model."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.shapes = {n: v.shape for n, v in classes.cells.lower.graph.params.items()}
        self.order = {v: i for i, v in enumerate(classes.cells.lower.graph.params.values())}
        self.place = {leaf: i for i, leaf in enumerate(classes.by_leaf)}
        self._taken: Counter[str] = Counter()
        self.names: dict[Axis, str] = {leaf: self._name(c) for leaf, c in classes.by_leaf.items()}
        self.units: dict[Axis, Units] = {
            leaf: self._units(c) for leaf, c in classes.by_leaf.items() if not c.pinned and c.slots
        }

    # units

    def _name(self, c: AxisClass) -> str:
        """The module that writes the class, made unique."""
        writers = [key[0].name for key, role in c.slots if role == "write"] or [key[0].name for key, _ in c.slots]
        base = writers[0].rpartition(".")[0] or writers[0] if writers else "axis"
        return self.unique(base)

    def unique(self, name: str) -> str:
        """The name, with a number if it was given before."""
        self._taken[name] += 1
        return name if self._taken[name] == 1 else f"{name} #{self._taken[name]}"

    def _chain(self, c: AxisClass) -> tuple[Axis, ...]:
        """The fibers in a fixed order."""
        return tuple(sorted(c.fibers, key=self.place.__getitem__))

    def slice_of(self, key: SlotKey, fibers: tuple[Axis, ...], role: Role = "gain") -> Slice:
        """The slice of one slot."""
        at = self.classes.positions(key, fibers)
        return Slice(at.param, at.dim, at.index, role, at.others)

    def _units(self, c: AxisClass) -> Units:
        fibers = self._chain(c)
        slices = tuple(_merge([self.slice_of(key, fibers, role) for key, role in c.slots], self.shapes))
        names = [n for n in c.activations if n != "identity"]
        activation = "identity" if not names else names[0] if len(names) == 1 else "mixed"
        if c.elementwise and not names:
            activation = "none" if c.norms or any(s.role == "gain" for s in slices) else activation
        return Units(
            self.names[c.leaf],
            c.size,
            prod(leaf.size for leaf in fibers),
            slices,
            activation,
            self._kind(c, slices),
            frozenset(
                flag
                for flag, on in (
                    ("elementwise", c.elementwise),
                    ("normalised", bool(c.norms)),
                    ("rotary", c.rotary),
                    ("linear", c.linear),
                )
                if on
            ),
        )

    def _kind(self, c: AxisClass, slices: tuple[Slice, ...]) -> str:
        if c.norms and sum(s.role == "write" for s in slices) > 1:
            return "residual"
        if any(s.index.shape[2] > 1 for s in slices) and any(
            c.leaf in other.fibers for other in self.classes.by_leaf.values()
        ):
            return "head"
        if any(leaf in self.classes.by_leaf for leaf in c.fibers) and c.linear:
            return "head_dim"
        if any(len(self.classes.cells.lower.graph.params[s.param].shape) > 2 for s in slices):
            return "channel"
        return "hidden"

    # groups

    def axis_groups(self) -> list[Symmetry]:
        """A permutation or rotation group for every class that is not pinned."""
        out: list[Symmetry] = []
        for leaf, units in self.units.items():
            c = self.classes.by_leaf[leaf]
            axes = _axes(units.slices)
            if c.linear:
                out += self._rotations(c, units)
            else:
                group = _power(f"S_{units.size}", units.fibers)
                out.append(Permutation(f"{units.name}: permute", group, 0, axes, True, units=units))
        return out

    def _rotations(self, c: AxisClass, units: Units) -> list[Symmetry]:
        """One general linear group for every set of slots that contractions and sums tie together."""
        fibers = self._chain(c)
        groups: dict[SlotKey, list[tuple[SlotKey, Role, int]]] = {}
        for key, role in c.slots:
            root, sign = self.classes.parity.find(key)
            groups.setdefault(root, []).append((key, role, sign))
        out: list[Symmetry] = []
        for i, (root, members) in enumerate(groups.items()):
            orthogonal = root in self.classes.parity.odd
            own = Units(
                units.name, units.size, units.fibers,
                tuple(self.slice_of(key, fibers, role) for key, role, _ in members),
                units.activation, units.kind, units.flags,
            )  # fmt: skip
            n = units.size
            out.append(
                Rotation(
                    f"{units.name}: rotate" + (f" ({i + 1})" if len(groups) > 1 else ""),
                    _power(f"{'O' if orthogonal else 'GL'}({n})", units.fibers),
                    units.fibers * (n * (n - 1) // 2 if orthogonal else n * n),
                    _axes(own.slices),
                    orthogonal,
                    units=own,
                    polarity=tuple(sign for _, _, sign in members),
                    orthogonal=orthogonal,
                )
            )
        return out

    # charges

    def scales(self) -> list[Symmetry]:
        """Every rescaling that is not inside a general linear group."""
        space = solve_charges(self.classes.cells)
        return _Diagonals(self, space, "scale").symmetries()

    def signs(self) -> list[Symmetry]:
        """Every sign flip that is not inside a general linear group."""
        space = solve_charges(self.classes.cells, modulus=2)
        return _Diagonals(self, space, "sign").symmetries()


class _Diagonals:
    """Turns a charge space into symmetries, each counted once."""

    def __init__(self, builder: _Builder, space: ChargeSpace, kind: str) -> None:
        self.builder, self.space, self.kind = builder, space, kind
        self.modulus = 2 if kind == "sign" else 0
        self.used: dict[frozenset[Axis], Span] = {}
        self.solved: dict[frozenset[Axis], Span] = {}  # what solves the equations, sector by sector
        classes = builder.classes
        self.linear = {leaf for leaf, c in classes.by_leaf.items() if c.linear and c.slots}
        for leaf in self.linear:
            self._use_centre(classes.by_leaf[leaf])

    def _use_centre(self, c: AxisClass) -> None:
        """The centre of a GL group rescales its fibers already."""
        roots: dict[SlotKey, Row] = {}
        cells = self.builder.classes.cells
        for sector in subsets(c.fibers):
            roots.clear()
            for key, _ in c.slots:
                root, sign = self.builder.classes.parity.find(key)
                if root in self.builder.classes.parity.odd and self.kind == "scale":
                    continue
                value, cell, slot = key
                chain_slots = cells.chain(value, cell, slot, c.leaf)
                at = frozenset(s for s, leaf in cells.slots(value, cell) if s in chain_slots and leaf in sector)
                row = roots.setdefault(root, {})
                row[value, cell, at] = row.get((value, cell, at), 0) + (1 if self.modulus else sign)
            for row in roots.values():
                self._used(sector).add(row)

    def symmetries(self) -> list[Symmetry]:
        """Per-index charges first, then what is left of the uniform ones."""
        out: list[Symmetry] = []
        for sector in sorted(self.space.basis, key=lambda s: -len(s)):
            if sector & self.linear:
                continue
            for row, extends in self._extendable_first(sector):
                symmetry = self._make(sector, row, extends)
                if symmetry is not None:
                    out.append(symmetry)
        return out

    def _extension(self, row: Row, lower: frozenset[Axis]) -> Row:
        """The pattern of a charge vector for functions of fewer indices."""
        cells = self.builder.classes.cells
        out: Row = {}
        for variable, c in row.items():
            value, cell, slots = variable
            keep = frozenset(s for s, leaf in cells.slots(value, cell) if s in slots and leaf in lower)
            out[value, cell, keep] = out.get((value, cell, keep), 0) + c
        return {v: c for v, c in out.items() if (c % 2 if self.modulus else c)}

    def _extendable_first(self, sector: frozenset[Axis]) -> list[tuple[Row, bool]]:
        """The basis of a sector; True marks vectors whose pattern solves the equations of every smaller sector too."""
        whole: list[Row] = []
        rest: list[Row] = []
        lowers = [s for s in subsets(sector) if s != sector]
        for row in self.space.basis[sector]:
            fits = all(self._extension(row, s) in self._solved(s) for s in lowers)
            (whole if fits else rest).append(row)
        return [(r, True) for r in whole] + [(r, False) for r in rest]

    def _solved(self, sector: frozenset[Axis]) -> Span:
        if sector not in self.solved:
            span = self.solved[sector] = Span(self.modulus)
            for row in self.space.basis.get(sector, []):
                span.add(row)
        return self.solved[sector]

    def _used(self, sector: frozenset[Axis]) -> Span:
        return self.used.setdefault(sector, Span(self.modulus))

    def _make(self, sector: frozenset[Axis], row: Row, extends: bool) -> Symmetry | None:
        if not self._used(sector).add(row):
            return None
        dim = self.space.directions(sector)
        for lower in subsets(sector)[1:] if extends else []:
            if self._used(lower).add(self._extension(row, lower)):
                dim += self.space.directions(lower)
        return self._symmetry(sector, row, extends, dim)

    def _symmetry(self, sector: frozenset[Axis], row: Row, extends: bool, dim: int) -> Symmetry:
        builder, classes = self.builder, self.builder.classes
        leaves = sorted(sector, key=builder.place.__getitem__)
        # the class whose own index this is comes last: the one that has the others as fibers
        main = next((x for x in leaves if classes.by_leaf[x].fibers >= sector - {x}), leaves[-1] if leaves else None)
        fibers = tuple(x for x in leaves if x is not main)
        charges = []
        place = builder.order
        for variable, c in sorted(row.items(), key=lambda item: place[item[0][0]]):
            value, cell, slots = variable
            if main is None:
                charges.append((self._whole(variable), float(c)))
                continue
            slot = next(s for s, leaf in classes.cells.slots(value, cell) if s in slots and leaf is main)
            roles: dict[SlotKey, Role] = dict(classes.by_leaf[main].slots)
            role = roles.get((value, cell, slot), "gain")
            charges.append((builder.slice_of((value, cell, slot), fibers, role), float(c)))
        if sum(q for _, q in charges) < 0 and self.kind == "scale":
            charges = [(s, -q) for s, q in charges]
        sizes = tuple(x.size for x in (*fibers, *([main] if main is not None else [])))
        base = builder.names[main] if main is not None else "whole layers"
        if main is None:
            base = ", ".join(
                dict.fromkeys(v[0].name.rpartition(".")[0] or v[0].name for v in sorted(row, key=lambda v: place[v[0]]))
            )
        name = f"{base}: {'flip signs' if self.kind == 'sign' else 'rescale'}"
        count = prod(sizes)
        if self.kind == "sign":
            group, dim = f"Z_2^{count}" if count > 1 else "Z_2", 0
        else:
            group = f"R+^{count}" if extends and count > 1 else f"R+^{dim}" if count > 1 else "R+"
        return Diagonal(
            name, group, dim, _axes(tuple(s for s, _ in charges)), self.kind == "sign",
            units=builder.units.get(main) if main is not None else None,
            charges=tuple(charges), shape=sizes, kind=self.kind, mean_zero=not extends and bool(sizes),
        )  # fmt: skip

    def _whole(self, variable: Variable) -> Slice:
        """All entries of a cell as one unit."""
        value, cell, _ = variable
        layouts = self.builder.classes.cells.layout(value)
        if not layouts:
            return Slice(value.name, 0, np.zeros((1, 1, 1), dtype=np.int64), "gain")
        index = layouts[0][cell[0]].index.reshape(1, 1, -1)
        others = {
            d: parts[k].index.reshape(1, -1)
            for d, (parts, k) in enumerate(zip(layouts, cell, strict=True))
            if d and len(parts) > 1
        }
        return Slice(value.name, 0, index, "gain", others)


def _merge(slices: list[Slice], shapes: Mapping[str, tuple[int, ...]]) -> list[Slice]:
    """Slices that cover all parts of the other dimensions of one parameter become one unrestricted slice."""
    out: list[Slice] = []
    for s in slices:
        twin = next(
            (
                i for i, t in enumerate(out)
                if t.param == s.param and t.dim == s.dim and t.role == s.role and t.others and s.others
                and t.others.keys() == s.others.keys() and len(s.others) == 1
                and len(next(iter(s.others.values()))) == 1 and len(next(iter(t.others.values()))) == 1
                and np.array_equal(t.index, s.index)
            ),
            None,
        )  # fmt: skip
        if twin is None:
            out.append(s)
            continue
        (d, a), b = next(iter(out[twin].others.items())), next(iter(s.others.values()))
        out[twin] = Slice(s.param, s.dim, s.index, s.role, {d: np.sort(np.concatenate([a, b], axis=1), axis=1)})
    return [_unrestricted(s, shapes[s.param]) for s in out]


def _unrestricted(s: Slice, shape: tuple[int, ...]) -> Slice:
    """Drop restrictions that leave nothing out."""
    others = {d: p for d, p in s.others.items() if p.shape[0] > 1 or p.shape[1] < shape[d]}
    return Slice(s.param, s.dim, s.index, s.role, others)


def _axes(slices: tuple[Slice, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{s.param}[{s.dim}]" for s in slices))


def _power(group: str, n: int) -> str:
    return group if n == 1 else f"({group})^{n}"
