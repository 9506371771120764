"""Which units of a class can go, and how the function is moved off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gaugefix.control.folding.merge import merge_copies
from gaugefix.control.folding.readers import Inputs, Reader, constant_values, readers_of
from gaugefix.control.folding.records import Proposal
from gaugefix.control.folding.thresholds import small, threshold
from gaugefix.control.gauges.balance import rotate_fibers, why_not_balanced
from gaugefix.control.state import Function, State
from gaugefix.control.statistics import units_with_statistics, with_statistics
from gaugefix.measure import unit_sizes
from gaugefix.measure.activations import known_activation
from gaugefix.symmetry import Slice, Symmetries, Symmetry, Units
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation


@dataclass(frozen=True, eq=False)
class Finder:
    """Looks for idle units in the classes of one model.

    Attributes:
        function: the model.
        symmetries: of it.
        tolerance: as in `fold`.
        eps: rounding unit of the model's own precision.
        inputs: sets of random arguments; constant units are looked for only if there are two that differ.
        multiple_of: the number of units that stay in a fiber is rounded up to a multiple of this.
        merge: whether copies are merged.
        constants: whether constant units are moved to biases.
        keep: least number of directions that stay in a linear class, by name.
        notes: what could not be done to classes of which something else can be cut.
    """

    function: Function
    symmetries: Symmetries
    tolerance: float | None
    eps: float
    inputs: Inputs
    multiple_of: int = 1
    merge: bool = True
    constants: bool = True
    keep: Mapping[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def propose(self, units: Units, state: State) -> Proposal | str | None:
        """What can go from one class.

        Args:
            units: the class.
            state: all tensors.

        Returns:
            A proposal, a reason why what is idle cannot go, or None if nothing is idle.
        """
        if units.size < 2:
            return None
        whole = units_with_statistics(units, self.function.model)
        rotation = self._rotation(units)
        if rotation is not None:
            found: Proposal | str | None = self._thin(whole, rotation, state)
        elif "normalised" in units.flags:
            found = self._unused_stream(whole, state)
        else:
            found = self._idle(whole, state)
        return self._rounded(found) if isinstance(found, Proposal) else found

    def _rounded(self, proposal: Proposal) -> Proposal | str:
        """Keep some of the idle units, so that what stays is a multiple of the wanted number."""
        extra = -proposal.after % self.multiple_of
        remove = proposal.remove.copy()
        if not extra:
            return proposal
        for row in remove:
            row[np.flatnonzero(row)[:extra]] = False
        if not remove.any():
            return f"fewer units are idle than a multiple of {self.multiple_of} asks for"
        return replace(proposal, remove=remove)

    # linear classes: rank

    def _rotation(self, units: Units) -> Rotation | None:
        """The general linear group of a whole class."""
        for s in self.symmetries:
            if isinstance(s, Rotation) and s.units is not None and s.units.name == units.name:
                same = {(x.param, x.dim) for x in s.units.slices} == {(x.param, x.dim) for x in units.slices}
                if same and not why_not_balanced(s, self.function.state):
                    return s
        return None

    def _thin(self, units: Units, group: Rotation, state: State) -> Proposal | None:
        new, values, _, _ = rotate_fibers(state, group, {}, principal=True)
        limit = threshold(values.numpy().ravel(), self.tolerance, self.eps) * float(values.max())
        keep = max(int((values > limit).sum(1).max()), self.keep.get(units.name, 1))
        if keep >= units.size:
            return None
        remove = np.zeros((units.fibers, units.size), dtype=bool)
        remove[:, keep:] = True
        inner = not units.outgoing  # queries and keys: their product is divided by the root of its length
        plus = tuple(i for i, sign in enumerate(group.polarity) if sign > 0 and inner)
        return Proposal(
            group._class(), remove, _silence(new, group._class().slices, remove),
            rank=int(remove.sum()), scaled=plus,
        )  # fmt: skip

    # residual streams under a root mean square

    def _unused_stream(self, units: Units, state: State) -> Proposal | str | None:
        """Stream units that nothing writes: always zero; the mean square then runs over fewer units."""
        written = _norms(state, units.incoming)
        idle = small(written, self.tolerance, self.eps).reshape(units.fibers, units.size)
        if not idle.any() or idle.all():
            unread = bool(units.outgoing) and small(_norms(state, units.outgoing), 0.0, self.eps).any()
            return "units that nothing reads still enter the average of a normalisation" if unread else None
        for s in units.incoming:
            state = _scaled(state, s, torch.from_numpy(~idle))
        remove, state = _even(units, idle, state)
        return Proposal(units, remove, state, dead=int(remove.sum()), shrinks_norm=True)

    # everything else: unread, constant, copies

    def _idle(self, units: Units, state: State) -> Proposal | str | None:
        if not units.outgoing:
            return None
        shape = (units.fibers, units.size)
        dead = small(_norms(state, units.outgoing), 0.0, self.eps)
        dead = (dead | small(part_sizes(state, units), self.tolerance, self.eps)).reshape(shape)
        constant, reason, merged = np.zeros_like(dead), "", np.zeros_like(dead)
        if self.constants and len(self.inputs) > 1:
            constant, state, reason = self._constants(units, state, dead)
        if self.merge:
            live = ~(dead | constant)
            state, merged = merge_copies(state, units, self._gauges(units), live, self.tolerance, self.eps)
        gone = dead | constant | merged
        if gone.all(1).any():  # at least one unit stays in every fiber
            gone[:, 0] = False
        if not gone.any():
            return reason or None
        remove, state = _even(units, gone, _silence(state, units.outgoing, gone))
        if reason:
            self.notes[units.name] = reason
        if not remove.any():
            return "some fibers have idle units and others have none: only whole columns can go"
        counts = [int((m & gone).sum()) for m in (dead, constant, merged)]
        total = int(remove.sum())
        share = [min(c, total) for c in counts]
        share[0] += total - sum(share)
        return Proposal(units, remove, state, dead=share[0], constant=share[1], merged=share[2])

    def _gauges(self, units: Units) -> list[Diagonal]:
        """Rescalings and sign flips of a class."""
        found: list[Symmetry] = [with_statistics(s, self.function.model) for s in self.symmetries]
        shape = (units.fibers, units.size)
        return [
            s for s in found
            if isinstance(s, Diagonal) and s.units is not None and s.units.name == units.name and not s.mean_zero
            and s._fibers_units == shape and (s.kind == "sign" or not why_not_balanced(s, self.function.state))
        ]  # fmt: skip

    def _constants(self, units: Units, state: State, dead: np.ndarray) -> tuple[np.ndarray, State, str]:
        """Units with a constant value: always zero ones become dead, others go to the bias of the readers."""
        none = np.zeros_like(dead)
        weights = [s for s in (*units.incoming, *units.gains) if state[s.param].ndim > 1 or s.role == "gain"]
        masks = [small(_norms(state, (s,)), self.tolerance, self.eps).reshape(dead.shape) for s in weights]
        touched = np.logical_or.reduce(masks) & ~dead if masks else none
        if not touched.any():
            return none, state, ""
        zero = [(s, torch.from_numpy(m)) for s, m in zip(weights, masks, strict=True)]
        readers = readers_of(units, self.function.model)
        if readers is None:
            return none, state, "units without incoming weights are read by something that has no bias to take them"
        cleared = state
        for s, mask in zero:
            cleared = _scaled(cleared, s, ~(mask & torch.from_numpy(touched)))
        zero = [(s, mask & torch.from_numpy(touched)) for s, mask in zero]
        fixed, values = constant_values(self.function, cleared, zero, readers, self.inputs)
        found = fixed.numpy() & touched
        if not found.any():
            return none, state, ""
        return self._moved(units, state, dead, found, readers, values)

    def _moved(
        self, units: Units, state: State, dead: np.ndarray, found: np.ndarray, readers: Sequence[Reader],
        values: Sequence[Tensor],
    ) -> tuple[np.ndarray, State, str]:  # fmt: skip
        """Add constants to the biases of the readers."""
        out, reason = dict(state), ""
        for r, value in zip(readers, values, strict=True):
            nonzero = (value.abs().amax(2) > 0).numpy()
            if not r.takes_bias and (found & nonzero).any():
                found, reason = found & ~nonzero, f"{r.name} pads its input: a constant is none at the border"
        moved = torch.from_numpy(found)
        for r, value in zip(readers, values, strict=True):
            value = torch.where(moved[..., None], value, 0.0)
            weight = out[r.slice.param].movedim(r.slice.dim, -1)
            index = torch.from_numpy(r.slice.index)
            picked = weight[..., index]  # (out, [kernel], fibers, units, entries)
            added = (picked * value).sum((-1, -2, -3))
            bias = f"{r.name}.bias"
            total = added.reshape(len(added), -1).sum(1)
            if bool(total.abs().max() > 0):
                out[bias] = out[bias] + total if bias in out else total
        zeroed = found & np.all([(v.abs().amax(2) == 0).numpy() for v in values], axis=0)
        dead |= zeroed
        return found & ~zeroed, _silence(out, units.outgoing, found), reason


def part_sizes(state: State, units: Units) -> np.ndarray:
    """How much every unit can contribute, in every gauge: what multiplies it last, times what reads it."""
    if units.gains:
        gains = [s for s in units.gains if s.param.rpartition(".")[2] not in {"running_mean", "running_var"}]
        return np.asarray(np.sqrt(_norms(state, gains) * _norms(state, units.outgoing)))
    activation = known_activation(units.activation)
    if activation is None or not activation.vanishes:
        return _norms(state, units.outgoing)
    return unit_sizes(state, units)


def _norms(state: State, slices: Sequence[Slice]) -> np.ndarray:
    """Norm of every unit over some slices, ``(fibers * units,)``."""
    total: Tensor | float = 0.0
    for s in slices:
        block = s.take(state[s.param])
        total = total + block.reshape(*block.shape[:2], -1).square().sum(2)
    return np.zeros(0) if isinstance(total, float) else total.sqrt().reshape(-1).numpy()


def _scaled(state: State, s: Slice, factor: Tensor) -> State:
    """A state in which every unit's slice is multiplied by a number, ``(fibers, units)``."""
    block = s.take(state[s.param])
    new = block * factor.to(block).reshape(*factor.shape, *[1] * (block.ndim - 2))
    return {**state, s.param: s.put(state[s.param], new)}


def _silence(state: State, slices: Sequence[Slice], gone: np.ndarray) -> State:
    """A state in which some units' slices are zero."""
    for s in slices:
        state = _scaled(state, s, torch.from_numpy(~gone))
    return state


def _even(units: Units, gone: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """The same number of units from every fiber, at the end of each where there is more than one fiber."""
    count = int(gone.sum(1).min())
    if units.fibers == 1:
        return gone, state
    order = np.argsort(gone, axis=1, kind="stable")
    swap = Permutation("", "", 0, (), True, units=units)
    remove = np.zeros_like(gone)
    if count:
        remove[:, -count:] = True
    return remove, swap.apply(state, torch.from_numpy(order))
