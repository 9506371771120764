"""Layers on digits, trained until they rest, for `gaugefix.studies.ghosts_and_drives`."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from gaugefix.forecast import ClassForecast, forecast
from gaugefix.symmetry import find_symmetries
from gaugefix.task import Task


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Eight hundred digits, centred, and their classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x[:800] / 16.0)
    return inputs - inputs.mean(0), torch.tensor(y[:800])


def digits_task(model: nn.Module, weight_decay: float) -> Task:
    """Cross-entropy on all of them as one batch."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Task(model, loss, lambda: [digits()], lr=0.3, weight_decay=weight_decay, batch_size=800)


def objective(task: Task) -> Tensor:
    """The penalised loss."""
    penalty = torch.stack([p.square().sum() for p in task.model.parameters()]).sum()
    return task.loss(task.model, digits()).mean() + task.weight_decay / 2 * penalty


def minimise(task: Task, iterations: int) -> Task:
    """L-BFGS on the penalised loss, in place."""
    optimizer = torch.optim.LBFGS(
        task.model.parameters(), max_iter=iterations, max_eval=2 * iterations, tolerance_grad=1e-10,
        tolerance_change=0, history_size=30, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(task)
        value.backward()
        return value

    optimizer.step(closure)
    task.model.zero_grad(set_to_none=True)
    return task


def descend(task: Task, steps: int) -> Task:
    """Gradient descent with momentum in place, in single precision: unlike L-BFGS it leaves saddles."""
    x, y = digits()
    model = copy.deepcopy(task.model).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.95, weight_decay=task.weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.float()), y).backward()
        optimizer.step()
    task.model.load_state_dict(model.state_dict())
    return task


def hidden_layer(activation: type[nn.Module], seed: int) -> nn.Module:
    """64-32-10 in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32, bias=False), activation(), nn.Linear(32, 10)).double()


def forecast_classes(task: Task) -> tuple[ClassForecast, ...]:
    """The forecast of every class of units where the model is now."""
    return forecast(task, find_symmetries(task, verify=False), settle_steps=0).classes


class RowAttention(nn.Module):
    """Digits as eight tokens of eight pixels: one head, a residual around it, mean pooling."""

    def __init__(self, d: int = 16, e: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, d), nn.Linear(d, 10)
        self.position = nn.Parameter(torch.randn(8, d) / 4)
        self.q, self.k, self.v = (nn.Linear(d, e, bias=False) for _ in range(3))
        self.out, self.scale = nn.Linear(e, d, bias=False), e**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.embed(x.reshape(-1, 8, 8)) + self.position
        a = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) * self.scale, dim=-1)
        logits: Tensor = self.head((h + self.out(a @ self.v(h))).mean(1))
        return logits
