"""find_symmetries on awkward modules: it never invents a symmetry, leaves the module alone, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from tests.cases import GPT2, X, mlp, numbers, tokens
from torch import Tensor, nn

from gaugefix.errors import TraceError
from gaugefix.symmetry import Lowering, Symmetries, find_symmetries, register_rule
from gaugefix.symmetry.graph import Op, trace
from gaugefix.symmetry.lowering import RULES
from gaugefix.testing import check_symmetries, flat_directions


class Around(nn.Module):
    """Linear, some function, linear."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))  # type: ignore[operator]


def groups(found: Symmetries) -> list[str]:
    return [s.group for s in found]


# Operations without a rule


def test_an_unknown_operation_pins_its_axes_and_is_reported() -> None:
    model = Around(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=6))  # a circular identity, but who knows
    found = find_symmetries(model, (X,))
    assert any("fft" in o.op for o in found.opaque)
    assert all(o.reason for o in found.opaque)
    assert groups(found) == []
    assert found.rejected == ()


def test_symmetries_away_from_an_unknown_operation_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Around(lambda x: torch.linalg.pinv(x).mT))
    model[2].first = nn.Linear(5, 6)
    found = find_symmetries(model, (X,))
    assert {o.op for o in found.opaque} >= {"linalg_pinv"}
    assert groups(found) == ["S_5", "Z_2^5"]
    assert found.verified


@pytest.fixture
def cube() -> Iterator[str]:
    name = "gaugefix_tests::cube"

    @torch.library.custom_op(name, mutates_args=())
    def op(x: Tensor) -> Tensor:
        return x**3

    op.register_fake(torch.empty_like)
    yield name
    RULES.pop("cube", None)


def test_a_registered_rule_lets_the_search_see_through_a_custom_operation(cube: str) -> None:
    model = Around(lambda x: torch.ops.gaugefix_tests.cube(x))
    assert groups(find_symmetries(model, (X,))) == []

    @register_rule("cube")
    def rule(op: Op, lower: Lowering) -> None:
        lower.pointwise(op.arg(0, "x"), op.out, "cube", degree=3, parity="odd")

    found = find_symmetries(model, (X,))
    assert groups(found) == ["S_6", "R+^6", "Z_2^6"]
    assert found.verified
    assert found.opaque == ()


def test_a_wrong_rule_is_caught_and_never_shown_as_true(cube: str) -> None:
    @register_rule("cube")
    def rule(op: Op, lower: Lowering) -> None:
        lower.pointwise(op.arg(0, "x"), op.out, "cube", degree=1, parity="even")

    found = find_symmetries(Around(lambda x: torch.ops.gaugefix_tests.cube(x)), (X,), verify=True)
    assert groups(found) == ["S_6"]
    assert {v.name for v in found.rejected} >= {"first: rescale"}
    assert all(v.error > 1e-3 for v in found.rejected)


# Modules that cannot be searched


def test_a_lazy_parameter_is_refused_with_the_way_out() -> None:
    with pytest.raises(TraceError, match=r"'0.weight' is lazy.*forward pass"):
        find_symmetries(nn.Sequential(nn.LazyLinear(3)), (X,))


def test_a_complex_parameter_is_refused() -> None:
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
    with pytest.raises(TraceError, match=r"'weight' is torch.complex64"):
        find_symmetries(model, (X,))


