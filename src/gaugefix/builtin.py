"""The built-in tasks: small, real, and ready on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gaugefix.errors import TaskError
from gaugefix.task import Task


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _mlp(widths: tuple[int, ...], activation: type[nn.Module], seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        return nn.Sequential(*layers[:-1])


def classification_task(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    batch_size: int,
    epochs: int,
    momentum: float = 0.0,
    seed: int = 0,
) -> Task:
    """A cross-entropy task on tensors in memory, shuffled anew at every pass.

    Args:
        model: maps inputs to logits.
        train: inputs ``(N, …)`` and integer labels ``(N,)``.
        test: the same, held out; gives the metric "test accuracy".
        name: for reports.
        lr: learning rate.
        weight_decay: PyTorch's λ.
        batch_size: samples per step.
        epochs: passes that an audit trains first.
        momentum: heavy-ball momentum.
        seed: seed of the data order, combined with the seed of the pass.

    Returns:
        The task.
    """
    x, y = train

    def batches(seed: int = 0, _base: int = seed) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1_000_003 * _base + seed))
        for chunk in order.split(batch_size):
            if len(chunk) == batch_size or len(x) < batch_size:
                yield x[chunk], y[chunk]

    def metric(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"test accuracy": (model(test[0]).argmax(1) == test[1]).float().mean().item()}

    return Task(
        model,
        _cross_entropy,
        batches,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=batch_size,
        momentum=momentum,
        name=name,
        epochs=epochs,
        metric=metric,
    )


# One hidden layer, so that its critical weight decay is sharp. The settings are such that the report has something to
# say: weight decay that merges half of the units at 92 % accuracy, batches large enough (lr / batch size = 4e-4) to
# come to rest, so that drives mean something.
def _digits(activation: type[nn.Module], name: str) -> Callable[..., Task]:
    def make(seed: int, data_dir: Path) -> Task:
        del data_dir  # the data comes with scikit-learn
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise TaskError(f"{name!r} needs scikit-learn: pip install 'gaugefix[examples]'.") from error
        x, y = load_digits(return_X_y=True)
        inputs = torch.tensor(x / 16.0, dtype=torch.float32)
        inputs -= inputs.mean(0)
        labels = torch.tensor(y)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        train, test = order[:1440], order[1440:]
        return classification_task(
            _mlp((64, 64, 10), activation, seed),
            (inputs[train], labels[train]),
            (inputs[test], labels[test]),
            name=name,
            lr=0.2,
            weight_decay=0.06,
            batch_size=480,
            epochs=4000,
            seed=seed,
        )

    make.__doc__ = f"The task {name!r}: digits 8x8, an MLP 64-64-10, SGD with weight decay."
    return make


def _mnist(seed: int, data_dir: Path) -> Task:
    """The task 'mnist-mlp': MNIST from ``mnist.npz``, a ReLU MLP 784-128-64-10."""
    path = data_dir / "mnist.npz"
    if not path.is_file():
        raise TaskError(
            f"'mnist-mlp' reads {path}, which does not exist. "
            "Give the folder of mnist.npz with --data-dir or the environment variable GAUGEFIX_DATA."
        )
    with np.load(path, allow_pickle=False) as data:
        missing = {"x_train", "y_train", "x_test", "y_test"} - set(data.files)
        if missing:
            raise TaskError(f"{path} lacks the arrays {sorted(missing)}; it has {sorted(data.files)}.")
        x, y, x_test, y_test = (data[k] for k in ("x_train", "y_train", "x_test", "y_test"))

    def prepare(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 255.0
        return (pixels - 0.1307) / 0.3081, torch.from_numpy(labels.astype(np.int64))

    return classification_task(
        _mlp((784, 128, 64, 10), nn.ReLU, seed),
        prepare(x, y),
        prepare(x_test, y_test),
        name="mnist-mlp",
        lr=0.1,
        weight_decay=1e-3,
        batch_size=128,
        epochs=10,
        seed=seed,
    )


#: name -> factory(seed=, data_dir=)
BUILTIN: dict[str, Callable[..., Task]] = {
    "digits-mlp": _digits(nn.ReLU, "digits-mlp"),
    "digits-mlp-tanh": _digits(nn.Tanh, "digits-mlp-tanh"),
    "mnist-mlp": _mnist,
}
