"""Exact elimination against dense linear algebra, over the rationals and over GF(2)."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.symmetry.linear_system import LinearSystem, rank_basis

matrices = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=1, max_size=7)
)


def row_of(values: list[int]) -> dict[int, int]:
    return {i: v for i, v in enumerate(values) if v}


def solution_space(matrix: list[list[int]], modulus: int) -> np.ndarray:
    """Basis rows of the null space that the system describes: one for each free variable."""
    n = len(matrix[0])
    system = LinearSystem(modulus)
    for values in matrix:
        system.add(row_of(values))
    resolved = [system.resolve(i) for i in range(n)]
    free = sorted({v for row in resolved for v in row})
    return np.array([[resolved[i].get(v, 0) for i in range(n)] for v in free], dtype=object).reshape(len(free), n)


def rank_mod_2(matrix: np.ndarray) -> int:
    m, rank = matrix.astype(int) % 2, 0
    for c in range(m.shape[1]):
        pivot = next((r for r in range(rank, len(m)) if m[r, c]), None)
        if pivot is None:
            continue
        m[[rank, pivot]] = m[[pivot, rank]]
        for r in range(len(m)):
            if r != rank and m[r, c]:
                m[r] ^= m[rank]
        rank += 1
    return rank


@given(matrices)
def test_the_system_describes_the_null_space_over_the_rationals(matrix: list[list[int]]) -> None:
    space = solution_space(matrix, 0)
    dense = np.array(matrix, dtype=object)
    assert not (dense @ space.T).any()  # exactly zero: integers and fractions
    assert len(space) == dense.shape[1] - np.linalg.matrix_rank(dense.astype(float))
    if len(space):
        assert np.linalg.matrix_rank(space.astype(float)) == len(space)


@given(matrices)
def test_the_system_describes_the_null_space_over_gf2(matrix: list[list[int]]) -> None:
    space = solution_space(matrix, 2)
    dense = np.array(matrix, dtype=int)
    solutions = [x for x in product((0, 1), repeat=dense.shape[1]) if not (dense @ np.array(x) % 2).any()]
    assert 2 ** len(space) == len(solutions)
    assert not (dense @ space.T.astype(int) % 2).any()


@given(matrices, st.randoms(use_true_random=False))
def test_the_order_of_equations_does_not_matter(matrix: list[list[int]], rng: object) -> None:
    shuffled = list(matrix)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert len(solution_space(matrix, 0)) == len(solution_space(shuffled, 0))


@given(matrices, st.sampled_from([0, 2]))
def test_rank_basis_keeps_the_first_independent_rows(matrix: list[list[int]], modulus: int) -> None:
    rows = [{k: v % 2 if modulus else v for k, v in row_of(r).items()} for r in matrix]
    rows = [{k: v for k, v in r.items() if v} for r in rows]
    kept = rank_basis(rows, modulus=modulus)
    dense = np.array(matrix)
    rank = rank_mod_2(dense) if modulus else int(np.linalg.matrix_rank(dense))
    assert len(kept) == rank
    assert all(any(row is r for r in rows) for row in kept)


@given(matrices)
def test_known_rows_are_not_counted_again(matrix: list[list[int]]) -> None:
    rows = [row_of(r) for r in matrix]
    half = len(rows) // 2
    total = int(np.linalg.matrix_rank(np.array(matrix)))
    known = int(np.linalg.matrix_rank(np.array(matrix[:half]))) if half else 0
    assert len(rank_basis(rows[half:], rows[:half])) == total - known
    assert rank_basis(rows, rows) == []


def test_fractions_stay_exact_along_long_chains() -> None:
    """3x₀ = x₁, 3x₁ = x₂, …: the last variable is 3¹⁰⁰ times the first, to the last digit."""
    system = LinearSystem()
    for i in range(100):
        system.add({i: 3, i + 1: -1})
    (root, at_end), (root_0, at_start) = next(iter(system.resolve(100).items())), next(iter(system.resolve(0).items()))
    assert root == root_0
    assert Fraction(at_end) / at_start == 3**100


def test_chains_as_long_as_a_deep_network_resolve_without_recursion() -> None:
    system = LinearSystem()
    for i in range(20_000):
        system.add({i: 1, i + 1: -1})
    assert system.resolve(0) == system.resolve(20_000)


def test_preferred_variables_stay_free() -> None:
    system = LinearSystem(prefer=lambda v: int(v == "weight"))
    system.add({"weight": 1, "activation": -1})
    assert system.resolve("weight") == {"weight": 1}
    assert system.resolve("activation") == {"weight": 1}
