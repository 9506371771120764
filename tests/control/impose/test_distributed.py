"""Two processes train the constrained model that one trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix.control import impose
from gaugefix.symmetry import Slice, Units

pytestmark = pytest.mark.long


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    impose.sparse(model, "2.weight", strength=0.05)
    index = np.arange(7).reshape(1, -1, 1)
    slices = (Slice("0.weight", 0, index, "write"), Slice("0.bias", 0, index, "write"))
    return impose.prune_units(model, [Units("0", 7, 1, slices, "relu")], 0.05)


def train(model: nn.Module, inner: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    sgd = impose.optimizer(torch.optim.SGD, inner, lr=0.1, momentum=0.5)
    for _ in range(5):
        sgd.zero_grad()
        (model(x) - y).square().mean().backward()
        sgd.step()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(8, 5, generator=generator).double(), torch.randn(8, 3, generator=generator).double()


def worker(rank: int, port: str, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    inner = make_model()
    x, y = (part.chunk(2)[rank] for part in data())
    train(nn.parallel.DistributedDataParallel(inner), inner, x, y)
    torch.save(inner.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_train_the_model_that_one_trains(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    workers = [subprocess.Popen([sys.executable, __file__, str(r), port, str(tmp_path)]) for r in range(2)]
    assert [w.wait(timeout=120) for w in workers] == [0, 0]
    with torch.random.fork_rng(devices=[]):
        alone = make_model()
    start = {k: v.clone() for k, v in alone.state_dict().items()}
    train(alone, alone, *data())
    assert not torch.allclose(start["2.bias"], alone.state_dict()["2.bias"])
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.allclose(state[k], v, atol=1e-12) for k, v in alone.state_dict().items())


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
