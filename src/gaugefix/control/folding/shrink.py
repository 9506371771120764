"""Building the smaller module: cut the positions of idle units out of every parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.control.folding.records import Proposal
from gaugefix.control.resize import attribute_edits, set_attributes, set_tensors
from gaugefix.control.state import State
from gaugefix.errors import ControlError

_EPS_NAMES = ("eps", "variance_epsilon", "layer_norm_eps", "epsilon")
Cuts = dict[tuple[str, int], np.ndarray]


def cuts_of(proposal: Proposal) -> Cuts:
    """Positions to be cut out, by parameter and dimension.

    Args:
        proposal: what goes.

    Returns:
        Sorted positions.

    Raises:
        ControlError: if the entries of the units are no whole rows or columns of some parameter.
    """
    cuts: Cuts = {}
    marks: dict[str, Tensor] = {}
    gone = torch.from_numpy(proposal.remove)
    for s in proposal.units.slices:
        mark = marks.setdefault(s.param, torch.zeros_like(proposal.state[s.param], dtype=torch.bool))
        block = s.take(mark)
        marks[s.param] = s.put(mark, block | gone.reshape(*gone.shape, *[1] * (block.ndim - 2)))
        positions = np.unique(s.index[proposal.remove])
        at = (s.param, s.dim)
        cuts[at] = np.union1d(cuts[at], positions) if at in cuts else positions
    for (name, dim), positions in cuts.items():
        if not bool(marks[name].movedim(dim, 0)[torch.from_numpy(positions)].all()):
            raise ControlError(f"the units are no whole rows or columns of {name}")
    return cuts


def all_cuts(proposals: Sequence[Proposal]) -> Cuts:
    """Positions of several proposals together.

    Args:
        proposals: what goes.

    Returns:
        Sorted positions by parameter and dimension.
    """
    cuts: Cuts = {}
    for p in proposals:
        for at, where in cuts_of(p).items():
            cuts[at] = np.union1d(cuts[at], where) if at in cuts else where
    return cuts


def smaller(model: nn.Module, state: State, cuts: Mapping[tuple[str, int], np.ndarray]) -> nn.Module:
    """A copy without the positions.

    Args:
        model: left as it is.
        state: values of its tensors.
        cuts: positions by parameter and dimension.

    Returns:
        The smaller module, in the precision of the state.
    """
    out = copy.deepcopy(model)
    known = {n for n, _ in [*out.named_parameters(), *out.named_buffers()]}
    new = {n: t for n, t in state.items() if n not in known}
    for name in known & set(state):
        new[name] = state[name]
    for (name, dim), positions in cuts.items():
        keep = np.setdiff1d(np.arange(state[name].shape[dim]), positions)
        new[name] = new[name].index_select(dim, torch.from_numpy(keep))
    set_tensors(out, new)
    return out


def ways_to_build(model: nn.Module, proposals: Sequence[Proposal]) -> Iterator[nn.Module]:
    """Smaller modules to try: what a forward pass of one's own reads, and divides by, can only be found out.

    Args:
        model: left as it is.
        proposals: what goes, in the order in which they were made.

    Yields:
        Candidates, the plainest first.
    """
    state, cuts = proposals[-1].state, all_cuts(proposals)
    widths = {n: m for p in proposals for n, m in _widths(p).items()}
    params = list(dict.fromkeys(name for name, _ in cuts))
    scalings = [state, *([_softmax_scale(state, proposals)] if any(p.scaled for p in proposals) else [])]
    for scaled in scalings:
        base = smaller(model, scaled, cuts)
        for p in proposals:
            if p.shrinks_norm:
                _rescale_norms(base, model, p)
        for edits in attribute_edits(base, params, widths):
            candidate = copy.deepcopy(base) if edits else base
            set_attributes(candidate, edits)
            yield candidate


def _widths(p: Proposal) -> dict[int, int]:
    """New width by old one: of the class, and of the dimensions that it lies in."""
    factors = {1, p.units.fibers}
    for at in {(s.param, s.dim) for s in p.units.slices}:
        entries = [s.index.shape[2] for s in p.units.slices if (s.param, s.dim) == at]
        equal = len(set(entries)) == 1 and len(entries) in {1, 3}  # one part, or queries, keys and values in one
        factors |= {p.units.fibers * (entries[0] if equal else sum(entries)), p.units.fibers * sum(entries)}
    return {p.units.size * f: p.after * f for f in factors}


def _softmax_scale(state: State, proposals: Sequence[Proposal]) -> State:
    """Queries and keys of a thinner head, if the forward pass divides by the root of their new number."""
    for p in proposals:
        for i in p.scaled:
            s = p.units.slices[i]
            factor = math.sqrt(p.after / p.units.size)
            state = {**state, s.param: s.put(state[s.param], factor * s.take(state[s.param]))}
    return state


def _rescale_norms(out: nn.Module, model: nn.Module, proposal: Proposal) -> None:
    """A mean square over d' instead of d units, of which the others are zero: gains √(d/d'), ε·d/d'."""
    ratio = proposal.units.size / proposal.after
    with torch.no_grad():
        for owner in dict.fromkeys(s.param.rpartition(".")[0] for s in proposal.units.gains):
            module, old = out.get_submodule(owner), model.get_submodule(owner)
            module.weight.mul_(math.sqrt(ratio))  # type: ignore[operator]
            for name in _EPS_NAMES:
                if isinstance(getattr(old, name, None), float):  # None is the rounding unit: too small to matter
                    setattr(module, name, getattr(old, name) * ratio)
