"""The pipeline: what comes out is small, plain and honest; an interruption anywhere changes no bit of it."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.control import compress, fold, load_folded
from gaugefix.control.compression import checkpoint as store
from gaugefix.errors import ControlError, TaskError

pytestmark = pytest.mark.long

QUICK = {"epochs": 4, "pretrain": 2, "refit": 2}


class Block(nn.Module):
    """A convolutional block with a residual connection and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(6)
        self.up, self.down = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + self.down(torch.relu(self.norm(self.up(x))))
        return self.head(x.mean((2, 3)))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def problem(kind="mlp", optimizer="sgd", **settings):
    """Three classes in six dimensions, of which two matter; dropout, so that the global generator is drawn from."""
    g = torch.Generator().manual_seed(0)
    if kind == "conv":  # the brightness of an image
        y = torch.arange(96) % 3
        x = torch.randn(96, 1, 6, 6, generator=g) + y[:, None, None, None]
    else:
        x = torch.randn(96, 6, generator=g)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = (
            Block() if kind == "conv" else nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
        )

    def batches(seed=0):
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        return ((x[rows], y[rows]) for rows in order.split(32))

    def metric(model):
        with torch.no_grad():
            return {"accuracy": (model(x).argmax(1) == y).float().mean().item()}

    options = {"lr": 0.1 if optimizer == "sgd" else 0.01, "weight_decay": 1e-3, "momentum": 0.9, **settings}
    return Task(model, loss, batches, batch_size=32, optimizer=optimizer, metric=metric, epochs=3, **options)


def same(one, other):
    a, b = one.model.state_dict(), other.model.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert one.losses == other.losses
    assert one.stages == other.stages
    assert [vars(c) for c in one.collapsed] == [vars(c) for c in other.collapsed] or any(
        math.isnan(c.gap) for c in one.collapsed
    )


def plain(model):
    return all(
        "parametri" not in type(m).__module__ and "Parametrized" not in type(m).__name__ for m in model.modules()
    )


@pytest.mark.parametrize(
    ("method", "strength", "keep", "kind", "optimizer"),
    [
        ("units", 0.02, 0.5, "mlp", "sgd"),
        ("units", 0.02, 0.7, "conv", "adam"),
        ("rank", 0.05, 0.3, "mlp", "sgd"),
        ("sparse", 0.01, 0.2, "mlp", "adamw"),
        ("sparse", 0.01, 0.2, "conv", "sgd"),
    ],
)
def test_the_result_is_smaller_plain_and_loads_again(tmp_path, method, strength, keep, kind, optimizer):
    task = problem(kind, optimizer)
    before = copy.deepcopy(task.model.state_dict())
    state = torch.get_rng_state()
    done = compress(task, method, strength, epochs=60, pretrain=20, refit=40, keep=keep)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert [s.name for s in done.stages] == ["before", "constrained", "cut", "folded", "refitted"]
    assert done.nonzero[1] < 0.7 * done.nonzero[0]
    assert plain(done.model)
    assert done.stages[-1].metric["accuracy"] > 0.8
    assert done.fold_error < 1e-2
    if method == "sparse":  # zeros stay zero in the refit
        assert done.stages[4].nonzero <= done.stages[3].nonzero
        weights = [p for p in done.model.parameters() if p.ndim > 1]
        alive = sum(int((p != 0).sum()) for p in weights) / sum(c.total for c in done.collapsed)
        assert alive <= keep + 1e-3
    else:
        assert done.parameters[1] < done.parameters[0]
    again = load_folded(task.model, done.save(tmp_path / "small.safetensors")).eval()
    x = next(iter(task.batches()))[0]
    assert torch.equal(again(x), done.model(x))
    assert sum(p.numel() for p in again.parameters()) == done.parameters[1]
    data = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert data["stages"][0]["name"] == "before"
    assert str(done).splitlines()[1].startswith("before")


def test_pretraining_is_plain_training():
    from dataclasses import replace

    from gaugefix import train

    task = problem(momentum=0.0)
    task.model[2].p = 0.0  # the generators of the two differ
    twin = replace(task, model=copy.deepcopy(task.model))
    history = train(twin, epochs=3, seed=5)
    done = compress(task, "sparse", 0.01, epochs=1, pretrain=3, refit=0, seed=5)
    assert list(done.losses["dense"]) == pytest.approx(history, rel=1e-12)


def test_without_strength_nothing_dies_and_the_function_is_kept():
    task = problem()
    done = compress(task, "units", 0.0, epochs=1, refit=0)
    assert done.parameters[0] == done.parameters[1]
    assert done.stages[1].loss == pytest.approx(done.stages[3].loss, rel=1e-5)
    assert [s.name for s in done.stages][-1] == "folded"


