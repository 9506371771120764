"""Unstructured sparsity on digits: factors with weight decay against the usual ways to prune, at equal numbers of "
"weights.

An MLP 64-128-128-10 with 25 856 weights; every method has 40 passes, is cut to 10, 5 or 2 % of the weights by global
magnitude and trained for 20 passes more with the cut weights held at zero (Adam, cosine). Nothing is tuned per cell:
one penalty for all L1 methods, one learning rate for SGD, one for Adam, as in the table that this one repeats. Five
seeds; the rows of losing cells stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.harness import Row
from gaugefix.control import impose

SEEDS = range(5)
KEEP = (0.1, 0.05, 0.02)
PENALTY = 3e-4
PASSES, REFIT, BATCH = 40, 20, 64
SGD_LR, MOMENTUM, ADAM_LR = 0.1, 0.9, 2e-3
RAMP = 0.5  # of the run until the full strength
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def rows() -> list[Row]:
    """Accuracy after the cut and the refit, in per cent: mean over the seeds, with one-shot accuracy and spread in "
    "the note."""
    data = _data()
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in SEEDS:
        for name, train in METHODS.items():
            model = train(data, seed)
            for keep in KEEP:
                pruned = copy.deepcopy(model)
                _cut(pruned, keep)
                before = _accuracy(pruned, data)
                _adam(pruned, data, REFIT, seed)
                found.setdefault((name, keep), []).append((before, _accuracy(pruned, data)))
    out = []
    for (name, keep), scores in found.items():
        before, after = np.array(scores).T
        stderr = after.std(ddof=1) / len(after) ** 0.5
        note = f"± {stderr:.2f} standard error; before the refit {before.mean():.1f}"
        out.append(Row(f"{name}, {keep:.0%} of the weights", float(after.mean()), "%", None, len(after), note))
    return out


def _data() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16.0, y, test_size=0.3, random_state=0, stratify=y)
    x_train, x_test = (torch.tensor(p, dtype=torch.float32) for p in parts[:2])
    return x_train, torch.tensor(parts[2]), x_test, torch.tensor(parts[3])


def _net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )  # fmt: skip


def _weights(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def _accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return 100 * float((model(data[2]).argmax(1) == data[3]).float().mean())


def _cut(model: nn.Module, keep: float) -> None:
    """Global magnitude: masks that stay during the refit."""
    linears = [(layer, "weight") for layer in _weights(model)]
    alive = sum(int((layer.weight != 0).sum()) for layer, _ in linears)
    total = sum(layer.weight.numel() for layer, _ in linears)
    prune.global_unstructured(linears, prune.L1Unstructured, amount=total - min(alive, round(keep * total)))


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    passes: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[], None] | None = None,
    clip: float | None = None,
) -> nn.Module:
    x, y, _, _ = data
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * (len(x) // BATCH))
    for _ in range(passes):
        order = torch.randperm(len(x), generator=generator)
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            if penalty is not None:
                loss = loss + penalty()
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            if after is not None:
                after()
    return model


Penalty = Callable[[], Tensor]


def _adam(model: nn.Module, data: Data, passes: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
    return _train(model, torch.optim.Adam(model.parameters(), lr=ADAM_LR), data, passes, seed, penalty)


def _sgd(model: nn.Module, data: Data, passes: int, seed: int, penalty: Penalty | None = None) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=SGD_LR, momentum=MOMENTUM)
    return _train(model, optimizer, data, passes, seed, penalty, clip=5.0)


def _l1(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: PENALTY * torch.stack([layer.weight.abs().sum() for layer in _weights(model)]).sum()


def _dense_adam(data: Data, seed: int) -> nn.Module:
    return _adam(_net(seed), data, PASSES, seed)


def _dense_sgd(data: Data, seed: int) -> nn.Module:
    return _sgd(_net(seed), data, PASSES, seed)


def _l1_adam(data: Data, seed: int) -> nn.Module:
    model = _net(seed)
    return _adam(model, data, PASSES, seed, _l1(model))


def _l1_sgd(data: Data, seed: int) -> nn.Module:
    model = _net(seed)
    return _sgd(model, data, PASSES, seed, _l1(model))


def _factors(kind: type[torch.optim.Optimizer], *, ramp: bool, **options: float) -> Callable[[Data, int], nn.Module]:
    """The same penalty as weight decay on factors, ramped or not; dense again, zeros where the gap says so."""

    def train(data: Data, seed: int) -> nn.Module:
        model = _net(seed)
        for layer in _weights(model):
            impose.sparse(layer, "weight", strength=PENALTY)
        optimizer = impose.optimizer(kind, model, **options)
        steps = PASSES * (len(data[0]) // BATCH)
        rise = impose.Ramp(optimizer, steps=round(RAMP * steps)) if ramp else None
        clip = 5.0 if kind is torch.optim.SGD else None
        _train(model, optimizer, data, PASSES, seed, after=rise.step if rise else None, clip=clip)
        impose.collapse_(model)
        return model

    return train


METHODS: dict[str, Callable[[Data, int], nn.Module]] = {
    "dense Adam": _dense_adam,
    "dense SGD": _dense_sgd,
    "L1 Adam": _l1_adam,
    "L1 SGD": _l1_sgd,
    "factors, SGD": _factors(torch.optim.SGD, ramp=False, lr=SGD_LR, momentum=MOMENTUM),
    "factors, SGD, ramp": _factors(torch.optim.SGD, ramp=True, lr=SGD_LR, momentum=MOMENTUM),
    "factors, Adam": _factors(torch.optim.Adam, ramp=False, lr=2 * ADAM_LR),
}
