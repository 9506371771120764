"""The problems on which networks are made smaller: data, networks, and one way to train that all methods share.

Digits come with scikit-learn. MNIST, CIFAR-10 (as JPEG files in one array, decoded with Pillow) and a text are read
from the folder of the environment variable GAUGEFIX_DATA; what is not there is left out. Only the first few thousand
images are used, so that all seeds of a table take minutes on one core: the figures compare methods, they are not what
the networks can do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from benchmarks.forecast_problems import shakespeare
from gaugefix.studies.cifar import decoded

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and targets for training, the same for the test
Hook = Callable[[], None]
CLIP, BATCH = 5.0, 64


def folder() -> Path:
    """Where data files are."""
    return Path(os.environ.get("GAUGEFIX_DATA", "."))


def digits(seed: int = 0) -> Data:
    """1257 digits of 8 × 8 pixels and 540 for the test; the seed is that of the split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16.0, y, test_size=0.3, random_state=seed, stratify=y)
    inputs, tests = (torch.tensor(p, dtype=torch.float32) for p in parts[:2])
    return inputs, torch.tensor(parts[2]), tests, torch.tensor(parts[3])


def mnist(n: int, tests: int) -> Data | None:
    """The first images of MNIST, flat."""
    path = folder() / "mnist.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        images = [data["x_train"][:n], data["x_test"][:tests]]
        labels = [data["y_train"][:n], data["y_test"][:tests]]
    return _standard([part.reshape(len(part), -1) for part in images], labels)


def cifar(n: int, tests: int) -> Data | None:
    """The first images of CIFAR-10, ``(n, 3, 32, 32)``."""
    path = folder() / "cifar10_jpeg.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        images = [decoded(data[f"jpeg_{part}"], data[f"offsets_{part}"], k) for part, k in _parts(n, tests)]
        labels = [data[f"y_{part}"][:k] for part, k in _parts(n, tests)]
    return _standard(images, labels)


def _parts(n: int, tests: int) -> Sequence[tuple[str, int]]:
    return ("train", n), ("test", tests)


def _standard(images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Data:
    """Zero mean, unit variance, for each channel."""
    x, x_test = (torch.from_numpy(part.astype(np.float32)) / 255 for part in images)
    over = (0, 2, 3) if x.ndim == 4 else (0, 1)
    mean, scale = x.mean(over, keepdim=True), x.std(over, keepdim=True)
    y, y_test = (torch.from_numpy(part.astype(np.int64)) for part in labels)
    return (x - mean) / scale, y, (x_test - mean) / scale, y_test


def text(n: int, tests: int, length: int = 32) -> Data | None:
    """Windows of Shakespeare, the test from the last tenth: symbols and the symbols that follow them."""
    ids = shakespeare()
    if ids is None:
        return None
    split = len(ids) - len(ids) // 10
    rng = np.random.default_rng(0)
    starts = rng.integers(0, split - length - 1, n), rng.integers(split, len(ids) - length - 1, tests)
    windows = [ids[torch.from_numpy(s)[:, None] + torch.arange(length + 1)] for s in starts]
    return windows[0][:, :-1], windows[0][:, 1:], windows[1][:, :-1], windows[1][:, 1:]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn() -> nn.Sequential:
    """Three strided convolutions and an output layer, 33 728 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip


class _Residual(nn.Module):
    """Two convolutions with batch normalisation and a shortcut, a convolution too where the shape changes."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        plain = into == out and stride == 1
        self.short = (
            nn.Identity() if plain else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.short(x))


def small_resnet() -> nn.Sequential:
    """ResNet with one block for each of the widths 16, 32, 64; the first convolution has stride 2."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), _Residual(16, 16, 1),
        _Residual(16, 32, 2), _Residual(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of classes or next symbols, mean."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    passes: int,
    seed: int,
    *,
    batch: int = BATCH,
    penalty: Callable[[], Tensor] | None = None,
    after: Hook | None = None,
    clip: float | None = None,
) -> None:
    """Cosine schedule, whole batches, a new order for every pass.

    Args:
        model: trained in place.
        optimizer: its learning rates are those at the start.
        data: the first half of it.
        passes: over the data.
        seed: of the order.
        batch: size.
        penalty: added to the cross-entropy.
        after: called after every step.
        clip: largest norm of the gradient.
    """
    x, y = data[:2]
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * (len(x) // batch))
    model.train()
    for _ in range(passes):
        order = torch.randperm(len(x), generator=generator)
        for chosen in order[: len(x) - len(x) % batch].split(batch):
            loss = cross_entropy(model(x[chosen]), y[chosen])
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
    model.eval()


@torch.no_grad()
def error_rate(model: nn.Module, data: Data) -> float:
    """Wrong answers in per cent."""
    x, y = data[2:]
    answers = torch.cat([model(part).argmax(-1) for part in x.split(500)])
    return 100 * float((answers != y).double().mean())


@torch.no_grad()
def perplexity(model: nn.Module, data: Data) -> float:
    """The exponential of the cross-entropy of a symbol."""
    x, y = data[2:]
    losses = [float(cross_entropy(model(a), b)) * len(a) for a, b in zip(x.split(200), y.split(200), strict=True)]
    return float(np.exp(sum(losses) / len(x)))


def weight_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers and convolutions."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def cut(model: nn.Module, keep: float) -> None:
    """Global magnitude: of all weights only a part stays, and masks hold the others at zero from now on."""
    tensors = [(layer, "weight") for layer in weight_layers(model)]
    masks = [getattr(layer, "weight_mask", torch.ones_like(layer.weight)) for layer, _ in tensors]
    left, total = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    prune.global_unstructured(tensors, prune.L1Unstructured, amount=left - min(left, round(keep * total)))


def standard_error(values: np.ndarray) -> float:
    """Of the mean over seeds."""
    return float(values.std(ddof=1) / len(values) ** 0.5)
