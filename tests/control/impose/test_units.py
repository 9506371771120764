"""Constraints on units: all entries of a unit share one scalar, pairs become the factors of a product."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cases import CASES, Attention, Bilinear, numbers
from torch import nn

from gaugefix import find_symmetries
from gaugefix.control import impose
from gaugefix.errors import ControlError

X = numbers(8, 4).double()


class ResNet(nn.Module):
    """A convolutional block with a residual connection and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(6)
        self.up, self.down = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + self.down(torch.relu(self.norm(self.up(x))))
        return self.head(x.mean((2, 3)))


def exact(module: nn.Module) -> nn.Module:
    return module.double().eval()


IMAGES = numbers(5, 1, 6, 6).double()
TOKENS = numbers(3, 4, 6).double()
MODELS = {
    "mlp": (lambda: next(c for c in CASES if c.name == "mlp-relu").make(), (X,)),
    "resnet": (ResNet, (IMAGES,)),
    "attention": (lambda: Attention(bias=True), (TOKENS,)),
    "multihead": (lambda: next(c for c in CASES if c.name == "multihead").make(), (TOKENS,)),
    "mixture": (lambda: next(c for c in CASES if c.name == "mixture-stacked").make(), (numbers(8, 3).double(),)),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def found(request):
    make, args = MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = exact(make())
    symmetries = find_symmetries(model, args)
    overlap = {"mixture": ["up #3"]}  # an expert is a unit too, and owns the hidden units in it
    names = [u.name for u in symmetries.units if u.kind in {"hidden", "channel", "head"}]
    return model, args, symmetries, overlap.get(request.param, names)


def owned(units, params, a, i):
    """Entries that write unit i of fiber a, and its gains."""
    return torch.cat([s.only(a, [i]).take(params[s.param]).flatten() for s in (*units.incoming, *units.gains)])


def test_pruned_units_are_exact_zeros_in_all_their_tensors_and_the_function_stays(found):
    model, args, symmetries, names = found
    before, keys = model(*args).detach(), set(model.state_dict())
    plain = {k: v.detach().clone() for k, v in model.named_parameters()}
    impose.prune_units(model, symmetries, 0.1, classes=names)
    assert torch.allclose(model(*args), before, rtol=0, atol=1e-12)
    chosen = [u for u in symmetries.units if u.name in names]
    norms = torch.cat([torch.stack([owned(u, plain, a, i).norm() for a, i in u]) for u in chosen])
    bar = float(norms.median())
    done = impose.collapse_(model, threshold=bar)
    params = {k: v.detach() for k, v in model.named_parameters()}
    members = [(u, a, i) for u in chosen for a, i in u]
    assert set(model.state_dict()) == keys
    assert {(t.dead, t.total) for t in done} == {(int((norms <= bar).sum()), len(norms))}
    for norm, (u, a, i) in zip(norms, members, strict=True):
        now = owned(u, params, a, i)
        assert torch.equal(now, torch.zeros_like(now)) if norm <= bar else now.norm() == pytest.approx(float(norm))
    for name, value in params.items():  # readers and everything else
        if all(s.param != name for u in chosen for s in (*u.incoming, *u.gains)):
            assert torch.equal(value, plain[name])


def test_the_penalty_is_the_sum_of_the_norms_of_the_units(found):
    model, _, symmetries, names = found
    plain = {k: v.detach().clone() for k, v in model.named_parameters()}
    chosen = [u for u in symmetries.units if u.name in names]
    total = sum(owned(u, plain, a, i).norm().item() for u in chosen for a, i in u)
    impose.prune_units(model, symmetries, 0.5, classes=names, spread=1e-9)
    assert impose.penalty(model).item() == pytest.approx(0.5 * total, rel=1e-12)


def test_scales_are_shared_kept_once_and_survive_copies(tmp_path):
    model = exact(ResNet())
    symmetries = find_symmetries(model, (IMAGES,))
    impose.prune_units(model, symmetries, 0.1)
    names = [n for n, _ in model.named_parameters() if "scales" in n]
    assert len(names) == 1
    assert [k for k in model.state_dict() if "scales" in k] == names
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    fresh = impose.prune_units(exact(ResNet()), symmetries, 0.1)
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(fresh(IMAGES), model(IMAGES))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        dict(twin.named_parameters())[names[0]].zero_()
    assert not torch.equal(twin(IMAGES), model(IMAGES))
    assert all(float(getattr(twin, m).weight.detach().abs().max()) == 0 for m in ("first", "up", "down"))
    scales = dict(model.named_parameters())[names[0]]
    swapped = torch.func.functional_call(model, {names[0]: torch.zeros_like(scales)}, (IMAGES,))
    assert torch.equal(swapped, twin(IMAGES))
    assert twin.float()(IMAGES.float()).dtype == torch.float32


def test_training_prunes_units_and_the_rest_lives():
    """Three of eight hidden units are enough for the target; a reader frozen at full rank keeps the problem convex."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(8))
    target = torch.zeros(8, 6, dtype=torch.float64)
    target[:3] = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target[3] = 0.05
    symmetries = find_symmetries(model, (torch.ones(1, 6).double(),))
    impose.prune_units(model, symmetries.units, 0.2)
    sgd = impose.optimizer(torch.optim.SGD, model[0], lr=0.1)
    for _ in range(1500):
        sgd.zero_grad()
        ((model[1].weight @ model[0].weight - target).square().sum() / 2).backward()
        sgd.step()
    expected = target * (1 - 0.2 / target.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_min(0)
    (done,) = impose.collapse_(model)
    assert (done.clear, done.dead) == (True, 5)
    assert torch.allclose(model[0].weight, expected, atol=1e-8)


def test_rank_is_the_nuclear_norm_of_the_product():
    model = exact(Bilinear())
    symmetries = find_symmetries(model, (numbers(8, 5).double(),))
    goal = torch.diag(torch.tensor([2.0, 0.3, 0, 0], dtype=torch.float64)).new_zeros(5, 4)
    goal[0, 0], goal[1, 1] = 2.0, 0.3
    impose.rank(model, symmetries, 0.5)
    sgd = impose.optimizer(torch.optim.SGD, model, lr=0.05)
    for _ in range(4000):
        sgd.zero_grad()
        ((model.A @ model.B - goal).square().sum() / 2).backward()
        sgd.step()
    product = (model.A @ model.B).detach()
    assert torch.allclose(torch.linalg.svdvals(product), torch.tensor([1.5, 0, 0, 0], dtype=torch.float64), atol=1e-7)
    balance = model.A.T @ model.A - model.B @ model.B.T
    assert float(balance.detach().abs().max()) < 1e-7  # a balanced gauge


@pytest.mark.parametrize("bias", [False, True])
def test_rank_of_heads_decays_the_factors_and_nothing_else(bias):
    """In a fused projection the queries and keys of one class are cut out of the tensor."""
    model = exact(Attention(bias=bias))
    symmetries = find_symmetries(model, (TOKENS,))
    before = model(TOKENS).detach()
    rotated = {s.units.name for s in symmetries if "GL(" in s.group}
    queries = next(u for u in symmetries.units if u.name in rotated and not u.outgoing)
    impose.rank(model, symmetries, 0.3, classes=[queries.name])
    assert torch.allclose(model(TOKENS), before, rtol=0, atol=1e-14)
    weight = model.qkv.weight.detach()
    squares = weight[:12].square().sum() + (model.qkv.bias[:12].square().sum() if bias else 0)
    assert impose.penalty(model).item() == pytest.approx(0.15 * squares.item(), rel=1e-12)
    with torch.no_grad():
        for _, p in impose.factors(model):
            p.zero_()
    assert torch.equal(model.qkv.weight[:12], torch.zeros(12, 6, dtype=torch.float64))
    assert torch.equal(model.qkv.weight[12:], weight[12:])
    assert {t.kind for t in impose.collapse_(model)} == {"none"}


def wider():
    """More units than the search has seen."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda m, s: impose.prune_units(m, s, 0.1, classes=["nobody"]), "'nobody'.*'0' .hidden."),
        (lambda m, s: impose.prune_units(m, s, -0.1), "strength"),
        (lambda m, s: impose.prune_units(m, s, 0.1, spread=-1.0), "spread"),
        (lambda m, s: impose.rank(m, s, 0.1), "no classes with a rotation symmetry"),
        (lambda m, s: impose.rank(m, s, 0.1, classes="0"), "names of classes"),
        (lambda m, s: impose.rank(m, s, -0.1, classes=["0"]), "got -0.1"),
        (lambda m, s: impose.prune_units(m, s, True), "strength must be a number.*got True"),
        (lambda m, s: impose.prune_units(m, s, 0.1, classes=["00"]), "Did you mean '0'"),
        (lambda m, s: impose.prune_units(wider(), s, 0.1), r"'0.weight' has shape \(8, 4\), and had \(6, 4\)"),
        (lambda m, s: impose.rank(wider(), s, 0.1, classes=["0"]), "symmetries of this model again"),
        (lambda m, s: impose.prune_units(nn.Sequential(nn.Linear(4, 3)), s, 0.1), "has shape"),
        (lambda m, s: impose.prune_units(nn.Linear(4, 3), s, 0.1), "no parameter '0.weight'"),
    ],
)
def test_bad_input_is_refused(verb, message):
    model, args = MODELS["mlp"][0]().double(), (X,)
    symmetries = find_symmetries(model, args)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ControlError, match=message):
        verb(model, symmetries)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals_leave_every_tensor_as_it_was():
    model = exact(Attention())
    symmetries = find_symmetries(model, (TOKENS,))
    names = [u.name for u in symmetries.units]
    with pytest.raises(ControlError, match="do not overlap"):
        impose.prune_units(model, symmetries, 0.1, classes=names)
    model.out.weight.requires_grad_(False)
    with pytest.raises(ControlError, match=r"'out.weight' is frozen"):
        impose.rank(model, symmetries, 0.1)
    tanh = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with pytest.raises(ControlError, match="neither a rotation nor a rescaling"):
        impose.rank(tanh, find_symmetries(tanh, (X,)), 0.1, classes=["0"])
    for m in (model, tanh):
        assert not any("parametrizations" in n for n, _ in m.named_parameters())


