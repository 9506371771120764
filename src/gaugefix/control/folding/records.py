"""Results of folding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gaugefix.control.folding.reload import Changes, save_folded
from gaugefix.control.state import State
from gaugefix.measure import Record
from gaugefix.symmetry import Units


@dataclass(frozen=True, eq=False)
class Proposal:
    """Units of one class that can go.

    Attributes:
        units: the class, running statistics included.
        remove: ``(fibers, size)`` mask, the same number in every fiber.
        state: all tensors with the function moved off these units.
        dead: units that nothing reads or that are always zero, over all fibers.
        constant: units that always have one nonzero value, moved to biases.
        merged: units merged into another.
        rank: directions dropped from a linear class, over all fibers.
        plus: slices to be multiplied by √(new/old size) if the forward pass divides by the square root of the size.
        shrinks_norm: whether a root mean square runs over the class, so that its gains must be rescaled.
    """

    units: Units
    remove: np.ndarray
    state: State
    dead: int = 0
    constant: int = 0
    merged: int = 0
    rank: int = 0
    scaled: tuple[int, ...] = ()
    shrinks_norm: bool = False

    @property
    def after(self) -> int:
        """Units per fiber that stay."""
        return int((~self.remove[0]).sum())


@dataclass(frozen=True)
class FoldedClass(Record):
    """What went from one class of units.

    Attributes:
        name: of the class.
        kind: of the class.
        before: units per fiber.
        after: units per fiber that are left.
        fibers: independent copies of the class, each that much thinner.
        dead: of what went, units that nothing read or that were always zero.
        constant: units whose constant value went to the next bias.
        merged: units merged into another one.
        rank: directions of a linear class (a head, a bottleneck, an adapter) that its product lacked.
    """

    name: str
    kind: str
    before: int
    after: int
    fibers: int
    dead: int
    constant: int
    merged: int
    rank: int


@dataclass(frozen=True)
class Refit(Record):
    """A few steps that bring a folded model back to the function of the original.

    Attributes:
        steps: number of steps.
        before: relative error on the batches before.
        after: relative error after; the better of the two models is kept.
    """

    steps: int
    before: float
    after: float


class SmallerModel(Record):
    """What results with a smaller, plain model share: JSON without it, and its weights as a file.

    Attributes:
        model: the module.
        changes: how its modules differ from those of the original, for `load_folded`.
    """

    model: nn.Module
    changes: Changes

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the model.

        Returns:
            One key per field.
        """
        return {k: v for k, v in super().to_dict().items() if k != "model"}

    def save(self, path: Path | str) -> Path:
        """Write parameters and buffers as safetensors, for `load_folded` or any reader of that format.

        Args:
            path: of the file.

        Returns:
            The absolute path.
        """
        return save_folded(self.model, self.changes, path)


@dataclass(frozen=True, eq=False)
class FoldResult(SmallerModel):
    """A smaller model and what it cost.

    Attributes:
        model: plain modules only, in the precision and mode of the original.
        removed: one entry per class that became smaller.
        factored: names of Linear layers that became two.
        skipped: what could not be folded, and why, by name.
        error: ‖f' − f‖/‖f‖ in the precision of the model, the larger of the example inputs and of random ones.
        max_error: what it was held against.
        parameters: before and after.
        bytes: of parameters and buffers, before and after.
        flops: of one forward pass on the example inputs, before and after; multiply-adds count twice.
        seconds: of one forward pass, median of several, before and after.
        speedup: ratio of the two.
        refit: what the steps after folding did, if asked for; ``error`` is then that of the refitted model.
        changes: how the modules differ from those of the original; `load_folded` needs it.
    """

    model: nn.Module
    removed: tuple[FoldedClass, ...]
    factored: tuple[str, ...]
    skipped: dict[str, str]
    error: float
    max_error: float
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    flops: tuple[int, int]
    seconds: tuple[float, float]
    speedup: float
    refit: Refit | None = None
    changes: Changes = field(default_factory=dict)

    def __str__(self) -> str:
        """A few lines for people."""
        (p0, p1), (f0, f1) = self.parameters, self.flops
        lines = [
            f"{p0:,} -> {p1:,} parameters, {f0:,} -> {f1:,} flops, {self.speedup:.2f}x as fast, error {self.error:.1e}"
        ]
        for c in self.removed:
            parts = {"dead": c.dead, "constant": c.constant, "merged": c.merged, "rank": c.rank}
            what = ", ".join(f"{n} {k}" for k, n in parts.items() if n)
            lines.append(f"  {c.name}: {c.before} -> {c.after} {c.kind} ({what})")
        lines += [f"  {name}: two thin layers" for name in self.factored]
        lines += [f"  {name} left as it is: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def precision(model: nn.Module) -> float:
    """Rounding unit of the coarsest parameters of a module."""
    return max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=1e-16)
