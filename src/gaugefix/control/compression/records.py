"""Results of a compression."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gaugefix.control.compression.constrain import Method
from gaugefix.control.folding import FoldedClass
from gaugefix.control.folding.records import SmallerModel
from gaugefix.control.folding.reload import Changes
from gaugefix.control.impose import CollapsedTensor
from gaugefix.measure import Record


@dataclass(frozen=True)
class Stage(Record):
    """The model at one point of a compression.

    Attributes:
        name: "before", "constrained", "cut" (dead parts at exact zero), "folded" or "refitted".
        loss: mean data loss over one pass, in evaluation mode.
        metric: what the task's own metric says; empty if it has none.
        parameters: how many.
        nonzero: how many of them are not zero.
    """

    name: str
    loss: float
    metric: dict[str, float]
    parameters: int
    nonzero: int


@dataclass(frozen=True, eq=False)
class CompressionResult(SmallerModel):
    """A smaller model, and what was given up for it.

    Attributes:
        model: plain modules only, in evaluation mode.
        task: name of the task.
        method: "units", "rank" or "sparse".
        strength: λ of the penalty.
        stages: the model along the way, "before" first.
        constrained: names of classes or tensors that were constrained.
        left: what was not, or was not folded, and why.
        collapsed: what was set to zero, one entry per tensor.
        removed: one entry per class of units that became smaller.
        factored: names of Linear layers that became two.
        fold_error: relative change of the outputs by folding alone.
        parameters: before and after.
        nonzero: parameters that are not zero, before and after.
        bytes: of parameters and buffers, before and after.
        flops: of one forward pass on the first batch, before and after.
        seconds: of one forward pass, median of several, before and after.
        speedup: ratio of the two.
        losses: mean training loss of every pass, by phase.
        notes: what a reader should know before believing the numbers.
        changes: how the modules differ from those of the original; `load_folded` needs it.
    """

    model: nn.Module
    task: str
    method: Method
    strength: float
    stages: tuple[Stage, ...]
    constrained: tuple[str, ...]
    left: dict[str, str]
    collapsed: tuple[CollapsedTensor, ...]
    removed: tuple[FoldedClass, ...]
    factored: tuple[str, ...]
    fold_error: float
    parameters: tuple[int, int]
    nonzero: tuple[int, int]
    bytes: tuple[int, int]
    flops: tuple[int, int]
    seconds: tuple[float, float]
    speedup: float
    losses: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]
    changes: Changes

    def __str__(self) -> str:
        """A table and a few lines for people."""
        metrics = list(dict.fromkeys(name for s in self.stages for name in s.metric))
        rows = [["", "loss", *metrics, "parameters", "not zero"]]
        rows += [
            [s.name, f"{s.loss:.4g}", *(f"{s.metric[m]:.4g}" if m in s.metric else "–" for m in metrics),
             f"{s.parameters:,}", f"{s.nonzero:,}"]
            for s in self.stages
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        (f0, f1), (b0, b1), (s0, s1) = self.flops, self.bytes, self.seconds
        lines += [
            f"{b0:,} -> {b1:,} bytes, {f0:,} -> {f1:,} flops, {1e3 * s0:.3g} -> {1e3 * s1:.3g} ms a forward pass, "
            f"{self.speedup:.2f}x as fast"
        ]
        lines += [f"  {c.name}: {c.before} -> {c.after} {c.kind}" for c in self.removed]
        lines += [f"  {name}: two thin layers" for name in self.factored]
        lines += [f"  {c.name}: {c.dead} of {c.total} {c.kind} zero" for c in self.collapsed if c.dead and self._sparse]
        lines += [f"  {name} left as it is: {why}" for name, why in self.left.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def _sparse(self) -> bool:
        return self.method == "sparse"
