"""Frozen parameters: with ``trainable_only`` nothing moves them, and what is left out is said and counted."""

from __future__ import annotations

import random
import re

import pytest
import torch
from tests.cases import GPT2, LoRA, X, mlp, numbers, tokens
from tests.symmetry.architectures import random_architecture
from torch import Tensor, nn
from torch.nn import functional as F

from gaugefix import Task
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.testing import check_symmetries, completeness, flat_directions


def freeze(model: nn.Module, *names: str) -> nn.Module:
    for name, p in model.named_parameters():
        p.requires_grad_(not any(part in name for part in names))
    return model


def combined(found: Symmetries) -> int:
    """Directions that only combinations of groups have, as the notes say."""
    said = [re.match(r"(\d+) directions that leave", note) for note in found.skipped]
    return sum(int(match[1]) for match in said if match)


class TestAdapters:
    """A fine-tune of B A beside a frozen W: of what the whole model has, GL(r) between A and B is left."""

    def test_only_the_inner_rotation_is_left(self) -> None:
        model = freeze(LoRA(), "base")
        args = (numbers(8, 5),)
        found = find_symmetries(model, args, trainable_only=True, verify=True)
        assert [s.group for s in found] == ["GL(2)"]
        assert set(found[0].parameters) == {"A", "B"}
        assert found.n_parameters == 2 * (5 + 4)
        assert found.flat_dim == flat_directions(model, args, trainable_only=True).flat == 4
        check_symmetries(found, model, args)

    def test_modules_beside_a_frozen_layer_in_a_network(self) -> None:
        class Tuned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.base = nn.Linear(4, 6), nn.Linear(6, 5)
                self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
                self.head = nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.tanh(self.first(x))
                return self.head(torch.tanh(self.base(x) + 0.5 * self.up(self.down(x))))

        model = freeze(Tuned(), "first", "base", "head")
        found = find_symmetries(model, (X,), trainable_only=True)
        assert [s.group for s in found] == ["GL(2)"]
        assert completeness(found, model, (X,), trainable_only=True).complete
        whole = find_symmetries(model, (X,))
        assert {"T(22)", "GL(2)", "S_5"} <= {s.group for s in whole}


def test_a_frozen_layer_holds_its_neighbours_fixed() -> None:
    model = freeze(mlp((4, 6, 5, 3), nn.LeakyReLU), "0.")
    found = find_symmetries(model, (X,), trainable_only=True)
    assert [s.group for s in found] == ["S_5", "R+^5"]
    assert [u.size for u in found.units] == [5]
    assert found.flat_dim == flat_directions(model, (X,), trainable_only=True).flat == 5
    assert found.skipped == ("2 symmetries that move frozen parameters (2 tensors)",)


def test_a_frozen_bias_forbids_what_moves_it() -> None:
    model = freeze(mlp((4, 6, 3), nn.LeakyReLU), "0.bias")
    assert [s.group for s in find_symmetries(model, (X,), trainable_only=True)] == []
    assert flat_directions(model, (X,), trainable_only=True).flat == 0


def test_a_gain_with_a_frozen_shift_moves_only_in_combination() -> None:
    model = freeze(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 6)), "1.bias")
    found = find_symmetries(model, (X,), trainable_only=True)
    measured = flat_directions(model, (X,), trainable_only=True).flat
    assert found.flat_dim + combined(found) == measured
    assert combined(found) > 0


def test_everything_frozen_leaves_nothing() -> None:
    model = mlp((4, 6, 3), nn.Tanh).requires_grad_(False)
    found = find_symmetries(model, (X,), trainable_only=True)
    assert (len(found), found.flat_dim, found.n_parameters) == (0, 0, 0)
    assert flat_directions(model, (X,), trainable_only=True).n_parameters == 0


def test_nothing_frozen_changes_nothing() -> None:
    model, args = GPT2(), (tokens(3, 4, 9),)
    assert find_symmetries(model, args, trainable_only=True).to_json() == find_symmetries(model, args).to_json()


def test_a_tied_table_is_frozen_once() -> None:
    model = GPT2(tied=True)
    model.wte.weight.requires_grad_(False)
    found = find_symmetries(model, (tokens(3, 4, 9),), trainable_only=True, verify=True)
    assert found.rejected == ()
    assert not any("wte" in axis or "head" in axis for s in found for axis in s.axes)


def test_a_task_passes_it_on() -> None:
    model = freeze(mlp((4, 6, 3), nn.Tanh), "2.")
    task = Task(
        model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), lambda: [(X, torch.arange(8) % 3)],
        lr=0.1, weight_decay=0.0, batch_size=8,
    )  # fmt: skip
    assert list(find_symmetries(task, trainable_only=True)) == []  # the shift of the logits would move the head
    assert any(s.level == "loss" for s in find_symmetries(task))


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_with_random_parts_frozen(seed: int) -> None:
    """Sound and, with the combinations, as complete as the search without frozen parts."""
    model, args = random_architecture(seed)
    chooser = random.Random(seed)
    for p in model.parameters():
        p.requires_grad_(chooser.random() < 0.6)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    found = find_symmetries(model, args, trainable_only=True, verify=True)
    assert found.rejected == ()
    assert all(frozen.isdisjoint(s.parameters) for s in found)
    check_symmetries(found, model, args)
    result = completeness(found, model, args, trainable_only=True)
    assert result.explained == found.flat_dim <= result.measured
    whole = completeness(find_symmetries(model, args), model, args)
    if whole.complete:
        assert found.flat_dim + combined(found) == result.measured
