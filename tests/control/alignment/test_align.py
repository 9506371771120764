"""A copy in other coordinates comes back exactly, through every group at once; the function never changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.cases import Case, numbers
from tests.control.zoo import SELECTED, ZOO, evaluate, relative, zoo_model, zoo_symmetries
from torch import Tensor, nn

from gaugefix import Symmetries, Task, train
from gaugefix.control import align
from gaugefix.control.alignment.matching import assign
from gaugefix.control.state import state_of, write_state
from gaugefix.control.statistics import with_statistics
from gaugefix.errors import ControlError

pytestmark = pytest.mark.long

#: einsum: two classes permute the same units, each within a row or a column of the other
#: mlp-linear: wider than the rank of its product, so that only rotations are matched
UNDONE = [p for p in ZOO if p.id not in {"einsum", "mlp-linear", "mlp-linear-nobias"}]


def scrambled(model: nn.Module, found: Symmetries, names: tuple[str, ...], seed: int = 1) -> nn.Module:
    """A copy with a random element of every named symmetry applied."""
    state, generator, out = state_of(model), torch.Generator().manual_seed(seed), copy.deepcopy(model)
    for s in found:
        if s.name in names:
            whole = with_statistics(s, model)
            state = whole.apply(state, whole.sample(generator))
    write_state(out, state)
    return out


@pytest.mark.parametrize("case", UNDONE)
def test_a_random_element_of_all_groups_is_undone(case: Case) -> None:
    model, args = zoo_model(case)
    found = zoo_symmetries(case.name)
    groups = align(model, model, found, starts=1, example_inputs=args).groups
    other = scrambled(model, found, groups)
    done = align(model, other, found, example_inputs=args)
    assert done.error < 1e-10
    assert done.distance[1] < 1e-9
    assert not groups or done.distance[0] > 0.1
    assert relative(evaluate(done.model, args), evaluate(other, args)) < 1e-10


def permuted_mlp(seed: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """MLP 64-128-128-10 and a copy with both hidden layers permuted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        b, x = copy.deepcopy(a), torch.randn(2, 64)
        with torch.no_grad():
            for into, out in ((b[0], b[2]), (b[2], b[4])):
                p = torch.randperm(128)
                into.weight.copy_(into.weight[p])
                into.bias.copy_(into.bias[p])
                out.weight.copy_(out.weight[:, p])
    return a, b, x


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_planted_permutations_of_an_mlp(method: str) -> None:
    for seed in range(2):
        a, b, x = permuted_mlp(seed)
        data = [numbers(512, 64)] if method == "activations" else None
        done = align(a, b, method=method, data=data, starts=1, example_inputs=x)  # type: ignore[arg-type]
        assert all(
            torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), done.model.parameters(), strict=True)
        )
        assert sum(done.moved.values()) > 200


def test_networks_trained_apart_come_closer_and_keep_their_functions() -> None:
    x = numbers(256, 6).double()
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)

    def trained(seed: int) -> Task:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2)).double()

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return (model(batch[0]) - batch[1]).square().sum(1)

        def batches() -> object:
            return zip(x.split(32), y.split(32), strict=True)

        task = Task(net, loss, batches, lr=0.1, weight_decay=1e-3, batch_size=32)  # type: ignore[arg-type]
        train(task, epochs=10)
        return task

    one, two = trained(0), trained(1)
    before = evaluate(two.model, (x,))
    for method in ("weights", "activations"):
        done = align(one, two.model, data=one, method=method)  # type: ignore[arg-type]
        assert done.distance[1] < done.distance[0]
        assert done.similarity[1] > done.similarity[0]
        assert relative(evaluate(done.model, (x,)), before) < 1e-12
        assert torch.equal(evaluate(two.model, (x,)), before)


def test_more_starts_are_never_worse() -> None:
    (a, args), (b, _) = zoo_model(SELECTED[0], 0), zoo_model(SELECTED[0], 5)
    few, many = (align(a, b, starts=n, example_inputs=args) for n in (1, 6))
    assert len(many.starts) == 6
    assert many.similarity[1] >= few.similarity[1] - 1e-12
    assert many.similarity[1] == max(many.starts)


def test_the_assignment_is_optimal() -> None:
    from itertools import permutations

    cost = numbers(3, 5, 5).double()
    order = assign(cost)
    for c, chosen in zip(cost, order, strict=True):
        best = min(float(sum(c[i, j] for i, j in enumerate(p))) for p in permutations(range(5)))
        assert float(c[torch.arange(5), chosen].sum()) == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be 'weights' or 'activations', got 'guess'"),
        ({"starts": 0}, "starts must be an integer >= 1, got 0"),
        ({"example_inputs": None}, "example_inputs are needed"),
        ({"data": [], "method": "activations"}, "data has no batch"),
        ({"model_b": nn.Linear(3, 2)}, r"'0\.weight' has shape \(5, 3\) in the first and None in the second"),
        ({"model_b": "b"}, r"model_b must be an nn\.Module, got str"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    make: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))  # noqa: E731
    given = {"model_a": make(), "model_b": make(), "example_inputs": numbers(4, 3), **options}
    with pytest.raises(ControlError, match=message):
        align(**given)  # type: ignore[arg-type]
