"""What the trace of the gradient noise costs in gradients, by architecture, next to what the peers need for it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.harness import Row, compare, missing
from benchmarks.problems import (
    CLASSIFIER,
    convolutions,
    exact_task,
    full_gradient,
    in_float32,
    language_model,
    transformer_block,
)
from gaugefix import Task
from gaugefix.measure import gradient_noise, precision

REPEATS = 15
FEW = 5
SAMPLES = 128
PEERS = ("backpack", "opacus")
FIXED = "of it 0.2 for the copy of the model and 0.1 for norms of the mean, which do not grow with the samples"


def rows() -> list[Row]:
    """Ratios over one gradient of the same loss on the same data in the same precision."""
    problems = {
        "Linear layers": (exact_task(n=2048, batch_size=512), REPEATS),
        "convolutions": (convolutions(), FEW),
        "attention block": (transformer_block(), FEW),
        "language model of width 64": (language_model(64), FEW),
        "language model of width 256": (language_model(256), FEW),
    }
    with precision(torch.float32):
        single = [_row(f"{k}, in float32", in_float32(task), n, None) for k, (task, n) in problems.items()]
    return [
        *(_row(k, task, n, 1.2) for k, (task, n) in problems.items()),
        *single,
        *_side_by_side("784-256-256-10", exact_task(CLASSIFIER, n=SAMPLES, batch_size=SAMPLES), FIXED),
        *_side_by_side("convolutions", convolutions(SAMPLES)),
        *_side_by_side("attention block", transformer_block(SAMPLES)),
    ]


def _row(name: str, task: Task, repeats: int, target: float | None) -> Row:
    times = compare({"gradient": lambda: full_gradient(task), "noise": lambda: gradient_noise(task)}, repeats=repeats)
    method = gradient_noise(task).method
    return Row(f"trace of the gradient noise, {name}", times["noise"] / times["gradient"], "×", target, repeats, method)


def _side_by_side(name: str, task: Task, note: str = "") -> list[Row]:
    """One batch: the trace by ours and BackPACK, the gradients of all samples by whoever has them."""
    fails, methods = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for peer, make in _peers(task).items():
            try:
                make()()
                methods[peer] = make()
            except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
                fails.append(f"{peer} fails: {str(error).strip().partition(chr(10))[0][:90]}")
        ours = {"gradient": lambda: full_gradient(task), "trace, ours": lambda: gradient_noise(task)}
        times = compare({**ours, **methods}, repeats=FEW)
    unit, trace = times.pop("gradient"), gradient_noise(task).total.trace
    exact = _trace(task)
    values = f"trace {trace:.8g}, of the gradients of all samples {exact:.8g}"
    note = "; ".join(part for part in (values, note, *fails, missing(*PEERS)) if part)
    title = f"{SAMPLES} samples, {name}"
    return [
        Row(f"{title}: {what}", seconds / unit, "×", repeats=FEW, note=note if what == "trace, ours" else "")
        for what, seconds in times.items()
    ]


def _trace(task: Task) -> float:
    """Of the covariance of the gradients of single samples."""
    each = _all_gradients(task)()
    return sum(float(g.var(0, correction=0).sum()) for g in each.values())


def _all_gradients(task: Task) -> Callable[[], dict[str, Tensor]]:
    (batch,) = task.batches()
    params = {k: p.detach() for k, p in task.model.named_parameters()}

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(task.model, values, (x[None],)), y[None])

    return lambda: vmap(grad(one), (None, 0, 0))(params, *batch)


def _peers(task: Task) -> dict[str, Callable[[], Callable[[], object]]]:
    """For every peer that is there, a function that sets it up."""
    (batch,) = task.batches()
    found: dict[str, Callable[[], Callable[[], object]]] = {
        "gradients of all samples, torch.func": lambda: _all_gradients(task)
    }
    if not missing("backpack"):
        from backpack import backpack, extend, extensions

        def extended(extension: type, result: str) -> Callable[[], object]:
            model, loss = extend(copy.deepcopy(task.model)), extend(nn.CrossEntropyLoss())

            def run() -> list[Tensor]:
                model.zero_grad()
                with backpack(extension()):
                    loss(model(batch[0]), batch[1]).backward()
                return [getattr(p, result) for p in model.parameters()]

            return run

        found["trace, BackPACK 1.7 Variance"] = lambda: extended(extensions.Variance, "variance")
        found["gradients of all samples, BackPACK 1.7"] = lambda: extended(extensions.BatchGrad, "grad_batch")
    if not missing("opacus"):
        logging.getLogger("opacus").setLevel(logging.ERROR)
        from opacus.grad_sample import GradSampleModule

        def wrapped() -> Callable[[], object]:
            model = GradSampleModule(copy.deepcopy(task.model).train())

            def run() -> list[Tensor]:
                model.zero_grad()
                nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
                each = [p.grad_sample for p in model.parameters()]
                if any(g is None for g in each):
                    raise RuntimeError("no gradients of single samples for some parameters")
                return each

            return run

        found["gradients of all samples, Opacus 1.6"] = wrapped
    return found
