"""Units of every architecture: their slices say where they live, fused tensors included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import CASES, Case
from torch import Tensor, nn

from gaugefix.symmetry import Symmetries, Units, find_symmetries
from gaugefix.symmetry.groups import Permutation
from gaugefix.symmetry.verify import float_outputs, laboratory_copy, random_parameters, relative_change, to_double

Searched = tuple[Case, nn.Module, Symmetries, dict[str, Tensor]]


@pytest.fixture(scope="module", params=CASES, ids=str)
def searched(request: pytest.FixtureRequest) -> Searched:
    case: Case = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.make()
    point = random_parameters(model, torch.Generator().manual_seed(1))
    return case, laboratory_copy(model), find_symmetries(model, case.args, verify=False), point


def entries(units: Units, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """For every parameter and slice, the number of the unit that owns each entry (−1: none)."""
    out = {}
    for k, s in enumerate(units.slices):
        shape = shapes[s.param]
        owner = torch.full(shape, -1.0)
        block = s.take(owner)
        number = torch.arange(float(units.fibers * units.size)).reshape(units.fibers, units.size)
        out[f"{s.param}#{k}"] = s.put(owner, number.reshape(*number.shape, *[1] * (block.ndim - 2)).expand_as(block))
    return out


def test_every_unit_owns_as_much_as_the_others_and_nothing_twice(searched: Searched) -> None:
    _, _, found, point = searched
    shapes = {n: p.shape for n, p in point.items()}
    for units in found.units:
        assert units.slices
        for s in units.slices:
            assert s.index.shape[:2] == (units.fibers, units.size)
            assert 0 <= int(s.index.min()) <= int(s.index.max()) < shapes[s.param][s.dim]
            if not s.others:  # fibers may share positions only where another dimension tells them apart
                for fiber in s.index:
                    assert len(np.unique(fiber)) == fiber.size
        for owner in entries(units, shapes).values():
            counts = torch.bincount(owner[owner >= 0].long(), minlength=units.fibers * units.size)
            if units.fibers == 1:
                assert counts.min() == counts.max() > 0


def test_permuting_units_through_their_slices_leaves_the_function(searched: Searched) -> None:
    case, lab, found, point = searched
    args = to_double(case.args)
    reference = float_outputs(lab, point, args, {})
    generator = torch.Generator().manual_seed(2)
    free = {id(s.units) for s in found if isinstance(s, Permutation)}
    for units in found.units:
        if id(units) not in free:
            continue
        moved = dict(point)
        order = torch.rand(units.fibers, units.size, generator=generator).argsort(dim=1)
        for s in units.slices:
            block = s.take(moved[s.param])
            moved[s.param] = s.put(moved[s.param], torch.stack([b[o] for b, o in zip(block, order, strict=True)]))
        assert relative_change(float_outputs(lab, moved, args, {}), reference) < 1e-9, units.name


def test_units_that_nothing_reads_do_not_matter(searched: Searched) -> None:
    """With the readers of a unit at zero, what writes it can be anything (where no normalisation mixes the units)."""
    case, lab, found, point = searched
    args = to_double(case.args)
    for units in found.units:
        writes = {s.param for s in units.incoming} | {s.param for s in units.gains}
        if not units.outgoing or not units.incoming or "normalised" in units.flags:
            continue
        if any("router" in name for name in writes):  # a softmax over the experts sees all their scores
            continue
        if writes & {s.param for s in units.outgoing}:  # a recurrent or tied axis writes and reads one tensor
            continue
        if len([s for s in units.incoming if s.param.endswith("weight")]) > len({s.param for s in units.incoming}):
            continue  # queries, keys and values of one fused axis: the scores read them without a parameter
        silent = dict(point)
        for s in units.outgoing:
            block = s.take(silent[s.param]).clone()
            block[:, 0] = 0
            silent[s.param] = s.put(silent[s.param], block)
        changed = dict(silent)
        for s in units.incoming:
            block = s.take(changed[s.param]).clone()
            block[:, 0] = 2 * block[:, 0] + 1
            changed[s.param] = s.put(changed[s.param], block)
        before, after = float_outputs(lab, silent, args, {}), float_outputs(lab, changed, args, {})
        assert relative_change(after, before) < 1e-9, units.name
