"""Commands that change a model: what they print, what they write, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from tests.cli.conftest import Run
from torch import nn

TASK_FILE = """
import torch
from torch import nn
from gaugefix import Task

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def make(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 4, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0], model[2].weight[:, 0] = 0, 0, 0
    return Task(model, loss, lambda: [(x, y)], lr=0.1, weight_decay=1e-3, batch_size=32, epochs=1, name="mine")
"""

pytestmark = pytest.mark.usefixtures("folder")


def test_fold_prints_what_went_and_writes_the_weights(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fold", "my_task:make", "--tolerance", "0", "--out", "small.safetensors") == 0
    printed = capsys.readouterr().out
    assert "0: 6 -> 5 hidden (1 dead)" in printed
    assert "small.safetensors" in printed
    assert load_file(folder / "small.safetensors")["0.weight"].shape == (5, 4)


def test_fold_as_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "my_task:make", "--epochs", "0", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["removed"][0]["after"] == 5
    assert "model" not in data


def test_weights_are_read_from_a_file(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        net[2].weight[:, :4] = 0
    save_model(net, str(folder / "mine.safetensors"))
    assert run("fold", "my_task:make", "--weights", "mine.safetensors", "--tolerance", "0") == 0
    assert "6 -> 2 hidden" in capsys.readouterr().out
    save_model(nn.Linear(2, 2), str(folder / "other.safetensors"))
    assert run("fold", "my_task:make", "--weights", "other.safetensors") == 2
    assert "these are no weights for 'my_task:make'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("to", ["norm", "noise"])
def test_rebalance(folder: Path, to: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rebalance", "my_task:make", "--to", to, "--out", "balanced.safetensors") == 0
    assert "squared norm" in capsys.readouterr().out
    assert load_file(folder / "balanced.safetensors")["0.weight"].shape == (6, 4)
    assert run("rebalance", "my_task:make", "--json") == 0
    assert json.loads(capsys.readouterr().out)["converged"]


def test_align(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("align", "my_task:make", "my_task:make", "--epochs", "2")
    assert run(*arguments, "--out", "aligned.safetensors") == 0
    printed = capsys.readouterr().out
    assert "loss barrier" in printed
    assert (folder / "aligned.safetensors").is_file()
    assert run(*arguments, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["distance"][1] < data["distance"][0]
    assert len(data["barrier"]) == 2