class Branching(nn.Module):
    """Data-dependent control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) if x.sum() > 0 else -self.lin(x)


def test_data_dependent_control_flow_is_refused_with_the_way_out() -> None:
    with pytest.raises(TraceError, match=r"Branching could not be exported.*torch\.where"):
        find_symmetries(Branching(), (X,))


# Modules that must be left alone


def test_the_module_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 3))
    model[2].eval()
    model(X).sum().backward()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    requires = [p.requires_grad for p in model.parameters()]
    rng = torch.get_rng_state()
    find_symmetries(model, (X,), verify=True)
    flat_directions(model, (X,))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == requires
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_modes_are_given_back_when_the_export_fails() -> None:
    model = nn.Sequential(Branching(), nn.Dropout())
    model[1].eval()
    with pytest.raises(TraceError):
        find_symmetries(model, (X,))
    assert [m.training for m in model.modules()] == [True, True, True, False]


def test_the_meta_device_needs_no_weights() -> None:
    with torch.device("meta"):
        model = GPT2(tied=True)
    found = find_symmetries(model, (torch.zeros(3, 4, dtype=torch.long, device="meta"),))
    real = find_symmetries(GPT2(tied=True), (tokens(3, 4, 9),))
    assert [(s.name, s.group, s.dim) for s in found] == [(s.name, s.group, s.dim) for s in real]
    assert not found.verified
    assert found.verification == ()


def test_the_search_is_deterministic() -> None:
    model = GPT2()
    first, second = (find_symmetries(model, (tokens(3, 4, 9),)).to_json() for _ in range(2))
    assert first == second


# Unusual modules


def test_a_module_without_parameters_has_no_symmetry() -> None:
    found = find_symmetries(nn.ReLU(), (X,))
    assert (len(found), found.flat_dim, found.n_parameters, found.units) == (0, 0, 0, ())
    assert "0 flat directions of 0 parameters" in found.table()


def test_frozen_parameters_are_part_of_the_function() -> None:
    model = mlp((4, 6, 3), nn.ReLU)
    model[0].requires_grad_(False)
    assert groups(find_symmetries(model, (X,))) == ["S_6", "R+^6"]


def test_a_module_used_twice_is_one_set_of_parameters() -> None:
    shared = nn.Linear(4, 4)
    found = find_symmetries(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), shared, nn.Tanh(), shared), (X,), verify=True)
    assert groups(found) == []  # its output axis is the network's, and its input axis is the same one
    assert found.rejected == ()


def test_a_tied_parameter_is_named_once() -> None:
    found = find_symmetries(GPT2(tied=True), (tokens(3, 4, 9),))
    assert not any("head.weight" in axis for s in found for axis in s.axes)
    assert any("wte.weight" in axis for s in found for axis in s.axes)


def test_parameters_that_no_output_depends_on_do_no_harm() -> None:
    model = Around(torch.tanh)
    model.unused = nn.Linear(3, 3)
    found = find_symmetries(model, (X,), verify=True)
    assert {"S_6", "Z_2^6"} <= set(groups(found))
    assert found.rejected == ()


def test_keyword_arguments_and_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            h = torch.relu(self.body(x))
            return {"a": self.a(h), "b": self.b(h)}

    found = find_symmetries(Two(), (), {"x": X}, verify=True)
    assert groups(found) == ["S_5", "R+^5"]
    assert found[0].axes == ("body.weight[0]", "body.bias[0]", "a.weight[1]", "b.weight[1]")


def test_an_output_in_the_middle_pins_its_units() -> None:
    class Exposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.first(x))
            return self.second(h), h

    assert groups(find_symmetries(Exposed(), (X,), verify=True)) == []


# The result


def test_the_result_is_a_sequence_with_a_table_and_json() -> None:
    found = find_symmetries(mlp((4, 6, 5, 3), nn.ReLU), (X,))
    assert len(found) == len(list(found)) == 4
    assert found[0] in found
    assert [s.group for s in found[1:3]] == ["R+^6" if "R" in found[1].group else "S_5", found[2].group]
    data = json.loads(found.to_json())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert (data["flat_dim"], data["n_parameters"]) == (11, 83)
    assert {s["group"] for s in data["symmetries"]} == {"S_6", "R+^6", "S_5", "R+^5"}
    assert all(0 <= s["error"] < 1e-9 for s in data["symmetries"])
    assert [u["size"] for u in data["units"]] == [6, 5]
    lines = found.table().splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["symmetry", "group", "directions", "error", "acts", "on"]
    assert lines[-1] == "11 flat directions of 83 parameters"


def test_html_escapes_the_names_of_layers() -> None:
    model = nn.Sequential()
    model.add_module("<script>", nn.Linear(4, 6))
    model.add_module("act", nn.Tanh())
    model.add_module("out", nn.Linear(6, 3))
    page = find_symmetries(model, (X,))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_names_are_unique() -> None:
    found = find_symmetries(GPT2(layers=2), (tokens(3, 4, 9),))
    names = [s.name for s in found]
    assert len(set(names)) == len(names)


def test_every_mirror_belongs_to_a_symmetry() -> None:
    found = find_symmetries(mlp((4, 3, 2), nn.Tanh), (X,))
    mirrors = list(found.mirrors())
    assert len(mirrors) == 3 + 3  # transpositions and sign flips
    assert {m.kind for m in mirrors} == {"swap", "sign"}


def test_check_symmetries_accepts_what_is_found() -> None:
    model = mlp((4, 6, 5, 3), nn.LeakyReLU)
    check_symmetries(find_symmetries(model, (X,)), model, (X,))


def test_trace_names_the_operations_and_their_places() -> None:
    graph = trace(mlp((4, 6, 3), nn.ReLU), (numbers(2, 4),))
    assert [op.name for op in graph.ops] == ["linear", "relu", "linear"]
    assert [op.place for op in graph.ops] == ["0", "1", "2"]
    assert [v.shape for v in graph.outputs] == [(2, 3)]