def test_keep_leaves_products_to_the_gap_and_says_so():
    from dataclasses import replace

    deep = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3))
    done = compress(replace(problem(), model=deep), "rank", 0.01, epochs=2, pretrain=0, refit=0, keep=0.5)
    assert any("keep is about matrices alone" in note for note in done.notes)
    matrices = compress(problem(), "rank", 0.01, epochs=2, pretrain=0, refit=0, keep=0.5)
    assert not any("keep is about" in note for note in matrices.notes)


def test_a_run_that_is_too_short_says_so():
    done = compress(problem(), "units", 1e-4, epochs=2, refit=0)
    assert any("Train longer" in note for note in done.notes)
    assert "note: What dies needs about" in str(done)
    adamw = compress(problem(optimizer="adamw"), "sparse", 1e-3, epochs=1, refit=0)
    assert any("part of the loss" in note for note in adamw.notes)


class Crash(Exception):
    """As a kill: nothing of the program runs any more."""


def crashing(task, at):
    """The task, whose loss fails at the given evaluation."""
    from dataclasses import replace

    count = iter(range(10_000))

    def fails(model, batch):
        if next(count) == at:
            raise Crash
        return loss(model, batch)

    return replace(task, loss=fails)


@pytest.mark.parametrize(("method", "optimizer"), [("units", "sgd"), ("rank", "adam"), ("sparse", "adamw")])
def test_wherever_a_run_is_killed_it_ends_in_the_same_bits(tmp_path, method, optimizer):
    """8 passes of 3 steps, and 5 evaluations of 3 batches: kill it here and there in them."""
    task = problem(optimizer=optimizer)
    whole = compress(task, method, 0.02, keep=0.5, **QUICK)
    torch.manual_seed(99)  # another state of the global generators, as in another process
    for at in (1, 8, 11, 21, 27, 34, 37):
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(Crash):
            compress(
                crashing(task, at), method, 0.02, keep=0.5, checkpoint=path,
                checkpoint_seconds=0 if at % 2 else 1e9, **QUICK
            )  # fmt: skip
        torch.rand(at)
        same(compress(task, method, 0.02, keep=0.5, checkpoint=path, **QUICK), whole)
    same(compress(crashing(task, 3), method, 0.02, keep=0.5, checkpoint=path, **QUICK), whole)  # complete: at once


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 3), (signal.SIGTERM, 17), (signal.SIGINT, 31)])
def test_a_signal_lets_the_step_end_and_writes_a_checkpoint(tmp_path, number, at):
    """Without waiting for the next one to be due; afterwards the handlers are as they were."""
    from dataclasses import replace

    task, path = problem(), tmp_path / "run.safetensors"
    whole = compress(task, "units", 0.02, keep=0.5, **QUICK)
    count, steps = iter(range(1000)), []

    def heard(model, batch):
        if next(count) == at:
            os.kill(os.getpid(), number)
        steps.append(0)
        return loss(model, batch)

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        compress(replace(task, loss=heard), "units", 0.02, keep=0.5, checkpoint=path, checkpoint_seconds=1e9, **QUICK)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    done = len(steps)
    assert done == at + 1
    steps.clear()
    count = iter(range(1000))
    at = -1
    same(compress(replace(task, loss=heard), "units", 0.02, keep=0.5, checkpoint=path, **QUICK), whole)
    assert done + len(steps) == 24 + 15  # 8 passes of 3 steps and 5 evaluations of 3: no step was taken twice


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """Killed while it writes: the older checkpoint is still there, and nothing else."""
    task, path = problem(), tmp_path / "run.safetensors"
    whole = compress(task, "units", 0.02, **QUICK)
    real, count = store.write_atomically, iter(range(1000))

    def torn(target, content):
        if next(count) == 7:
            (target.parent / f".{target.name}.abc").write_bytes(content[: len(content) // 2])
            raise Crash
        return real(target, content)

    monkeypatch.setattr(store, "write_atomically", torn)
    with pytest.raises(Crash):
        compress(task, "units", 0.02, checkpoint=path, checkpoint_seconds=0, **QUICK)
    same(compress(task, "units", 0.02, checkpoint=path, **QUICK), whole)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_generators_are_saved_and_put_back(tmp_path):
    tensors = {}
    before = store.generators()
    packed = json.loads(json.dumps(store.pack(tensors, "g", before)))
    drawn = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    store.set_generators(store.unpack(tensors, packed))
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.rand(), random.random()) == drawn[1:]  # noqa: NPY002
    with store.own_generators(3):
        torch.rand(5)
    again = store.generators()
    store.set_generators(before)
    assert torch.equal(again["torch"], before["torch"]) is False  # the draws above moved it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.03}, "strength is 0.02 there and 0.03 here"),
        ({"epochs": 5}, "epochs is 4 there and 5 here"),
        ({"method": "rank"}, "method is 'units' there"),
        ({"seed": 1}, "seed is 0 there"),
        ({"run": "other"}, "task is 'task' there and 'other' here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, change, message):
    path = tmp_path / "run.safetensors"
    compress(problem(), "units", 0.02, checkpoint=path, **QUICK)
    content = path.read_bytes()
    settings = {"method": "units", "strength": 0.02, **QUICK, **change}
    with pytest.raises(ControlError, match=message):
        compress(problem(), checkpoint=path, **settings)
    assert path.read_bytes() == content
    assert compress(problem(), checkpoint=path, restart=True, **settings)


def test_what_is_no_checkpoint_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a checkpoint")
    with pytest.raises(ControlError, match="no checkpoint"):
        compress(problem(), "units", 0.02, checkpoint=path, **QUICK)
    assert path.read_text() == "not a checkpoint"
    other = problem("conv")
    path = tmp_path / "run.safetensors"
    compress(problem(), "units", 0.02, checkpoint=path, **QUICK)
    with pytest.raises(ControlError, match="another model"):
        compress(other, "units", 0.02, checkpoint=path, **QUICK)


def _shared(model):
    model.append(nn.Linear(16, 3))
    model[4].weight = model[3].weight
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "prune"}, "method must be one of units, rank, sparse, got 'prune'"),
        ({"strength": -1.0}, r"strength must be a number in \[0, inf\), got -1.0"),
        ({"strength": math.nan}, "got nan"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"pretrain": -1}, "pretrain must be an integer >= 0, got -1"),
        ({"refit": 1.5}, "refit must be an integer >= 0, got 1.5"),
        ({"keep": 0.0}, r"keep must be None or in \(0, 1\], got 0.0"),
        ({"tolerance": 1.0}, r"tolerance must be None or in \[0, 1\), got 1.0"),
        ({"factor_lr": 0.0}, "factor_lr must be a number in"),
        ({"only": ["0.weight"]}, r"nothing is called '0.weight'. There are '0'."),
        ({"only": []}, "only must be a list of names"),
        ({"method": "sparse", "only": ["0.wieght"]}, r"Did you mean '0.weight', '3.weight'\?"),
        ({"method": "sparse", "only": ["nobody"]}, "There are '0.weight', '3.weight'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    task = problem()
    before = copy.deepcopy(task.model.state_dict())
    with pytest.raises(ControlError, match=message):
        compress(task, **{"method": "units", "strength": 0.1, "checkpoint": tmp_path / "c", "epochs": 1, **arguments})
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def _frozen(model):
    return model.requires_grad_(False)


def _integers(model):
    model.register_parameter("table", nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False))
    return model


