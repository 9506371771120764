"""Folding cuts what is idle and nothing else, in whatever architecture, and says why where it cannot."""

from __future__ import annotations

import copy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.cases import CASES, Case, numbers
from tests.control.zoo import ZOO, evaluate, relative, zoo_model, zoo_symmetries
from torch import Tensor, nn

from gaugefix.control import FoldResult, fold, impose, load_folded
from gaugefix.control.state import state_of, write_state


def seeded(build: object, seed: int = 0) -> nn.Module:
    """A module made with a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()  # type: ignore[operator, no-any-return]


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A float32 MLP."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), act()]
        return nn.Sequential(*layers[:-1])

    return seeded(build)  # type: ignore[return-value]


@pytest.mark.parametrize("case", ZOO)
def test_a_unit_that_nothing_reads_goes_from_every_class_of_the_zoo(case: Case, tmp_path: Path) -> None:
    """One unread unit is planted in every class; each is cut, or there is a reason. The function stays, on disk too."""
    model, args = zoo_model(case)
    found, state, planted = zoo_symmetries(case.name), state_of(model), set()
    for u in found.units:
        for s in u.outgoing:
            block = s.take(state[s.param]).clone()
            block[:, 0] = 0
            state[s.param] = s.put(state[s.param], block)
            planted.add(u.name)
    write_state(model, state)
    before = copy.deepcopy(model.state_dict())
    done = fold(model, found, tolerance=0, example_inputs=args)
    assert done.error < 1e-10
    other = tuple(numbers(*a.shape, seed=7).double() if a.is_floating_point() else a.flip(0) for a in args)
    assert relative(evaluate(done.model, other), evaluate(model, other)) < 1e-10
    cut = {c.name for c in done.removed}
    heads = {u.name for u in found.units if u.kind in {"head", "head_dim"}}  # a dead head takes both classes along
    assert planted - heads <= cut | set(done.skipped)
    assert {u.name for u in found.units if u.kind == "hidden" and u.fibers == 1 and u.outgoing} <= cut
    again = load_folded(zoo_model(case, seed=5)[0], done.save(tmp_path / "small.safetensors"))
    assert torch.equal(evaluate(again, other), evaluate(done.model, other))
    assert [p.shape for p in again.parameters()] == [p.shape for p in done.model.parameters()]
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp-gelu", "bn-leaky", "dense-tanh", "attention-chunk-matmul-bias", "mixture-list"])
def test_generic_models_are_not_cut(name: str) -> None:
    model, args = zoo_model(next(c for c in CASES if c.name == name))
    done = fold(model, example_inputs=args)
    assert done.removed == ()
    assert done.factored == ()
    assert done.parameters[0] == done.parameters[1]
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), model.parameters(), strict=True))


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Sequential, FoldResult]:
    """ReLU units that nothing reads, that are constant, always off, or copies up to scale."""
    net = mlp(8, 32, 24, 5)
    with torch.no_grad():
        net[2].weight[:, :5] = 0
        net[0].weight[5:8] = 0
        net[0].bias[5:8] = torch.tensor([0.7, -0.7, 0.0])
        net[0].weight[10], net[0].bias[10] = 3 * net[0].weight[11], 3 * net[0].bias[11]
        net[4].weight[:, 3] = 0
        net[2].weight[4], net[2].bias[4] = net[2].weight[9], net[2].bias[9]
    return net, fold(net, tolerance=0, example_inputs=numbers(16, 8))


def test_dead_constant_and_copied_units_are_counted(planted: tuple[nn.Sequential, FoldResult]) -> None:
    net, done = planted
    first, second = done.removed
    assert (first.before, first.after, first.dead, first.constant, first.merged) == (32, 23, 7, 1, 1)
    assert (second.before, second.after, second.dead, second.constant, second.merged) == (24, 22, 1, 0, 1)
    assert done.error <= 1e-6
    assert done.parameters == (1205, 23 * 9 + 22 * 24 + 5 * 23)
    assert done.bytes[1] == 4 * done.parameters[1]
    assert done.flops == (2 * 16 * (8 * 32 + 32 * 24 + 24 * 5), 2 * 16 * (8 * 23 + 23 * 22 + 22 * 5))
    x = numbers(64, 8, seed=3)
    assert relative(evaluate(done.model, (x,)), evaluate(net, (x,))) < 1e-6


def test_the_result_is_plain_modules_with_right_attributes(planted: tuple[nn.Sequential, FoldResult]) -> None:
    _, done = planted
    assert [type(m) for m in done.model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert "in_features=23, out_features=22" in repr(done.model)
    assert all(p.requires_grad and p.grad is None for p in done.model.parameters())
    assert "32 -> 23 hidden (7 dead, 1 constant, 1 merged)" in str(done)
    assert "model" not in done.to_dict()


def test_weights_go_through_safetensors(planted: tuple[nn.Sequential, FoldResult], tmp_path: Path) -> None:
    from safetensors.torch import load_model

    _, done = planted
    done.save(str(tmp_path / "small.safetensors"))
    other = nn.Sequential(nn.Linear(8, 23), nn.ReLU(), nn.Linear(23, 22), nn.ReLU(), nn.Linear(22, 5))
    load_model(other, str(tmp_path / "small.safetensors"))
    x = numbers(4, 8)
    assert torch.equal(other(x), done.model(x))


def test_the_result_does_not_need_gaugefix(planted: tuple[nn.Sequential, FoldResult], tmp_path: Path) -> None:
    _, done = planted
    torch.save(done.model, tmp_path / "small.pt")
    code = (
        "import sys; sys.modules['gaugefix'] = None\n"
        "import torch\n"
        f"print(tuple(torch.load({str(tmp_path / 'small.pt')!r}, weights_only=False)(torch.zeros(2, 8)).shape))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2, 5)"


def test_odd_activations_merge_units_of_opposite_sign() -> None:
    net = mlp(6, 12, 3, act=nn.Tanh)
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = -net[0].weight[7], -net[0].bias[7]
        net[0].weight[5] = 0
    done = fold(net, tolerance=0, example_inputs=numbers(9, 6))
    assert (done.removed[0].after, done.removed[0].constant, done.removed[0].merged) == (10, 1, 1)


def test_gelu_units_that_differ_by_a_factor_are_not_copies() -> None:
    net = mlp(6, 12, 3, act=nn.GELU)
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 2 * net[0].weight[7], 2 * net[0].bias[7]
    assert fold(net, tolerance=0, example_inputs=numbers(9, 6)).removed == ()


def test_gated_units_need_one_empty_gate_only() -> None:
    model = seeded(next(c for c in CASES if c.name == "swiglu").make)
    with torch.no_grad():
        model.gate.weight[0] = 0
        model.up.weight[1] = 0
        model.down.weight[:, 2] = 0
        model.gate.weight[3], model.up.weight[3] = model.gate.weight[4], -2 * model.up.weight[4]
    done = fold(model, tolerance=0, example_inputs=numbers(9, 4))
    assert (done.removed[0].after, done.removed[0].dead, done.removed[0].merged) == (3, 3, 1)


@pytest.mark.parametrize("padding", [0, 1])
def test_channels_with_batch_norm(padding: int) -> None:
    """A channel with gain 0 is a constant: it moves to the next bias, but not where zero padding makes a border."""

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=padding,
            bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
        ).eval()  # fmt: skip

    net = seeded(build)
    with torch.no_grad():
        net[1].running_mean.copy_(numbers(8))
        net[1].running_var.copy_(0.5 + numbers(8).square())
        net[1].weight[:3], net[1].bias[:3] = 0, torch.tensor([-0.1, 0.0, 0.5])
        net[0].weight[6] = net[0].weight[7]
        for t in (net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            t[6] = t[7]
        net[8].weight[:, 4:8] = 0
    done = fold(net, tolerance=0, example_inputs=numbers(2, 3, 8, 8))
    assert done.error < 1e-6
    first, second = (next(c for c in done.removed if c.name == name) for name in ("0", "3"))
    assert second.after == 5
    if padding:
        assert "pads its input" in done.skipped["0"]
        assert (first.after, first.dead, first.merged) == (5, 2, 1)
    else:
        assert (first.after, first.dead, first.constant, first.merged) == (4, 2, 1, 1)
        assert done.model[3].bias is not None  # it had none, and takes the constant
    assert done.model[1].num_features == len(done.model[1].running_mean) == first.after
    assert done.model[3].in_channels == first.after


def test_depthwise_channels_take_their_groups_along() -> None:
    net = seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ))  # fmt: skip
    with torch.no_grad():
        net[4].weight[:, 1:3] = 0
    done = fold(net, tolerance=0, example_inputs=numbers(2, 3, 6, 6))
    assert (done.model[2].groups, done.model[2].in_channels, done.model[2].out_channels) == (4, 4, 4)
    assert done.model[0].out_channels == 4


def test_a_stream_unit_that_nothing_writes_goes_through_root_mean_squares() -> None:
    model, args = zoo_model(next(c for c in CASES if c.name == "residual-rms-gelu"))
    with torch.no_grad():
        for writer in (model.embed, *model.down):
            writer.weight[2], writer.bias[2] = 0, 0
    done = fold(model, tolerance=0, example_inputs=args)
    assert done.error < 1e-12
    assert done.model.embed.out_features == done.model.head.in_features == 3
    assert done.model.final.normalized_shape == (3,)


def test_the_average_of_a_layer_norm_keeps_its_units_and_says_so() -> None:
    model, args = zoo_model(next(c for c in CASES if c.name == "ln-gelu"))
    with torch.no_grad():
        model[3].weight[:, 1] = 0
    done = fold(model, tolerance=0, example_inputs=args)
    assert done.removed == ()
    assert "average of a normalisation" in done.skipped["0"]


def test_low_rank_becomes_a_thinner_bottleneck_or_two_layers(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 40)))
    with torch.no_grad():
        net[1].weight.copy_(numbers(16, 3) @ numbers(3, 12, seed=1))
        net[3].weight.copy_(numbers(40, 4) @ numbers(4, 16, seed=1))
    done = fold(net, tolerance=0, example_inputs=numbers(5, 20))
    assert done.removed[0].rank == 9
    assert done.model[0].out_features == 3
    assert done.factored == ("3",)
    assert [tuple(m.weight.shape) for m in done.model[3]] == [(4, 16), (40, 4)]
    assert done.error < 1e-5
    again = load_folded(copy.deepcopy(net), done.save(tmp_path / "thin.safetensors"))
    assert torch.equal(again(numbers(5, 20)), done.model(numbers(5, 20)))
    assert fold(net, tolerance=0, factor=False, example_inputs=numbers(5, 20)).factored == ()


class Heads(nn.Module):
    """Attention whose forward pass reads its widths: from attributes, or from the tensors."""

    def __init__(self, d: int = 12, heads: int = 3, e: int = 4, *, attributes: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, heads * e) for _ in range(3))
        self.out = nn.Linear(heads * e, d)
        self.num_heads, self.head_dim, self.attributes = heads, e, attributes

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.num_heads, self.head_dim) if self.attributes else (self.num_heads, -1)
        q, k, v = (m(x).unflatten(-1, shape).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_dead_head_goes_and_the_attribute_follows() -> None:
    model = seeded(Heads)
    with torch.no_grad():
        model.out.weight[:, 4:8] = 0
    done = fold(model, tolerance=0, factor=False, example_inputs=numbers(2, 5, 12))
    assert done.removed[0].kind == "head"
    assert (done.model.num_heads, done.model.head_dim, done.model.q.out_features) == (2, 4, 8)


def test_thinner_queries_and_keys_keep_the_scale_of_the_softmax() -> None:
    """SDPA divides by the root of the new width, which the cut undoes."""
    model = seeded(lambda: Heads(attributes=False))
    with torch.no_grad():
        model.k.weight[3::4], model.k.bias[3::4] = 0, 0
    done = fold(model, tolerance=0, factor=False, example_inputs=numbers(2, 5, 12))
    assert (done.removed[0].kind, done.removed[0].rank) == ("head_dim", 3)
    assert (done.model.q.out_features, done.model.v.out_features) == (9, 12)
    assert done.error < 1e-6


def test_queries_and_values_that_must_be_equally_wide_shrink_together() -> None:
    model = seeded(Heads)
    with torch.no_grad():
        model.k.weight[2::4], model.k.bias[2::4] = 0, 0
        model.k.weight[3::4], model.k.bias[3::4] = 0, 0
        model.out.weight[:, 3::4] = 0
    done = fold(model, tolerance=0, factor=False, example_inputs=numbers(2, 5, 12))
    assert {c.after for c in done.removed} == {3}
    assert (done.model.head_dim, done.model.num_heads, done.model.v.out_features) == (3, 3, 9)
    assert done.error < 1e-6


def test_what_a_forward_pass_does_not_take_is_left_with_the_reason() -> None:
    model = next(c for c in CASES if c.name == "attention-chunk-matmul-bias").make()
    with torch.no_grad():
        model.out.weight[:, 3:6] = 0
    done = fold(model, tolerance=0, factor=False, example_inputs=numbers(3, 4, 6))
    assert done.removed == ()
    assert "the forward pass does not take it" in done.skipped["qkv"]


def test_constraints_are_evaluated_and_their_tensors_are_parameters_again() -> None:
    """Also those with several factors, where torch looks at gradients to know what is a parameter."""
    net = mlp(4, 8, 8, 2)
    impose.sparse(impose.low_rank(net, "2.weight", strength=0.1), "0.weight", strength=0.1)
    with torch.no_grad():
        net[2].bias[3] = 0
        net[2].parametrizations.weight.original0[3] = 0
    x = numbers(5, 4)
    done = fold(net, tolerance=0, example_inputs=x)
    assert done.removed[0].after == 7
    assert done.parameters == (4 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2, 4 * 8 + 8 + 8 * 7 + 7 + 7 * 2 + 2)
    assert all(p.requires_grad and p.is_leaf for p in done.model.parameters())
    assert torch.allclose(done.model(x), net(x), atol=1e-5)
