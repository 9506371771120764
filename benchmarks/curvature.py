"""What a Hessian-vector product costs in gradients, repeated at one point and fresh: ours and the peers'."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare, missing
from benchmarks.problems import CLASSIFIER, DEEP, convolutions, exact_task, full_gradient, in_float32
from gaugefix import Task
from gaugefix.measure import HessianOperator, hvp, precision

REPEATS = 15
PEERS = ("pyhessian", "curvlinops", "hessian_eigenthings")


def rows() -> list[Row]:
    """Ratios over one gradient of the same loss on the same data in the same precision."""
    deep = (
        "in a network of equal layers a product has 6 matrix products per layer where a gradient has 3, "
        "fresh 8 or 9, whatever the order of differentiation"
    )
    with precision(torch.float32):
        single = _ratios("convolutions, batch of 128, in float32", in_float32(convolutions(128)), (1.5, None))
    return [
        *_ratios("784-256-256-10", exact_task(CLASSIFIER), (1.5, 2.6)),
        *_ratios("7 layers of 256", exact_task(DEEP), (None, None), deep),
        *_ratios(
            "convolutions", convolutions(256), (None, None), "two layers of equal weight, the first without input"
        ),
        *single,
    ]


def _ratios(name: str, task: Task, targets: tuple[float | None, float | None], note: str = "") -> list[Row]:
    operator = HessianOperator(task)
    vector = {k: torch.randn_like(p) for k, p in operator.params.items()}
    methods: dict[str, Callable[[], object]] = {
        "gradient": lambda: full_gradient(task),
        "repeated at one point": lambda: operator @ vector,
        "fresh": lambda: hvp(task, vector),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = compare(methods | _peers(task, vector), repeats=REPEATS)
    unit = times.pop("gradient")
    limits = dict(zip(("repeated at one point", "fresh"), targets, strict=True))
    note = "; ".join(part for part in (note, missing(*PEERS)) if part)
    title = f"Hessian-vector product, {name}"
    return [
        Row(f"{title}, {what}", seconds / unit, "×", limits.get(what), REPEATS, note if what in limits else "")
        for what, seconds in times.items()
    ]


def _peers(task: Task, vector: Mapping[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Two backward passes by hand, and the operators of the libraries, on the one batch of the task."""
    model, (data,) = task.model, list(task.batches())
    loss, params, v = nn.CrossEntropyLoss(), list(model.parameters()), list(vector.values())

    def twice() -> object:
        gradient = torch.autograd.grad(loss(model(data[0]), data[1]), params, create_graph=True)
        return torch.autograd.grad(gradient, params, v)

    found: dict[str, Callable[[], object]] = {"fresh, two backward passes": twice}
    if not missing("pyhessian"):
        from pyhessian import hessian
        from pyhessian.utils import hessian_vector_product

        h = hessian(model, loss, data=data, cuda=False)  # it keeps the graph of its one batch
        found["repeated, PyHessian 0.1"] = lambda: hessian_vector_product(h.gradsH, h.params, v)
    if not missing("curvlinops"):
        from curvlinops import HessianLinearOperator

        linear = HessianLinearOperator(model, loss, params, [data], check_deterministic=False)
        found["fresh, curvlinops 3.0"] = lambda: linear @ v
    if not missing("hessian_eigenthings"):
        import hessian_eigenthings as he

        operator = he.HessianOperator(model, [data], he.supervised_loss(nn.functional.cross_entropy))
        flat = torch.cat([t.flatten() for t in v])
        found["fresh, hessian-eigenthings 1.0a5"] = lambda: operator.matvec(flat)
    return found
