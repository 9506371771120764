"""Folding repeated blocks: nothing lost, nothing merged that differs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gaugefix.report.blocks import WHOLE, Section, fold_blocks
from gaugefix.symmetry import Symmetries, find_symmetries


class Residual(nn.Module):
    """A residual network whose hidden widths are given, one for each block."""

    def __init__(self, widths: list[int], d: int = 4) -> None:
        super().__init__()
        self.read = nn.Linear(6, d)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(d, w), "down": nn.Linear(w, d)}) for w in widths)
        self.out = nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["down"](torch.relu(block["up"](x)))
        out: Tensor = self.out(x)
        return out


def search(widths: list[int], *, verify: bool = False) -> Symmetries:
    return find_symmetries(Residual(widths), (torch.randn(4, 6),), verify=verify)


def hidden(sections: tuple[Section, ...]) -> dict[str, str]:
    return {s.title: s.rows[0].group for s in sections if s.block.startswith("blocks")}


def test_equal_blocks_become_one() -> None:
    sections = fold_blocks(search([5, 5, 5]))
    assert hidden(sections) == {"blocks.0–2 × 3": "S_5"}
    (block,) = (s for s in sections if s.count == 3)
    assert {r.acts_on for r in block.rows} == {"up.weight[0], up.bias[0], down.weight[1]"}


def test_different_blocks_stay_apart() -> None:
    assert hidden(fold_blocks(search([5, 6, 5, 5]))) == {"blocks.0,2–3 × 3": "S_5", "blocks.1": "S_6"}


def test_the_stream_is_across_blocks_and_comes_first() -> None:
    first = fold_blocks(search([5, 5]))[0]
    assert first.block == WHOLE
    assert any(r.group == "GL(4)" for r in first.rows)


def test_errors_are_the_largest_of_the_blocks() -> None:
    found = search([5, 5], verify=True)
    (block,) = (s for s in fold_blocks(found) if s.count == 2)
    errors = {v.name: v.error for v in found.verification}
    assert block.rows[0].error == max(errors[f"blocks.{i}.up: permute"] for i in (0, 1))


@given(st.lists(st.integers(2, 4), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_no_direction_and_no_symmetry_is_lost(widths: list[int]) -> None:
    found = search(widths)
    sections = fold_blocks(found)
    assert sum(s.dim for s in sections) == found.flat_dim
    assert sum(s.count * len(s.rows) for s in sections) == len(found)
