"""The zoo: every module's symmetries are those written down, they hold, and none is missing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.cases import CASES, Case

from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.generic import generator_dims
from gaugefix.symmetry.verify import random_parameters
from gaugefix.testing import flat_directions


@pytest.fixture(scope="module", params=CASES, ids=str)
def searched(request: pytest.FixtureRequest) -> tuple[Case, torch.nn.Module, Symmetries]:
    case: Case = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.make()
    return case, model, find_symmetries(model, case.args, verify=True)


Searched = tuple[Case, torch.nn.Module, Symmetries]


def test_every_claim_holds(searched: Searched) -> None:
    _, _, found = searched
    assert [v.name for v in found.rejected] == []
    assert found.verified or not len(found)
    assert max((v.error for v in found.verification), default=0.0) < 1e-9


def test_groups_and_dimension_are_those_written_down(searched: Searched) -> None:
    case, _, found = searched
    counted = Counter(s.group for s in found)
    assert {group: counted[group] for group in case.groups} == case.groups
    assert found.flat_dim == case.flat_dim
    assert tuple(o.op for o in found.opaque) == case.opaque


def test_no_direction_is_missing(searched: Searched) -> None:
    """The claim is P − rank J at the generic point with the fewest data-dependent directions."""
    case, model, found = searched
    measured = []
    for seed in case.seeds:
        counted = flat_directions(model, case.args, seed=seed)
        assert counted.reliable
        measured.append(counted.flat)
        if counted.flat == found.flat_dim:
            break
    assert min(measured) == found.flat_dim + case.missed


def test_claimed_dimensions_are_those_of_the_generators(searched: Searched) -> None:
    _, model, found = searched
    point = random_parameters(model, torch.Generator().manual_seed(1))
    assert generator_dims(found, point) == [s.dim for s in found]