@pytest.mark.parametrize(
    ("prepare", "method", "message"),
    [
        (_frozen, "units", "'0.weight' is frozen"),
        (_frozen, "sparse", "'0.weight' is frozen"),
        (_integers, "sparse", "'table' has dtype torch.int64"),
        (lambda m: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), "units", "no hidden units, channels or heads"),
    ],
)
def test_models_that_cannot_be_constrained_are_refused(prepare, method, message):
    from dataclasses import replace

    task = problem()
    with pytest.raises(ControlError, match=message):
        compress(replace(task, model=prepare(task.model)), method, 0.1, epochs=1)


def test_a_model_with_something_frozen_is_compressed_as_far_as_it_goes():
    task = problem()
    task.model[3].weight.requires_grad_(False)
    done = compress(task, "sparse", 0.01, epochs=1, refit=0)
    assert done.constrained == ("0.weight",)
    assert "frozen" in done.left["3.weight"]
    with pytest.raises(ControlError, match=r"'3.weight' is frozen"):
        compress(task, "sparse", 0.01, epochs=1, only=["3.weight"])


def test_no_task_and_no_finite_loss():
    with pytest.raises(ControlError, match=r"gaugefix.Task is needed.*got Linear"):
        compress(nn.Linear(2, 2), "units", 0.1)
    with pytest.raises(TaskError, match=r"loss is (nan|inf) after pass \d+ of dense"):
        compress(problem(lr=1e18, momentum=0.0), "units", 0.1, epochs=1, pretrain=30)


def test_a_folded_file_of_another_model_is_refused(tmp_path):
    task = problem()
    small = fold(task, tolerance=0)
    path = small.save(tmp_path / "small.safetensors")
    with pytest.raises(ControlError, match="belongs to another model"):
        load_folded(nn.Sequential(nn.Linear(6, 16)), path)
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(ControlError, match="cannot be read as safetensors"):
        load_folded(task.model, tmp_path / "x.pt")
    with pytest.raises(ControlError, match="cannot be read"):
        load_folded(task.model, tmp_path / "missing.safetensors")
    from safetensors.torch import save_model

    save_model(task.model, str(tmp_path / "plain.safetensors"))
    with pytest.raises(ControlError, match="not those of a folded model"):
        load_folded(task.model, tmp_path / "plain.safetensors")
