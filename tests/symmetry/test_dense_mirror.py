"""Mirrors given by a matrix."""

import pytest
import torch
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import SymmetryError, ValidityWarning
from gaugefix.measure import o_hessian
from gaugefix.symmetry import mirror_from_matrix


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in (("a", (2, 3)), ("b", (4,)))}


@pytest.fixture
def mirror(params):
    return mirror_from_matrix(torch.randn(10, 3, generator=torch.Generator().manual_seed(1)), params)


def test_it_is_an_isometric_involution(mirror, params):
    once = mirror.reflect(params)
    assert not torch.allclose(once["a"], params["a"])
    assert all(torch.allclose(p, params[n]) for n, p in mirror.reflect(once).items())
    norm = {k: sum(float(p.square().sum()) for p in d.values()) for k, d in (("old", params), ("new", once))}
    assert norm["new"] == pytest.approx(norm["old"])


def test_projection_lands_on_the_plane(mirror, params):
    projected = mirror.project(params)
    assert mirror.distance(params) > 0.1
    assert mirror.distance(projected) < 1e-14
    assert all(torch.allclose(p, projected[n]) for n, p in mirror.project(projected).items())


def test_embed_is_the_adjoint_of_coordinates(mirror, params):
    z = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tangent = mirror.embed(z, params)
    inner = sum(float((tangent[n] * params[n]).sum()) for n in params)
    assert inner == pytest.approx(float(z @ mirror.coordinates(params)))
    assert torch.allclose(mirror.coordinates(tangent), z)


def test_it_agrees_with_the_mirrors_of_the_search():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params = {n: p.detach() for n, p in model.named_parameters()}
    for found in list(find_symmetries(model, (torch.randn(2, 3).double(),)).mirrors())[:8]:
        k = found.codim(params)
        columns = []
        for row in torch.eye(k, dtype=torch.float64):
            tangent = found.embed(row, params)
            columns.append(torch.cat([tangent.get(n, torch.zeros_like(p)).reshape(-1) for n, p in params.items()]))
        dense = mirror_from_matrix(torch.stack(columns, dim=1), params)
        assert all(torch.allclose(p, dense.reflect(params)[n]) for n, p in found.reflect(params).items())
        assert dense.is_signed_permutation == found.is_signed_permutation


def test_a_generic_reflection_permutes_nothing(mirror):
    assert not mirror.is_signed_permutation


def test_dependent_columns_are_dropped_with_a_warning(params):
    column = torch.randn(10, 1)
    with pytest.warns(ValidityWarning, match="2 columns of O span 1"):
        assert mirror_from_matrix(torch.cat([column, 2 * column], dim=1), params).codim(params) == 1


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(9, 1), r"shape \(10, k\), got \(9, 1\)"),
        (torch.full((10, 1), float("nan")), "not finite"),
        (torch.zeros(10, 2), "is zero"),
    ],
)
def test_bad_matrices(params, matrix, message):
    with pytest.raises(SymmetryError, match=message):
        mirror_from_matrix(matrix, params)


def test_wrong_parameters_are_named(mirror, params):
    with pytest.raises(SymmetryError, match=r"'a' must have shape \(2, 3\), got \(3, 2\)"):
        mirror.reflect({**params, "a": params["a"].T})
    with pytest.raises(SymmetryError, match="z must have shape"):
        mirror.embed(torch.zeros(4), params)


def test_the_hessian_block_is_that_of_the_same_mirror(make_task):
    """`o_hessian` takes either kind of mirror."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False)).double()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(3)).double()
    task = make_task(model, (x, torch.arange(16) % 2))
    params = {n: p.detach() for n, p in model.named_parameters()}
    found = next(m for m in find_symmetries(model, (x,)).mirrors() if m.kind == "swap")
    k = found.codim(params)
    columns = [
        torch.cat([found.embed(row, params).get(n, torch.zeros_like(p)).reshape(-1) for n, p in params.items()])
        for row in torch.eye(k, dtype=torch.float64)
    ]
    dense = mirror_from_matrix(torch.stack(columns, dim=1), params)
    expected, got = (o_hessian(task, m).eigenvalues for m in (found, dense))
    assert got == pytest.approx(expected, abs=1e-10)