def test_units_of_another_model_without_shapes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    units = find_symmetries(MODELS["mlp"][0]().double(), (X,)).units
    with pytest.raises(ControlError, match="too small for the units"):
        impose.prune_units(model, units, 0.1)


def _tied(model):
    model.add_module("again", nn.Linear(4, 6))
    model.again.weight = model[0].weight


def _parametrised(model):
    impose.sparse(model, "0.weight", strength=0.1)


def _integers(model):
    frozen = model[0].weight.requires_grad_(False)
    model[0].weight = nn.Parameter(torch.zeros(frozen.shape, dtype=torch.int64), requires_grad=False)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda m: m[0].weight.requires_grad_(False), "'0.weight' is frozen"),
        (_tied, "'0.weight' is the same parameter as 'again.weight'"),
        (_parametrised, "'0.weight' is parametrised already"),
        (_integers, "'0.weight' has dtype torch.int64"),
        (lambda m: m.to("meta"), "'0.weight' is on the meta device"),
    ],
)
def test_what_has_no_factors_is_refused_and_stays(prepare, message):
    model = MODELS["mlp"][0]().double()
    symmetries = find_symmetries(model, (X,))
    prepare(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for verb in (impose.prune_units, lambda m, s, x: impose.rank(m, s, x, classes=["0"])):
        with pytest.raises(ControlError, match=message):
            verb(model, symmetries, 0.1)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(v.is_meta or torch.equal(v, before[k]) for k, v in after.items())
