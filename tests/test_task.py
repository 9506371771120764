"""Tasks: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaugefix.builtin import BUILTIN
from gaugefix.errors import TaskError
from gaugefix.task import Task, load_task
from gaugefix.training import make_optimizer, train


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        yield torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def make_task(**changes: object) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    settings: dict[str, object] = {"lr": 0.1, "weight_decay": 1e-3, "batch_size": 8, "name": "toy"}
    fields: dict[str, object] = {"model": model, "loss": cross_entropy, "batches": batches}
    return Task(**{**fields, **settings, **changes})  # type: ignore[arg-type]


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": dict}, r"Task\.model must be a torch\.nn\.Module, got type"),
            ({"loss": "mse"}, r"Task\.loss must be callable, got str"),
            ({"batches": [1, 2]}, r"Task\.batches must be callable, got list.*fresh iterator"),
            ({"inputs": 3}, r"Task\.inputs must be callable, got int"),
            ({"lr": 0.0}, r"Task\.lr must be a number in \(0, inf\), got 0\.0"),
            ({"lr": float("nan")}, r"Task\.lr .* got nan"),
            ({"lr": "fast"}, r"Task\.lr .* got 'fast'"),
            ({"weight_decay": -1e-3}, r"Task\.weight_decay must be a number in \[0, inf\), got -0\.001"),
            ({"weight_decay": float("inf")}, r"Task\.weight_decay .* got inf"),
            ({"momentum": 1.0}, r"Task\.momentum must be a number in \[0, 1\), got 1\.0"),
            ({"batch_size": 0}, r"Task\.batch_size must be an integer >= 1, got 0"),
            ({"batch_size": 8.0}, r"Task\.batch_size must be an integer >= 1, got 8\.0"),
            ({"epochs": -1}, r"Task\.epochs must be an integer >= 0, got -1"),
            ({"optimizer": "lion"}, r"Task\.optimizer must be 'sgd', 'adam' or 'adamw', got 'lion'"),
        ],
    )
    def test_an_illegal_value_is_quoted_with_its_range(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(TaskError, match=message):
            make_task(**change)

    def test_settings_can_be_replaced_and_are_checked_again(self) -> None:
        assert replace(make_task(), weight_decay=0.5).weight_decay == 0.5
        with pytest.raises(TaskError, match="weight_decay"):
            replace(make_task(), weight_decay=-0.5)


class TestBatches:
    def test_one_seed_gives_one_order(self) -> None:
        task = make_task()
        first, again, other = (next(task.batch_iter(seed))[0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_batches_without_a_seed_are_fine(self) -> None:
        task = make_task(batches=lambda: batches())
        assert len(list(task.batch_iter(3))) == 3

    def test_no_batch_at_all(self) -> None:
        with pytest.raises(TaskError, match=r"Task 'toy': batches\(\) gave no batch.*fresh iterator"):
            make_task(batches=lambda: iter(())).check()

    def test_an_exhausted_generator(self) -> None:
        once = batches()
        task = make_task(batches=lambda: once)
        list(task.batch_iter())
        with pytest.raises(TaskError, match="exhausted generator"):
            task.first_batch()


class TestCheck:
    def test_a_good_task_gives_one_loss_per_sample(self) -> None:
        assert make_task().check().shape == (8,)

    def test_a_reduced_loss(self) -> None:
        with pytest.raises(TaskError, match=r"per sample and unreduced, shape \(8,\), got \(\).*reduction='none'"):
            make_task(loss=lambda model, batch: cross_entropy(model, batch).mean()).check()

    def test_a_loss_per_output(self) -> None:
        with pytest.raises(TaskError, match=r"shape \(8,\), got \(8, 3\)"):
            make_task(loss=lambda model, batch: model(batch[0]) ** 2).check()

    def test_a_loss_that_is_not_a_tensor(self) -> None:
        with pytest.raises(TaskError, match=r"must return a tensor.* \(n,\), got float"):
            make_task(loss=lambda model, batch: 0.5).check()

    def test_a_nan_loss_names_the_sample(self) -> None:
        def poisoned() -> Iterator[tuple[Tensor, Tensor]]:
            x, y = next(batches())
            x[3, 0] = float("nan")
            yield x, y

        with pytest.raises(TaskError, match=r"the loss of sample 3 is nan \(1 of 8 are not finite\)"):
            make_task(batches=poisoned).check()

    def test_the_model_is_left_as_it_was(self) -> None:
        task = make_task()
        task.model.train()
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        task.check()
        assert task.model.training
        assert all(p.grad is None for p in task.model.parameters())
        assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


class TestLoadTask:
    def test_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(TaskError, match=r"Unknown task 'digit-mlp'.*digits-mlp.*package\.module:factory"):
            load_task("digit-mlp")

    def test_missing_module(self) -> None:
        with pytest.raises(TaskError, match=r"cannot import module 'no_such_module_anywhere'.*folder that contains it"):
            load_task("no_such_module_anywhere:make")

    def test_missing_function_lists_what_is_there(self) -> None:
        with pytest.raises(TaskError, match=r"no function 'sqroot'\. It has: acos, "):
            load_task("cmath:sqroot")

    def test_factory_that_returns_something_else(self, user_module: str) -> None:
        with pytest.raises(TaskError, match=r"must return a gaugefix\.Task, got Linear"):
            load_task(f"{user_module}:make_module")

    def test_factory_gets_seed_and_folder_if_it_wants_them(self, user_module: str, tmp_path: Path) -> None:
        task = load_task(f"{user_module}:make_task", seed=7, data_dir=tmp_path)
        assert task.name == f"seed 7 in {tmp_path.name}"

    def test_factory_whose_task_is_broken(self, user_module: str) -> None:
        with pytest.raises(TaskError, match="per sample"):
            load_task(f"{user_module}:make_reduced")

    @pytest.fixture
    def user_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        (tmp_path / "users_own_task.py").write_text(
            "import torch\n"
            "from torch import nn\n"
            "from gaugefix import Task\n"
            "def loss(m, b): return m(b).square().sum(1)\n"
            "def settings(**k): return dict(lr=.1, weight_decay=0., batch_size=2, **k)\n"
            "def batches(): return iter([torch.ones(2, 3)])\n"
            "def make_module(): return nn.Linear(3, 2)\n"
            "def make_task(seed, data_dir):\n"
            "    return Task(nn.Linear(3, 2), loss, batches, **settings(name=f'seed {seed} in {data_dir.name}'))\n"
            "def make_reduced():\n"
            "    return Task(nn.Linear(3, 2), lambda m, b: loss(m, b).mean(), batches, **settings())\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        yield "users_own_task"
        sys.modules.pop("users_own_task", None)


class TestBuiltin:
    @pytest.mark.parametrize("name", ["digits-mlp", "digits-mlp-tanh"])
    def test_digits(self, name: str) -> None:
        task = load_task(name)
        assert task.name == name
        assert task.epochs > 0
        assert task.metric is not None
        assert set(task.metric(task.model)) == {"test accuracy"}

    def test_the_seed_changes_the_weights(self) -> None:
        one, same, two = (next(load_task("digits-mlp", seed=s).model.parameters()) for s in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, two)

    def test_the_global_generator_is_not_touched(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        list(load_task("digits-mlp", seed=3).batch_iter())
        assert torch.equal(torch.rand(3), expected)

    def test_mnist_missing(self, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match=r"mnist\.npz, which does not exist.*--data-dir.*GAUGEFIX_DATA"):
            load_task("mnist-mlp", data_dir=tmp_path)

    def test_mnist_with_arrays_missing(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mnist.npz", x_train=np.zeros((2, 28, 28), np.uint8))
        with pytest.raises(
            TaskError, match=r"lacks the arrays \['x_test', 'y_test', 'y_train'\]; it has \['x_train'\]"
        ):
            load_task("mnist-mlp", data_dir=tmp_path)

    def test_mnist_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (130, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, 130, dtype=np.uint8)
        np.savez(tmp_path / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
        monkeypatch.setenv("GAUGEFIX_DATA", str(tmp_path))
        assert load_task("mnist-mlp").check().shape == (128,)

    def test_digits_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(TaskError, match=r"needs scikit-learn: pip install 'gaugefix\[examples\]'"):
            BUILTIN["digits-mlp"](seed=0, data_dir=Path())


class TestTrain:
    def test_the_loss_falls_and_is_reported(self) -> None:
        seen: list[tuple[int, float]] = []
        history = train(make_task(lr=0.5), 20, callback=lambda k, loss: seen.append((k, loss)))
        assert history[-1] < history[0]
        assert seen == list(enumerate(history))

    def test_training_is_reproducible_and_leaves_no_gradient(self) -> None:
        tasks = [make_task(), make_task()]
        assert train(tasks[0], 3) == train(tasks[1], 3)
        assert all(p.grad is None for p in tasks[0].model.parameters())

    def test_the_mode_of_the_model_is_kept(self) -> None:
        task = make_task()
        task.model.eval()
        train(task, 1)
        assert not task.model.training

    def test_divergence_is_an_error_that_says_what_to_do(self) -> None:
        with pytest.raises(TaskError, match=r"training loss is (nan|inf) after pass \d+\. Lower the learning rate"):
            train(make_task(lr=1e20), 20)

    @pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
    def test_the_optimizer_has_the_settings_of_the_task(self, name: str, kind: str) -> None:
        optimizer = make_optimizer(make_task(optimizer=name, weight_decay=0.25))
        assert type(optimizer).__name__ == kind
        assert optimizer.param_groups[0]["weight_decay"] == 0.25
        assert optimizer.param_groups[0]["lr"] == 0.1
