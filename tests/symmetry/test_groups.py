"""The groups as groups: identity, inverse, generators as derivatives, the function unchanged."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, Case
from torch import Tensor, nn

from gaugefix.symmetry import Symmetries, Symmetry, find_symmetries
from gaugefix.symmetry.frame_groups import StreamRotation
from gaugefix.symmetry.groups import Diagonal, Permutation, Rotation
from gaugefix.symmetry.verify import float_outputs, laboratory_copy, random_parameters, relative_change, to_double

NAMES = (
    "mlp-leaky", "mlp-tanh", "mlp-linear", "swiglu", "einsum", "mixture-stacked", "tied-autoencoder-linear",
    "residual-ln-gelu", "residual-rms-gelu", "encoder-pre-gelu", "encoder-post-relu", "attention-rotary", "gpt2",
)  # fmt: skip
CHOSEN = tuple(c for c in CASES if c.name in NAMES)
Params = dict[str, Tensor]


@cache
def searched(case: Case) -> tuple[nn.Module, Symmetries]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.make()
    return model, find_symmetries(model, case.args, verify=False)


def point(model: nn.Module, seed: int) -> Params:
    return random_parameters(model, torch.Generator().manual_seed(seed))


def identity(s: Symmetry) -> Tensor:
    element = s.sample(torch.Generator().manual_seed(0))
    if isinstance(s, Permutation):
        return torch.arange(element.shape[1]).expand_as(element)
    if isinstance(s, Rotation | StreamRotation):
        return torch.eye(element.shape[-1], dtype=torch.float64).expand_as(element)
    return torch.ones_like(element) if isinstance(s, Diagonal) and s.kind == "sign" else torch.zeros_like(element)


def inverse(s: Symmetry, element: Tensor) -> Tensor | None:
    """The inverse element, or None where it depends on the parameters."""
    if isinstance(s, Permutation):
        return element.argsort(dim=1)
    if isinstance(s, Rotation | StreamRotation):
        return torch.linalg.inv(element)
    if isinstance(s, Diagonal) and s.kind == "sign":
        return element
    return -element


def close(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-9, atol=1e-10) for k in a)


@pytest.mark.parametrize("case", CHOSEN, ids=str)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_elements_keep_the_function_and_can_be_undone(case: Case, seed: int) -> None:
    model, found = searched(case)
    params, generator = point(model, seed), torch.Generator().manual_seed(seed)
    before = {k: p.clone() for k, p in params.items()}
    lab, args = laboratory_copy(model), to_double(case.args)
    reference = float_outputs(lab, params, args, {})
    for s in found:
        element = s.sample(generator)
        moved = s.apply(params, element)
        assert all(torch.equal(params[k], before[k]) for k in params), f"{s.name} modified its argument"
        assert {k for k in params if not torch.equal(moved[k], params[k])} <= set(s.parameters), s.name
        assert relative_change(float_outputs(lab, moved, args, {}), reference) < 1e-9, s.name
        assert close(s.apply(params, identity(s)), params), f"{s.name}: identity"
        back = inverse(s, element)
        assert back is None or close(s.apply(moved, back), params), f"{s.name}: inverse"


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_generators_are_derivatives_of_the_action(case: Case) -> None:
    model, found = searched(case)
    params, step = point(model, 1), 1e-5
    for s in found:
        for k in {0, s.n_generators // 2, s.n_generators - 1} if s.n_generators else ():
            field = s.generator(params, k)
            ahead = s.apply(params, s.path(k, torch.tensor(step, dtype=torch.float64)))
            behind = s.apply(params, s.path(k, torch.tensor(-step, dtype=torch.float64)))
            for name, p in params.items():
                slope = (ahead[name] - behind[name]) / (2 * step)
                assert torch.allclose(slope, field.get(name, torch.zeros_like(p)), atol=1e-7), f"{s.name}: {name}"


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_isometric_symmetries_keep_the_norm_and_the_others_have_no_mirrors_but_those_of_gl(case: Case) -> None:
    model, found = searched(case)
    params, generator = point(model, 2), torch.Generator().manual_seed(2)
    size = sum(float(p.square().sum()) for p in params.values())
    for s in found:
        moved = s.apply(params, s.sample(generator))
        if s.isometric:
            assert sum(float(p.square().sum()) for p in moved.values()) == pytest.approx(size, rel=1e-12), s.name
        elif not isinstance(s, Rotation):  # GL(n) contains the reflections of O(n)
            assert next(s.mirrors(), None) is None, s.name


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_a_generator_out_of_range_is_an_index_error(case: Case) -> None:
    _, found = searched(case)
    for s in found:
        with pytest.raises(IndexError, match="generator"):
            s.path(s.n_generators, torch.zeros(()))


def test_permutations_compose_as_index_arrays() -> None:
    model, found = searched(next(c for c in CHOSEN if c.name == "mlp-tanh"))
    s = next(s for s in found if isinstance(s, Permutation))
    params, generator = point(model, 0), torch.Generator().manual_seed(0)
    a, b = s.sample(generator), s.sample(generator)
    assert close(s.apply(s.apply(params, a), b), s.apply(params, a.gather(1, b)))


def test_rescalings_multiply_by_the_exponential_of_charge_times_element() -> None:
    model, found = searched(next(c for c in CHOSEN if c.name == "mlp-leaky"))
    s = next(s for s in found if s.group == "R+^6")
    params = point(model, 0)
    c = torch.zeros(1, 6, dtype=torch.float64)
    c[0, 2] = 0.5
    moved = s.apply(params, c)
    sign = torch.sign(torch.log(moved["0.weight"][2, 0] / params["0.weight"][2, 0]))
    assert torch.allclose(moved["0.weight"][2], params["0.weight"][2] * torch.exp(0.5 * sign))
    assert torch.allclose(moved["2.weight"][:, 2], params["2.weight"][:, 2] * torch.exp(-0.5 * sign))
    assert torch.equal(moved["0.weight"][3], params["0.weight"][3])
