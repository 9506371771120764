"""The result of a search: a sequence of symmetries with what it covers and what it could not see through."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.mirrors import Mirror
from gaugefix.symmetry.units import Units


@dataclass(frozen=True)
class OpaqueOp:
    """An operation without a rule: every axis that enters it is pinned.

    Attributes:
        op: name of the operation.
        place: module path or source line where it occurs.
        reason: why it could not be seen through.
    """

    op: str
    place: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """How a claim was checked.

    Attributes:
        name: of the symmetry.
        error: relative change of the output, ‖f(gθ) − f(θ)‖/‖f(θ)‖, largest over the trials.
        tolerance: the bar it was held against.
        trials: number of random elements.
        passed: whether the error stayed below the tolerance.
    """

    name: str
    error: float
    tolerance: float
    trials: int
    passed: bool


@dataclass(frozen=True, eq=False)
class Symmetries(Sequence[Symmetry]):
    """The symmetries of one module.

    Attributes:
        symmetries: in order; `Symmetry.dim` counts what each adds to the ones before.
        units: every axis class with its parameter slices, pinned ones (inputs, outputs) left out.
        opaque: operations it could not see through.
        n_parameters: number of scalars of the module.
        verification: one entry per symmetry that was checked; empty if ``verify=False`` or on the meta device.
        rejected: claims that failed verification. They are not in the sequence; each is a bug to report.
        skipped: what was not looked at and why, for people.
        output: which output of the module the statements are about.
    """

    symmetries: tuple[Symmetry, ...]
    units: tuple[Units, ...]
    opaque: tuple[OpaqueOp, ...] = ()
    n_parameters: int = 0
    verification: tuple[Verification, ...] = ()
    rejected: tuple[Verification, ...] = ()
    skipped: tuple[str, ...] = ()
    output: str = "output"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @overload
    def __getitem__(self, index: int) -> Symmetry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Symmetry, ...]: ...
    def __getitem__(self, index: int | slice) -> Symmetry | tuple[Symmetry, ...]:
        return self.symmetries[index]

    def __len__(self) -> int:
        return len(self.symmetries)

    @property
    def flat_dim(self) -> int:
        """Number of continuous directions along which the function does not change, at a generic point."""
        return sum(s.dim for s in self.symmetries if s.level == "function")

    @property
    def verified(self) -> bool:
        """Whether every symmetry in the sequence was checked numerically."""
        return bool(self.symmetries) and {v.name for v in self.verification if v.passed} >= {s.name for s in self}

    def mirrors(self) -> Iterator[Mirror]:
        """All mirrors of all symmetries.

        Yields:
            Mirrors; there are n(n−1)/2 for each S_n, so do not make a list of a large model's.
        """
        for symmetry in self.symmetries:
            yield from symmetry.mirrors()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Returns:
            Keys ``flat_dim, n_parameters, output, symmetries, units, opaque, rejected, skipped``.
        """
        errors = {v.name: v.error for v in self.verification}
        return {
            "flat_dim": self.flat_dim,
            "n_parameters": self.n_parameters,
            "output": self.output,
            "symmetries": [
                {
                    "name": s.name,
                    "group": s.group,
                    "dim": s.dim,
                    "axes": list(s.axes),
                    "isometric": s.isometric,
                    "level": s.level,
                    "error": errors.get(s.name),
                }
                for s in self.symmetries
            ],
            "units": [
                {
                    "name": u.name,
                    "size": u.size,
                    "fibers": u.fibers,
                    "activation": u.activation,
                    "kind": u.kind,
                    "slices": [{"param": s.param, "dim": s.dim, "role": s.role} for s in u.slices],
                }
                for u in self.units
            ],
            "opaque": [vars(o) for o in self.opaque],
            "rejected": [vars(v) for v in self.rejected],
            "skipped": list(self.skipped),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as text.

        Args:
            indent: spaces, or None for one line.

        Returns:
            JSON.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def table(self) -> str:
        """A plain-text table, one line per symmetry.

        Returns:
            Columns name, group, directions, verification error, axes.
        """
        errors = {v.name: f"{v.error:.0e}" for v in self.verification}
        header = ("symmetry", "group", "directions", "error", "acts on")
        rows = [
            (s.name, s.group, str(s.dim) if s.dim else "-", errors.get(s.name, "-"), ", ".join(s.axes))
            for s in self.symmetries
        ]
        widths = [max(len(r[i]) for r in [header, *rows]) for i in range(4)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[4]]) for r in [header, *rows]]
        lines.append(f"{self.flat_dim} flat directions of {self.n_parameters} parameters")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"
