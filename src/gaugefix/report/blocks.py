"""The symmetries of a deep model as a short table: equal rows of repeated blocks become one, ``layers.0–31 × 32``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gaugefix.symmetry import Symmetries
from gaugefix.symmetry.groups import Symmetry

WHOLE = "across blocks"
LOSS = "the loss only"
_MOST_NAMES = 6


@dataclass(frozen=True)
class Row:
    """A symmetry that every block of a section has.

    Attributes:
        kind: what the group does ("permute", "rotate the stream").
        group: the group of one block.
        dim: directions in one block.
        units: "8 x 128" for 8 fibers of 128 units; empty without a class of units.
        acts_on: parameters that move, by their names inside the block.
        error: the largest measured change of the output, or None.
    """

    kind: str
    group: str
    dim: int
    units: str
    acts_on: str
    error: float | None = None


@dataclass(frozen=True)
class Section:
    """Blocks with equal rows.

    Attributes:
        block: "model.layers.0–31", or `WHOLE`.
        count: number of blocks.
        rows: what each of them has.
    """

    block: str
    count: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The name with the number of blocks, if there are several."""
        return f"{self.block} × {self.count}" if self.count > 1 else self.block

    @property
    def dim(self) -> int:
        """Directions of all blocks together."""
        return self.count * sum(r.dim for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Returns:
            Keys ``block, count, dim, rows``.
        """
        return {"block": self.block, "count": self.count, "dim": self.dim, "rows": [vars(r) for r in self.rows]}


@dataclass(frozen=True)
class _Entry:
    """One symmetry with its place: the block's name with ``*`` for the outermost number, and that number."""

    template: str
    number: int
    row: Row


def fold_blocks(found: Symmetries) -> tuple[Section, ...]:
    """Group symmetries by the block in which all their parameters lie, and fold blocks with equal rows.

    A block is what a number in the parameter names counts: ``model.layers.7``. The deepest one that holds all
    parameters of a symmetry is its block; symmetries of several blocks (a residual stream) come first.

    Args:
        found: the symmetries.

    Returns:
        Sections in the order of the model; the directions of all of them sum to ``found.flat_dim``, but for those
        under `LOSS`, which the function does see.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gaugefix.symmetry import find_symmetries
        >>> blocks = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh()) for _ in range(3)]
        >>> sections = fold_blocks(find_symmetries(nn.Sequential(*blocks), (torch.randn(2, 4),), verify=False))
        >>> [(s.title, [(r.kind, r.group) for r in s.rows]) for s in sections][-1]
        ('0–2 × 3', [('permute', 'S_6'), ('rescale', 'R+^6')])
    """
    errors = {v.name: v.error for v in found.verification}
    seen: Counter[tuple[Any, ...]] = Counter()
    folded: dict[tuple[Any, ...], list[_Entry]] = {}
    for s in found:
        entry = _entry(s, errors.get(s.name))
        r = entry.row
        alike = (entry.template, r.kind, r.group, r.dim, r.units, r.acts_on)
        nth = seen[alike, entry.number] = seen[alike, entry.number] + 1  # the same row twice in one block stays twice
        folded.setdefault((*alike, nth), []).append(entry)
    rows = [(entries[0].template, tuple(sorted(e.number for e in entries)), _worst(entries)) for entries in
            folded.values()]  # fmt: skip
    rows.sort(key=lambda item: {WHOLE: 0, LOSS: 2}.get(item[0], 1))
    sections: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for template, numbers, row in rows:
        sections.setdefault((template, numbers), []).append(row)
    return tuple(
        Section(template.replace("*", _ranges(numbers), 1), len(numbers), tuple(group))
        for (template, numbers), group in sections.items()
    )


def _worst(entries: Sequence[_Entry]) -> Row:
    errors = [e.row.error for e in entries if e.row.error is not None]
    first = entries[0].row
    return Row(first.kind, first.group, first.dim, first.units, first.acts_on, max(errors, default=None))


def _entry(s: Symmetry, error: float | None) -> _Entry:
    common = _common_block([axis.rpartition("[")[0] for axis in s.axes]) if s.level == "function" else []
    prefix = ".".join(common)
    inside = [axis.removeprefix(f"{prefix}.") if prefix else axis for axis in s.axes]
    kind = re.sub(r"( #\d+| \(\d+\))+$", "", s.name.rpartition(": ")[2])
    units = "" if s.units is None else f"{s.units.fibers} × {s.units.size}" if s.units.fibers > 1 else f"{s.units.size}"
    row = Row(kind, s.group, s.dim, units, summary(inside), error)
    if s.level == "loss":
        return _Entry(LOSS, 0, row)
    if not common:
        return _Entry(WHOLE, 0, row)
    at = next(i for i, part in enumerate(common) if part.isdigit())
    return _Entry(".".join([*common[:at], "*", *common[at + 1 :]]), int(common[at]), row)


def _common_block(names: Sequence[str]) -> list[str]:
    """The longest common prefix that ends in a number; empty if there is none."""
    paths = [name.split(".") for name in names]
    common: list[str] = []
    for parts in zip(*(p[:-1] for p in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    while common and not common[-1].isdigit():
        common.pop()
    return common


def summary(axes: Iterable[str]) -> str:
    """Many axes in few words: numbers become ``*`` (where there are many), names that differ in one part share braces.

    Args:
        axes: "param[dim]".

    Returns:
        Text.

    Example:
        >>> summary(["attn.q_proj.weight[0]", "attn.k_proj.weight[0]"])
        'attn.{q_proj,k_proj}.weight[0]'
        >>> summary([f"layers.{i}.mlp.up[1]" for i in range(12)])
        'layers.*.mlp.up[1]'
    """
    names = list(dict.fromkeys(axes))
    if len(names) > _MOST_NAMES:
        names = list(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name) for name in names))
    merged: dict[tuple[str, str], list[str]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        head, _, part = path.rpartition(".")
        merged.setdefault((head, leaf), []).append(part)
    out = []
    for (head, leaf), parts in merged.items():
        part = parts[0] if len(parts) == 1 else "{" + ",".join(parts) + "}"
        out.append(".".join(p for p in (head, part, leaf) if p))
    return ", ".join(out)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0–2,5"."""
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [n for _, n in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}–{members[-1]}")
    return ",".join(runs)
