"""Mirrors: reflections of the parameters, their planes, and the gradient on them."""

from __future__ import annotations

from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, Case
from torch import Tensor, nn

from gaugefix.errors import SymmetryError
from gaugefix.symmetry import Mirror, Slice, find_symmetries
from gaugefix.symmetry.verify import float_outputs, laboratory_copy, random_parameters, to_double

NAMES = ("mlp-leaky", "mlp-tanh", "mlp-linear", "shared-tanh", "tied-autoencoder-linear", "einsum",
         "attention-chunk-matmul", "mixture-stacked", "residual-rms-gelu")  # fmt: skip
CHOSEN = tuple(c for c in CASES if c.name in NAMES)
Params = dict[str, Tensor]


@cache
def some_mirrors(case: Case) -> tuple[nn.Module, list[Mirror]]:
    """Up to three mirrors of every symmetry."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.make()
    found = find_symmetries(model, case.args, verify=False)
    return model, [m for s in found for m in islice(s.mirrors(), 3)]


def flat(params: Params) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params.values()])


cases = pytest.mark.parametrize("case", CHOSEN, ids=str)


@cases
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_reflections_are_isometric_involutions_with_an_orthogonal_projection(case: Case, seed: int) -> None:
    model, mirrors = some_mirrors(case)
    params = random_parameters(model, torch.Generator().manual_seed(seed))
    theta = flat(params)
    for m in mirrors:
        reflected = m.reflect(params)
        assert torch.allclose(flat(m.reflect(reflected)), theta, atol=1e-12)
        assert torch.allclose(flat(reflected).norm(), theta.norm(), rtol=1e-12)
        on_plane = m.project(params)
        assert torch.allclose(flat(m.reflect(on_plane)), flat(on_plane), atol=1e-12)
        assert torch.allclose(flat(m.project(on_plane)), flat(on_plane), atol=1e-12)
        assert abs(float((theta - flat(on_plane)) @ flat(on_plane))) < 1e-9  # the normal part is orthogonal to it
        assert m.distance(on_plane) < 1e-12
        assert 0 < m.distance(params) <= 1 + 1e-12


@cases
def test_coordinates_are_an_isometry_of_the_normal_space_and_embed_is_its_adjoint(case: Case) -> None:
    model, mirrors = some_mirrors(case)
    generator = torch.Generator().manual_seed(0)
    params = random_parameters(model, generator)
    for m in mirrors:
        z = m.coordinates(params)
        normal = flat(params) - flat(m.project(params))
        assert z.shape == (m.codim(params),)
        assert torch.allclose(z.norm(), normal.norm(), rtol=1e-10)
        w = torch.randn(len(z), generator=generator, dtype=torch.float64)
        embedded = m.embed(w, params)
        full = {k: embedded.get(k, torch.zeros_like(p)) for k, p in params.items()}
        assert torch.allclose(flat(full).norm(), w.norm(), rtol=1e-10)
        assert torch.allclose(flat(full) @ flat(params), w @ z, atol=1e-9)
        assert torch.allclose(m.coordinates(full), w, atol=1e-10)


@cases
def test_distance_does_not_see_the_side_of_the_mirror(case: Case) -> None:
    model, mirrors = some_mirrors(case)
    params = random_parameters(model, torch.Generator().manual_seed(3))
    for m in mirrors:
        assert m.distance(m.reflect(params)) == pytest.approx(m.distance(params), rel=1e-9)
        assert m.distance({k: 3 * p for k, p in params.items()}) == pytest.approx(m.distance(params), rel=1e-9)


@cases
def test_the_gradient_on_the_plane_has_no_normal_component(case: Case) -> None:
    """2309.16932, theorem 1: SGD never leaves the plane."""
    model, mirrors = some_mirrors(case)
    params = random_parameters(model, torch.Generator().manual_seed(4))
    lab, args = laboratory_copy(model), to_double(case.args)
    for m in mirrors:
        on_plane = {k: p.requires_grad_() for k, p in m.project(params).items()}
        for output in float_outputs(lab, on_plane, args, {}):
            loss = torch.sin(output + torch.arange(output.numel()).view_as(output)).sum()  # any loss of the outputs
            gradient = dict(zip(on_plane, torch.autograd.grad(loss, list(on_plane.values())), strict=True))
            assert float(m.coordinates(gradient).norm()) <= 1e-9 * (1 + float(flat(gradient).norm())), m.name


def square(v: list[float]) -> Mirror:
    """A residual matrix, reflected on both sides, with its bias."""
    index = np.arange(3).reshape(1, 3, 1)
    slices = (Slice("W", 0, index, "write"), Slice("W", 1, index, "read"), Slice("b", 0, index, "write"))
    return Mirror("square", slices, 0, np.array(v), "swap")


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) > 0.1))
def test_a_square_matrix_is_reflected_on_both_sides(v: list[float]) -> None:
    unit = np.array(v) / np.linalg.norm(v)
    m = square(list(unit))
    generator = torch.Generator().manual_seed(0)
    params = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in (("W", (3, 3)), ("b", (3,)))}
    r = torch.eye(3, dtype=torch.float64) - 2 * torch.outer(torch.tensor(unit), torch.tensor(unit))
    reflected = m.reflect(params)
    assert torch.allclose(reflected["W"], r @ params["W"] @ r)
    assert torch.allclose(reflected["b"], r @ params["b"])
    z = m.coordinates(params)
    assert z.shape == (2 + 2 + 1,)  # entries with one index along v: 2 rows, 2 columns; and the bias along v
    normal = flat(params) - flat(m.project(params))
    assert torch.allclose(z.norm(), normal.norm())


def test_only_sign_flips_and_swaps_permute_coordinates() -> None:
    half = float(np.sqrt(0.5))
    assert square([0.0, 1.0, 0.0]).is_signed_permutation
    assert square([half, -half, 0.0]).is_signed_permutation
    assert not square([0.6, 0.8, 0.0]).is_signed_permutation


@pytest.mark.parametrize(
    ("v", "message"), [([1.0, 1.0, 0.0], "unit vector"), ([1.0, 0.0], "shape"), ([float("nan"), 0.0, 0.0], "unit")]
)
def test_a_bad_vector_is_refused(v: list[float], message: str) -> None:
    with pytest.raises(SymmetryError, match=message):
        square(v)


def test_parameters_that_do_not_fit_are_refused() -> None:
    m = square([1.0, 0.0, 0.0])
    with pytest.raises(SymmetryError, match="'b', which is not there"):
        m.reflect({"W": torch.zeros(3, 3)})
    with pytest.raises(SymmetryError, match=r"shape \(2, 2\).*folded"):
        m.reflect({"W": torch.zeros(2, 2), "b": torch.zeros(3)})
    with pytest.raises(SymmetryError, match=r"shape \(5,\), got \(4,\)"):
        m.embed(torch.zeros(4), {"W": torch.zeros(3, 3), "b": torch.zeros(3)})
