"""The search on transformers: billions of parameters on the meta device, cost against depth, beside two other tools.

Torch-Pruning (dependency graph of channels) and rebasin (permutations for weight matching) run with the interpreter
named by the environment variable GAUGEFIX_PEERS, each in a process of its own with a limit of time; without it their
rows are left out. What they count is not the same: they know permutations of channels only. The first export of a
process loads torch's compiler, about two seconds, which those models pay here whose library has not loaded it already.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import ROOT, Row

LIMIT = 45  # seconds for another tool on one small model
DEPTHS = (2, 4, 8, 16, 32, 64)
REPEATS = 3


def rows() -> list[Row]:
    """The two large configurations, the curve over depths with its exponent, then the side-by-side rows."""
    return [*_large(), *_curve(), *_beside()]


def _large() -> Iterator[Row]:
    for name, seconds, memory in (("llama-1b", 15, 1000), ("llama-8b", 30, None)):
        best = min((_run(sys.executable, "large", name, limit=300) for _ in range(REPEATS)), key=lambda r: r["seconds"])
        note = f"{best['parameters']:,} parameters, {best['directions']:,} flat directions, {best['opaque']} opaque"
        yield Row(f"{name}, structure on the meta device", best["seconds"], "s", seconds, REPEATS, note)
        yield Row(f"{name}, largest memory of the process", best["peak"], "MB", memory, REPEATS, "torch included")


def _curve() -> Iterator[Row]:
    points = []
    for depth in DEPTHS:
        best = min((_run(sys.executable, "depth", str(depth), limit=300) for _ in range(REPEATS)),
                   key=lambda r: r["search"])  # fmt: skip
        points.append(best)
        yield Row(f"Llama of {depth} layers: export", best["export"], "s", repeats=REPEATS, note=f"{best['ops']} nodes")
        yield Row(f"Llama of {depth} layers: search", best["search"], "s", repeats=REPEATS, note=f"{best['ops']} nodes")
    for what in ("export", "search"):
        note = f"slope of log seconds against log nodes, {DEPTHS[1]} to {DEPTHS[-1]} layers; 1 is linear"
        yield Row(f"exponent of the {what}", _slope(points[1:], what), "", 1.25 if what == "search" else None, 1, note)


def _slope(points: list[dict[str, Any]], what: str) -> float:
    x, y = ([math.log(p[k]) for p in points] for k in ("ops", what))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def _beside() -> Iterator[Row]:
    peers = os.environ.get("GAUGEFIX_PEERS")
    for name in MODELS:
        yield _side_row("gaugefix", name, _run(sys.executable, "gaugefix", name, limit=LIMIT))
        for tool in ("torch-pruning", "rebasin") if peers else ():
            yield _side_row(tool, name, _run(peers or "", tool, name, limit=LIMIT))


def _side_row(tool: str, name: str, result: dict[str, Any]) -> Row:
    return Row(f"{name}: {tool}", result["seconds"], "s", note=result["note"])


def _run(interpreter: str, *arguments: str, limit: float) -> dict[str, Any]:
    """One measurement in a process of its own; what it could not do becomes the note."""
    command = [interpreter, "-m", "benchmarks.discovery", *arguments]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"seconds": time.perf_counter() - start, "note": f"did not finish in {limit:g} s"}
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"seconds": time.perf_counter() - start, "note": f"failed: {reason[:160]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# What follows runs in the process of one measurement.


def _measure_large(name: str) -> dict[str, Any]:
    from gaugefix.hub import hub_model
    from gaugefix.symmetry import find_symmetries

    hub = hub_model(f"hf:{name}", meta=True)
    start = time.perf_counter()
    found = find_symmetries(hub.model, hub.example())
    return {
        "seconds": time.perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        "parameters": found.n_parameters,
        "directions": found.flat_dim,
        "opaque": len(found.opaque),
    }


def _measure_depth(depth: str) -> dict[str, Any]:
    from gaugefix.hub import ARCHITECTURES
    from gaugefix.symmetry.find import search
    from gaugefix.symmetry.graph import trace
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {**ARCHITECTURES["llama-8b"].options, "num_hidden_layers": int(depth)}
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**options))
        ids = torch.zeros(2, 8, dtype=torch.long)
    start = time.process_time()  # other work on the machine does not count
    graph = trace(model, (ids,))
    middle, nodes = time.process_time(), len(graph.ops)
    search(graph)
    return {"ops": nodes, "export": middle - start, "search": time.process_time() - middle}


def _measure_gaugefix(name: str) -> dict[str, Any]:
    from gaugefix.symmetry import find_symmetries

    model, example = MODELS[name]()
    start = time.perf_counter()
    found = find_symmetries(model, (example,), verify=False)
    seconds = time.perf_counter() - start
    kinds = {"S_": 0, "GL(": 0, "O(": 0, "R+": 0, "Z_2": 0, "T(": 0}
    for s in found:
        for kind in kinds:
            kinds[kind] += s.group.lstrip("(").startswith(kind)
    counts = ", ".join(f"{n} {kind.rstrip('(_')}" for kind, n in kinds.items() if n)
    return {"seconds": seconds, "note": f"{len(found)} groups ({counts}), {len(found.opaque)} opaque"}


def _measure_torch_pruning(name: str) -> dict[str, Any]:
    import torch_pruning  # type: ignore[import-not-found]
    from transformers.pytorch_utils import Conv1D

    model, example = MODELS[name]()
    start = time.perf_counter()
    graph = torch_pruning.DependencyGraph().build_dependency(
        model,
        example_inputs=example,
        output_transform=lambda out: (out.logits if hasattr(out, "logits") else out).sum(),
    )
    groups = list(graph.get_all_groups(root_module_types=[nn.Linear, nn.Conv2d, Conv1D]))
    return {"seconds": time.perf_counter() - start, "note": f"{len(groups)} groups of channels"}


def _measure_rebasin(name: str) -> dict[str, Any]:
    import rebasin  # type: ignore[import-not-found]

    model, example = MODELS[name]()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        descent = rebasin.PermutationCoordinateDescent(model, copy.deepcopy(model), example)
    found = descent.pinit.model_graph.permutation_to_info
    return {"seconds": time.perf_counter() - start, "note": f"{len(found)} permutations"}


_TOOLS: dict[str, Callable[[str], dict[str, Any]]] = {
    "large": _measure_large,
    "depth": _measure_depth,
    "gaugefix": _measure_gaugefix,
    "torch-pruning": _measure_torch_pruning,
    "rebasin": _measure_rebasin,
}


class _Gated(nn.Module):
    """x + down(silu(gate x) · up x)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class _LowRank(nn.Module):
    """x A B with raw parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(32, 8)), nn.Parameter(torch.randn(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.a @ self.b)


def _hub(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from gaugefix.hub import hub_model

        hub = hub_model(f"hf:{name}")
        return hub.model, hub.example()[0]

    return make


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "MLP": lambda: (
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
        torch.randn(2, 64),
    ),
    "gated MLP": lambda: (nn.Sequential(_Gated(), _Gated()), torch.randn(2, 32)),
    "x A B": lambda: (nn.Sequential(_LowRank(), nn.Linear(32, 4)), torch.randn(2, 32)),
    "ResNet": _hub("resnet"),
    "ViT": _hub("vit"),
    "BERT": _hub("bert"),
    "GPT-2": _hub("gpt2"),
    "Llama (GQA)": _hub("llama"),
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(_TOOLS[sys.argv[1]](sys.argv[2])))
