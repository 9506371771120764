"""Finding changes of basis around normalisations: rotations of a stream, and shears that norms do not see.

Between normalisations an axis runs through *regions*: the occurrences that contractions, sums and copies tie together.
A normalisation leads from one region into another (or back into the same one). What it leaves free is a rotation of
the region that it reads, which goes through it, and shears: along 1 in the region that a centred one reads, across 1/γ
in the region that it writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gaugefix.symmetry.cells import Cell
from gaugefix.symmetry.classes import AxisClass, SlotKey
from gaugefix.symmetry.flow import Flow, places, slice_of
from gaugefix.symmetry.frame_groups import Shear, StreamRotation
from gaugefix.symmetry.gain_slide import GainSlide, Side
from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.records import Norm
from gaugefix.symmetry.units import Role, Slice


@dataclass(frozen=True, eq=False)
class _Passage:
    """A normalisation on one class.

    Attributes:
        norm: the record.
        source: region that it reads, and the polarity there.
        target: region that it writes, and the polarity there.
        gain: occurrence of the gain, if there is one.
        whole: the class is all that is normalised, not a part.
    """

    norm: Norm
    source: tuple[SlotKey, int]
    target: tuple[SlotKey, int]
    gain: SlotKey | None
    whole: bool


@dataclass(eq=False)
class _Region:
    """Occurrences in parameters that transform together, and the normalisations at both ends."""

    slots: list[tuple[SlotKey, Role, int]] = field(default_factory=list)
    entering: list[_Passage] = field(default_factory=list)
    leaving: list[_Passage] = field(default_factory=list)  # normalisations that write on it


@dataclass(eq=False)
class _Frames:
    """The regions of one class."""

    flow: Flow
    c: AxisClass
    name: str
    regions: dict[SlotKey, _Region] = field(default_factory=lambda: defaultdict(_Region))

    def __post_init__(self) -> None:
        classes = self.flow.classes
        for key, role in self.c.slots:
            root, sign = classes.parity.find(key)
            self.regions[root].slots.append((key, role, sign))
        for norm in self.c.norms:
            for passage in self._passages(norm):
                self.regions[passage.source[0]].entering.append(passage)
                self.regions[passage.target[0]].leaving.append(passage)
        self.rough = {classes.parity.find(key)[0] for key in classes.rough}

    def _passages(self, norm: Norm) -> Iterable[_Passage]:
        cells, find = self.flow.classes.cells, self.flow.classes.parity.find
        (label,) = (k for k in norm.reduced if norm.x.groups.get(k))
        (d,), (d_out,) = norm.x.groups[label], norm.out.groups[label]
        parts = cells.layout(norm.x.value)[d]
        for joint in cells.joint(norm):
            k = joint.cells[1][d]
            if parts[k].leaves != (self.c.leaf,):
                continue
            gain = None
            if norm.gain is not None:
                i = list(norm.operands()).index(norm.gain) + 1
                gain = self._origin(norm.gain.value, joint.cells[i], norm.gain.groups[label][0])
            yield _Passage(
                norm,
                find((norm.x.value, joint.cells[1], (d, 0))),
                find((norm.out.value, joint.cells[0], (d_out, 0))),
                gain,
                len(parts) == 1,
            )

    def _origin(self, value: Value, cell: Cell, dim: int) -> SlotKey | None:
        """The occurrence in a parameter of which a gain is a plain view."""
        origin = self.flow.origin(value)
        if origin is value:
            return value, cell, (dim, 0)
        keys = [key for key, _ in self.c.slots if key[0] is origin]
        return keys[0] if len(keys) == 1 else (value, cell, (dim, 0))

    def _slices(self, slots: Sequence[tuple[SlotKey, Role, int]]) -> tuple[Slice, ...]:
        return tuple(slice_of(self.flow.classes, key, (), role) for key, role, _ in slots)

    # rotations

    def rotations(self) -> list[Symmetry]:
        """O(d) on everything that normalisations without a gain tie to one region."""
        out: list[Symmetry] = []
        done: set[SlotKey] = set()
        for root, region in list(self.regions.items()):
            if root in done or not region.entering:
                continue
            tied = self._tied(root)
            done |= tied
            symmetry = self._rotation(tied)
            if symmetry is not None:
                out.append(symmetry)
        return out

    def _tied(self, root: SlotKey) -> set[SlotKey]:
        """Regions that turn alike: a normalisation without a gain passes a rotation on."""
        tied, stack = {root}, [root]
        while stack:
            region = self.regions[stack.pop()]
            for p in (*region.entering, *region.leaving):
                for other in (p.source[0], p.target[0]):
                    if p.norm.gain is None and other not in tied:
                        tied.add(other)
                        stack.append(other)
        return tied

    def _rotation(self, tied: set[SlotKey]) -> Symmetry | None:
        regions = [self.regions[root] for root in self.regions if root in tied]
        entering = [p for r in regions for p in r.entering]
        gained = {p.target[0]: p for p in entering if p.norm.gain is not None}
        centred = any(p.norm.centred for p in entering)
        n = self.c.size - centred
        if n < 2 or tied & self.rough or any(p.norm.gain is not None for r in regions for p in r.leaving):
            return None
        if any(not self._passes(root, p, tied) for root, p in gained.items()):
            return None
        behind = [self._behind(root, p) for root, p in gained.items()]
        turned = self._slices([s for r in regions for s in r.slots])
        every = [*turned, *(s for _, a, b in behind for s in (*a, *b))]
        if not turned:
            return None
        return StreamRotation(
            f"{self.name}: rotate the stream", f"O({n})", n * (n - 1) // 2, places(every), not behind,
            turned=turned, behind=tuple(behind), centred=centred, size=self.c.size,
        )  # fmt: skip

    def _behind(self, root: SlotKey, p: _Passage) -> tuple[Slice, tuple[Slice, ...], tuple[Slice, ...]]:
        """The gain of a normalisation, and what turns with and against the axis behind it."""
        assert p.gain is not None
        own = [s for s in self.regions[root].slots if s[0][0] is not p.gain[0]]
        return (
            slice_of(self.flow.classes, p.gain, (), "gain"),
            self._slices([s for s in own if s[2] == p.target[1]]),
            self._slices([s for s in own if s[2] != p.target[1]]),
        )

    def _passes(self, root: SlotKey, p: _Passage, tied: set[SlotKey]) -> bool:
        """Whether the region behind a gain may turn by its own matrix."""
        region = self.regions[root]
        return (
            root not in tied
            and root not in self.rough
            and root not in self.flow.classes.parity.odd
            and not region.entering
            and p.gain is not None
            and p.gain[0].kind == "param"
            and all(q.gain == p.gain and q.source[0] in tied and q.target[1] == p.target[1] for q in region.leaving)
        )

    # gains between two axes that rotate

    def slides(self) -> list[Symmetry]:
        """Every normalisation with a gain whose input and output may both rotate."""
        out: list[Symmetry] = []
        for root, region in self.regions.items():
            for p in region.entering:
                target = self.regions[p.target[0]]
                if p.gain is None or p.gain[0].kind != "param" or not target.entering or len(target.leaving) != 1:
                    continue
                before, after = self._tied(root), self._tied(p.target[0])
                if (
                    not p.whole
                    or before & after
                    or not (p.norm.centred or any(q.norm.centred for q in target.entering))
                ):
                    continue
                sides = self._side(before, p, reads=True), self._side(after, p, reads=False)
                if sides[0] is not None and sides[1] is not None and self.c.size > 2:
                    gain = slice_of(self.flow.classes, p.gain, (), "gain")
                    out.append(
                        GainSlide(
                            f"{self.name}: slide {p.gain[0].name}", "T(1)", 1,
                            places([*sides[0].slices(), *sides[1].slices(), gain]), False,
                            length=1, gain=gain, before=sides[0], after=sides[1], size=self.c.size,
                        )
                    )  # fmt: skip
        return out

    def _side(self, tied: set[SlotKey], p: _Passage, *, reads: bool) -> Side | None:
        """One side of a normalisation, if it may rotate."""
        entering = [q for root in tied for q in self.regions[root].entering if q.norm is not p.norm]
        leaving = [q for root in tied for q in self.regions[root].leaving if q.norm is not p.norm]
        gained = {q.target[0]: q for q in entering if q.norm.gain is not None}
        if tied & self.rough or any(q.norm.gain is not None for q in leaving):
            return None
        if any(not self._passes(root, q, tied) for root, q in gained.items()):
            return None
        centred = [q.norm.centred for q in entering]
        if reads and any(centred) and not p.norm.centred:
            return None
        if not reads and any(centred) and not (all(centred) and all(q.whole for q in entering)):
            return None
        behind = [self._behind(root, q) for root, q in gained.items()]
        main = p.source if reads else p.target
        own = [s for s in self.regions[main[0]].slots if p.gain is None or s[0][0] is not p.gain[0]]
        even = [s for root in self.regions if root in tied and root != main[0] for s in self.regions[root].slots]
        orthogonal = reads or not any(centred)
        turned = {p.source[1] for p in self.regions[main[0]].entering if p.source[0] == main[0]}
        if not orthogonal and (main[0] in self.flow.classes.parity.odd or turned - {main[1]}):
            return None
        return Side(
            self._slices([s for s in own if s[2] == main[1]]), self._slices([s for s in own if s[2] != main[1]]),
            self._slices(even), tuple(behind), p.norm.centred if reads else any(centred),
        )  # fmt: skip

    # shears

    def shears(self) -> list[Symmetry]:
        """1 + U M Kᵀ on regions that are linear but for centred normalisations."""
        out: list[Symmetry] = []
        for root, region in self.regions.items():
            entering = [p for p in region.entering if not self._reads_one(p, region)]
            ends = [*entering, *region.leaving]
            plain = all(p.norm.centred and p.whole for p in ends) and root not in self.rough
            if not ends or not plain or root in self.flow.classes.parity.odd:
                continue
            gains = {p.gain for p in region.leaving}
            if len(gains) > 1 or any(g is not None and g[0].kind != "param" for g in gains):
                continue
            symmetry = self._shear(region, entering, next(iter(gains), None))
            if symmetry is not None:
                out.append(symmetry)
        return out

    def _reads_one(self, p: _Passage, region: _Region) -> bool:
        """Whether a normalisation reads nothing but another one without a shift, which a shear leaves as it is."""
        norm = self.flow.normalised(p.norm.x.value)
        return norm is not None and norm.bias is None and any(q.norm is norm for q in region.leaving)

    def _shear(self, region: _Region, entering: list[_Passage], gain: SlotKey | None) -> Symmetry | None:
        base = (entering[0].source if entering else region.leaving[0].target)[1]
        if any(p.source[1] != base for p in entering) or any(p.target[1] != base for p in region.leaving):
            return None
        own = [s for s in region.slots if gain is None or s[0][0] is not gain[0]]
        writers = [s for s in own if s[2] == base]
        readers = [s for s in own if s[2] != base]
        matrices = any(len(key[0].shape) > 1 for key, _, _ in writers)
        if not readers or (region.leaving and not matrices):
            return None  # without readers every writer shifts alone; without other writers see `null_directions`
        length = 1 if entering and region.leaving else self.c.size
        covariant, contravariant = self._slices(writers), self._slices(readers)
        what = "mix into the mean" if entering else "shear across a norm"
        return Shear(
            f"{self.name}: {what}", f"T({length})", length, places([*covariant, *contravariant]), False,
            covariant=covariant, contravariant=contravariant, length=length, size=self.c.size,
            removed=bool(entering), written=bool(region.leaving),
            gain=None if gain is None else slice_of(self.flow.classes, gain, (), "gain"),
        )  # fmt: skip


def find_frames(flow: Flow, c: AxisClass, name: str) -> list[Symmetry]:
    """Rotations and shears of the regions of a class that enters normalisations.

    Args:
        flow: who makes and reads what.
        c: the class.
        name: readable.

    Returns:
        The symmetries.
    """
    if c.pinned or c.rotary or c.fibers:
        return []
    frames = _Frames(flow, c, name)
    return [*frames.rotations(), *frames.shears(), *frames.slides()]
