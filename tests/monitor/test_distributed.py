"""DDP and FSDP2 on two processes that talk over gloo give the numbers and events of one process."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.monitor.models import Attention, batches, found, seeded
from torch import distributed
from torch.nn import functional as F

from gaugefix import Monitor, Symmetries
from gaugefix.monitor import JsonlSink, read_log

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.long,
    pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork or spawn with gloo"),
]
STEPS, PROCESSES = 6, 2
KINDS = ("ddp", "fsdp")


@functools.cache
def symmetries() -> Symmetries:
    return found(model(), 3, 8)


def model() -> Attention:
    return cast(Attention, seeded(lambda: Attention(8, 2)).double())


def train(kind: str, log: Path, rank: int, count: int) -> Monitor:
    """Six steps of SGD with momentum, each process on its part of every batch."""
    net = model()
    if kind == "ddp":
        wrapped: torch.nn.Module = torch.nn.parallel.DistributedDataParallel(net)
    elif kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (count,))
        for layer in (net.qkv, net.out, net.head):
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(net, mesh=mesh)
    else:
        wrapped = net
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    monitor = Monitor(wrapped, symmetries(), optimizer=optimizer, every=2, dear=1, level="full", sinks=[JsonlSink(log)])
    for x, y in batches(STEPS, (8, 3, 8)):
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x.chunk(count)[rank]), y.chunk(count)[rank]).backward()
        monitor.step()
        optimizer.step()
    return monitor


def work(rank: int, folder: str) -> None:
    """One process; its rows go to files of its own."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", PROCESSES)  # no port to choose
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        for kind in KINDS:
            monitor = train(kind, Path(folder) / f"{kind}.jsonl", rank, PROCESSES)
            (Path(folder) / f"{kind}-{rank}.json").write_text(json.dumps([monitor.log.rows[-1][1], monitor.steps]))
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they are started once for all kinds."""
    folder = tmp_path_factory.mktemp("processes")
    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        patch.setattr(sys, "path", [root, *sys.path])
        torch.multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    train("one", folder / "one.jsonl", 0, 1)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_numbers_of_one(kind: str, folder: Path) -> None:
    alone, together = read_log(folder / "one.jsonl"), read_log(folder / f"{kind}.jsonl")
    assert len(together.rows) == len(alone.rows) == STEPS // 2  # the first process alone writes
    for (step, row), (wanted_step, wanted) in zip(together.rows, alone.rows, strict=True):
        assert step == wanted_step
        assert row.keys() == wanted.keys()
        assert row == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert any(key.endswith("law_error") for key in alone.latest())
    assert any(key.endswith("rank") for key in alone.latest())
    assert [e.kind for e in together.events] == [e.kind for e in alone.events]


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_has_the_numbers(kind: str, folder: Path) -> None:
    first, second = (json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(PROCESSES))
    assert first == second
    assert first[1] == STEPS
