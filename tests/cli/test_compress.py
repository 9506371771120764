"""`gaugefix compress`: what it prints and writes, what it refuses, and that signals lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.cli.conftest import Run

import gaugefix

TASK_FILE = """
import time
import torch
from torch import nn
from gaugefix import Task

torch.set_num_threads(1)

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def slow(model, batch):
    time.sleep(0.01)
    return loss(model, batch)

def make(seed=0, loss=loss):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))

    def batches(seed=0):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        return ((x[rows], y[rows]) for rows in order.split(16))

    def metric(model):
        with torch.no_grad():
            return {"accuracy <b>": (model(x).argmax(1) == y).float().mean().item()}

    return Task(model, loss, batches, lr=0.1, weight_decay=1e-3, momentum=0.9, batch_size=16, epochs=5, metric=metric,
                name="mine <i>")

def make_slow(seed=0):
    return make(seed, slow)

def make_untrained():
    from dataclasses import replace
    return replace(make(), epochs=0)
"""
SLOW = ("compress", "my_task:make_slow", "--units", "0.02", "--epochs", "25", "--pretrain", "5", "--refit", "5")

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("folder")]


def test_a_table_the_weights_and_a_page(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--units", "0.02", "--epochs", "30", "--keep", "0.5", "--out", "small.safetensors", "--html", "p.html")
    assert run("compress", "my_task:make", *arguments) == 0
    shown = capsys.readouterr()
    assert "refitted" in shown.out
    assert "small.safetensors" in shown.out
    assert "Constrained" in shown.err  # the bars
    assert len(load_file(folder / "small.safetensors")["0.weight"]) < 24
    page = (folder / "p.html").read_text()
    assert "mine &lt;i&gt;" in page
    assert "accuracy &lt;b&gt;" in page
    assert "<script" not in page
    assert sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".html"}) == [
        "p.html", "small.safetensors",
    ]  # fmt: skip
    assert run("fold", "my_task:make", "--weights", "small.safetensors", "--tolerance", "0") == 0
    assert "error" in capsys.readouterr().out


def test_json_is_alone_on_standard_output(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--sparse", "0.01", "--epochs", "2", "--pretrain", "0", "--refit", "0", "--json", "-q")
    assert run("compress", "my_task:make", *arguments) == 0
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert data["method"] == "sparse"
    assert [s["name"] for s in data["stages"]] == ["before", "constrained", "cut", "folded"]
    assert "model" not in data
    assert shown.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got none of them"),
        (("--units", "0.1", "--rank", "0.1"), "got --units 0.1 and --rank 0.1"),
        (("--units", "-0.1"), "strength must be a number in [0, inf), got -0.1"),
        (("--sparse", "0.1", "--only", "0.wieght"), "Did you mean '0.weight'"),
        (("--units", "0.1", "--keep", "2"), "keep must be None or in (0, 1], got 2.0"),
        (("--units", "0.1", "--out", "/dev/null/x.safetensors"), "Cannot write"),
        (("--units", "0.1", "--html", "/dev/null/x.html"), "Cannot write"),
        (("--units", "0.1", "--weights", "missing.safetensors"), "--weights missing.safetensors: these are no weights"),
        (("--units", "0.1", "--checkpoint", "my_task.py"), "no checkpoint of a compression"),
    ],
)
def test_one_line_exit_code_2_and_nothing_written(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    if "--out" not in arguments:
        arguments = (*arguments, "--out", "small.safetensors")
    assert run("compress", "my_task:make", "--epochs", "1", *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_task_without_passes_asks_for_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "my_task:make_untrained", "--units", "0.1") == 2
    assert "epochs must be an integer >= 1, got 0. The task 'mine <i>' says 0." in capsys.readouterr().err


# Real signals


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command in a process that hears Ctrl-C, which one started in the background would not."""
    command = [sys.executable, "-m", "gaugefix", *SLOW, "--out", "small.safetensors", *arguments]
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(Path(gaugefix.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def stop(process: subprocess.Popen[bytes], checkpoint: Path, number: int, wait: float) -> tuple[bytes, bytes]:
    """Send a signal some time after the process has written a checkpoint of its own."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(number)
        return process.communicate(timeout=60)
    finally:
        process.kill()


def test_ctrl_c_loses_nothing(folder: Path, run: Run) -> None:
    """Interrupted, and gone on with in another process: the same bits."""
    checkpoint = folder / "small.checkpoint.safetensors"
    process = start(folder)
    out, err = stop(process, checkpoint, signal.SIGINT, 0.4)
    assert process.returncode == 130
    assert b"goes on from" in err
    assert b"Traceback" not in out + err
    assert not (folder / "small.safetensors").exists()
    assert run(*SLOW, "--out", "small.safetensors", "-q") == 0
    assert run(*SLOW, "--out", "whole.safetensors", "-q") == 0
    assert (folder / "small.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert not checkpoint.exists()


@pytest.mark.slow
def test_kill_loses_nothing(folder: Path, run: Run) -> None:
    """kill -9 again and again, with a checkpoint after every step so that it hits a write; in the end the same bits."""
    checkpoint = folder / "small.checkpoint.safetensors"
    for wait in (0.2, 0.31, 0.15):
        process = start(folder, "--every", "0")
        stop(process, checkpoint, signal.SIGKILL, wait)
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "small.safetensors").exists()
    assert run(*SLOW, "--out", "small.safetensors", "-q") == 0
    assert run(*SLOW, "--out", "whole.safetensors", "-q") == 0
    assert (folder / "small.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert list(folder.glob("*checkpoint*")) + list(folder.glob(".small*")) == []
