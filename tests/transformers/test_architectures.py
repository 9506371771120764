"""The search on models of the transformers library: nothing false, nothing missed but what is said."""

from __future__ import annotations

import re

import pytest
import torch
from tests.transformers.models import CASES, Case
from torch import nn

from gaugefix.inspection import meta_copy
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.testing import check_symmetries, flat_directions

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.long,
    pytest.mark.transformers,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found = CASES[request.param]
    for package in found.needs:
        pytest.importorskip(package)
    return found


@pytest.fixture(scope="module")
def model(case: Case) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.make().eval()


@pytest.fixture(scope="module")
def found(case: Case, model: nn.Module) -> Symmetries:
    return find_symmetries(model, case.args, verify=True)


def test_nothing_false(found: Symmetries) -> None:
    assert found.rejected == ()
    assert found.verified
    assert max(v.error for v in found.verification) <= 1e-12


def test_every_flat_direction_is_explained(case: Case, model: nn.Module, found: Symmetries) -> None:
    measured = flat_directions(model, case.args)
    assert measured.reliable
    assert found.flat_dim + case.hidden[0] == measured.flat == case.flat, case.hidden[1]


def test_expected_groups(case: Case, found: Symmetries) -> None:
    have = [(re.sub(r" #\d+", "", s.name), s.group) for s in found]
    for part, group in case.groups:
        assert any(part in name and g == group for name, g in have), f"no {group} named {part!r}"


def test_opaque_operations_are_reported(case: Case, found: Symmetries) -> None:
    assert tuple(dict.fromkeys(o.op for o in found.opaque)) == case.opaque
    assert all(o.place for o in found.opaque)


def test_dimensions_add_up(case: Case, model: nn.Module, found: Symmetries) -> None:
    check_symmetries(found, model, case.args, seed=3)


def test_meta_device_gives_the_same(case: Case, model: nn.Module, found: Symmetries) -> None:
    args = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in case.args)
    elsewhere = meta_copy(model)
    again = find_symmetries(elsewhere, args)
    assert [(s.name, s.group, s.dim) for s in again] == [(s.name, s.group, s.dim) for s in found]
    assert not again.verified


def test_adapters_beside_frozen_weights_have_their_inner_rotation() -> None:
    """peft freezes the base model: of the 179 directions of the whole, GL(2) of every adapter is left."""
    pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned = CASES["lora"].make().eval()
    args = CASES["lora"].args
    found = find_symmetries(tuned, args, trainable_only=True, verify=True)
    assert [s.group for s in found] == ["GL(2)", "GL(2)"]
    assert all("lora_" in name for s in found for name in s.parameters)
    assert found.verified
    assert found.flat_dim == flat_directions(tuned, args, trainable_only=True).flat == 2 * 4
