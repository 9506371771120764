"""Repeated blocks: solved once each, with the same result, whatever the depth."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import GPT2, Residual, numbers, tokens
from torch import nn

from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.blocks import BlockSolver, block_of
from gaugefix.symmetry.cells import Cells
from gaugefix.symmetry.charges import ChargeSpace, solve_charges
from gaugefix.symmetry.graph import trace
from gaugefix.symmetry.linear_system import LinearSystem, rank_basis
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.patterns import recognise


def charges(model: nn.Module, *args: torch.Tensor, modulus: int = 0) -> ChargeSpace:
    return solve_charges(Cells(Lowering(recognise(trace(model, args))).run()), modulus)


@pytest.mark.parametrize("modulus", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda depth: (GPT2(layers=depth), tokens(3, 4, 9)),
        lambda depth: (Residual(4, 5, depth, nn.RMSNorm, nn.ReLU), numbers(8, 3)),
        lambda depth: (
            nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(depth))),
            numbers(8, 4),
        ),
    ],
    ids=["gpt2", "residual", "mlp"],
)
def test_the_number_of_solved_blocks_does_not_grow_with_depth(make: object, modulus: int) -> None:
    spaces = [charges(*make(depth), modulus=modulus) for depth in (3, 5, 7)]  # type: ignore[operator]
    assert spaces[0].distinct_blocks == spaces[1].distinct_blocks == spaces[2].distinct_blocks
    assert spaces[2].blocks - spaces[1].blocks == spaces[1].blocks - spaces[0].blocks > 0
    assert spaces[2].distinct_blocks < spaces[2].blocks


@given(data=st.data(), modulus=st.sampled_from([0, 2]))
@settings(max_examples=60, deadline=None)
def test_elimination_by_blocks_keeps_the_solutions(data: st.DataObject, modulus: int) -> None:
    """The kept unknowns have the same solutions as when all equations are imposed together."""
    names = [f"{kind}{i}" for kind in "px" for i in range(5)]
    term = st.tuples(st.sampled_from(names), st.sampled_from([1, 1, -1, 2]))
    rows = [
        (f"block{data.draw(st.integers(0, 2))}", dict(data.draw(st.lists(term, min_size=1, max_size=4))))
        for _ in range(data.draw(st.integers(1, 8)))
    ]
    if modulus:
        rows = [(b, {v: 1 for v, c in row.items() if c % 2}) for b, row in rows]

    def solutions(equations: list[dict[str, int]]) -> list[dict[str, int]]:
        system = LinearSystem(modulus, prefer=lambda v: v.startswith("p"))
        for row in equations:
            system.add(row)
        free: dict[str, dict[str, int]] = {}
        for v in names[:5]:
            for root, c in system.resolve(v).items():
                free.setdefault(root, {})[v] = c
        return rank_basis(free.values(), modulus=modulus)

    whole = solutions([row for _, row in rows])
    solver = BlockSolver(modulus, kept=lambda v: str(v).startswith("p"))
    reduced = solutions(list(solver.reduce(rows)))
    assert len(whole) == len(reduced)
    assert rank_basis(whole, reduced, modulus) == []


def test_equal_blocks_are_recognised_up_to_names() -> None:
    solver = BlockSolver(0, kept=lambda v: str(v).startswith("w"))
    rows = [(f"b{i}", {f"w{i}": 1, f"x{i}": -1}) for i in range(5)] + [
        (f"b{i}", {f"x{i}": 1, f"v{i}": 1}) for i in range(5)
    ]
    assert list(solver.reduce(rows)) == []
    assert (solver.blocks, solver.distinct) == (5, 1)


def test_the_block_of_a_place() -> None:
    assert block_of("model.layers.3.self_attn.q_proj") == "model.layers.3"
    assert block_of("layer1.0.conv.2") == "layer1.0"
    assert block_of("head") == block_of("") == ""


@pytest.mark.long
def test_a_very_deep_network_is_searched_and_the_interpreter_left_as_it_was() -> None:
    limit = sys.getrecursionlimit()
    with torch.device("meta"):
        model = Residual(4, 5, 120, nn.LayerNorm, nn.GELU)
    found = find_symmetries(model, (torch.empty(8, 3, device="meta"),))
    assert sum(s.group == "S_5" for s in found) == 120
    assert sys.getrecursionlimit() == limit
    assert gc.isenabled()
