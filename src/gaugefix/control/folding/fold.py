"""fold: a collapsed model becomes a plain, smaller module with the same function."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gaugefix.control.folding.bench import Bench, in_precision, own_error
from gaugefix.control.folding.cost import forward_flops, forward_seconds, size_of
from gaugefix.control.folding.cut import Settings, cut_all
from gaugefix.control.folding.factor import factor_linears
from gaugefix.control.folding.plain import plain_copy
from gaugefix.control.folding.records import FoldResult, precision
from gaugefix.control.folding.refit import refit_model
from gaugefix.control.folding.reload import shape_changes
from gaugefix.control.state import as_args, check_model
from gaugefix.errors import ControlError
from gaugefix.symmetry import Symmetries
from gaugefix.task import Task

_EXACT = 1e-5


def fold(
    model: nn.Module | Task,
    symmetries: Symmetries | None = None,
    *,
    tolerance: float | None = None,
    max_error: float | None = None,
    refit: Task | Iterable[Any] | None = None,
    refit_steps: int = 100,
    factor: bool = True,
    multiple_of: int = 1,
    example_inputs: object = None,
) -> FoldResult:
    """Cut out what a model does not use and return a smaller one with the same function.

    Every class of interchangeable units that a search finds is looked at, whatever the architecture:

    - *dead* units, which nothing reads or whose value is always zero, go: neurons, channels, experts, heads;
    - *constant* units, which have no incoming weights but a bias, go, and their value is added to the next bias;
    - *copies*, equal up to a factor or a sign that the activation allows, become one whose outgoing weights are the
      sum;
    - *rank*: a linear class (queries with keys, values with outputs, a bottleneck, an adapter, a stream without
      normalisation) keeps the directions that its product has;
    - *stream* units that nothing writes go, also through residual connections and batch or root-mean-square
      normalisation (whose gains and ε are adapted);
    - a Linear layer of low rank becomes two, if that saves parameters.

    Parametrisations, weight norm and pruning masks are evaluated first. The result is built from the model's own
    modules with smaller tensors and right attributes. What a forward pass of one's own does with a width cannot be
    seen from outside, so every cut is built, run and compared; a class whose cut does not run, or does not give the
    same outputs on the example inputs and on random ones, stays, with the reason in `FoldResult.skipped`.

    Args:
        model: left as it is; or a task.
        symmetries: what `find_symmetries` gave for it, for the first pass; searched for if None.
        tolerance: what counts as zero, relative to the largest of its class: the size of a unit √(‖w‖‖u‖), the
            distance of two units, a singular value. 0 folds what is exactly idle (up to rounding). None takes the
            widest gap in the log sizes and log spectra (a factor of 10 at least, its lower end below 1 %).
        max_error: largest relative change ‖f' − f‖/‖f‖ of the outputs; default 1e-5 at ``tolerance=0`` (2e-2 and 2e-3
            for bfloat16 and float16), else the larger of 1e-2 and the tolerance. Cuts that would exceed it are left
            out.
        refit: batches of arguments (or a task) on which the folded model is fitted to the outputs of the original for
            a few steps.
        refit_steps: number of those steps.
        factor: whether Linear layers of low rank become two: fewer parameters, but one more operation.
        multiple_of: the number of units that stay in a class is rounded up to a multiple of this, for hardware that
            likes round numbers.
        example_inputs: a tensor or tuple of arguments; a task brings its own.

    Returns:
        The smaller model, what went, what did not and why, the error, and size, operations and time before and after.
        Cost: a search and a few forward passes in float64 for every round of cuts.

    Raises:
        ControlError: if inputs are missing, tolerances are out of range, parameters are not floating point, or the
            folded model would change the function by more than ``max_error``.

    Source: 2309.16932 (collapse leaves a smaller model), 2502.05300 (model reduction).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     net[2].weight[:, :3] = 0  # nothing reads three of the units
        >>> small = fold(net, tolerance=0, example_inputs=torch.randn(5, 4))
        >>> small.model[0].out_features, small.parameters, small.error < 1e-6
        (5, (58, 37), True)
    """
    module, args = as_args(model, example_inputs, "fold")
    check_model(module, symmetries, "fold")
    limit = _limit(module, tolerance, max_error)
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ControlError(f"fold: multiple_of must be an integer >= 1, got {multiple_of!r}.")
    plain = plain_copy(module).eval().requires_grad_(False)
    eps = precision(module)
    bench = Bench.of(plain, module, args, limit)
    settings = Settings(tolerance, eps, multiple_of)
    model64, removed, skipped = cut_all(bench, symmetries, settings)
    factored: list[str] = []
    left: dict[str, str] = {}
    if factor:
        model64, factored, left = factor_linears(model64, tolerance, eps, bench.judge)
    out = in_precision(model64, module)
    done = None
    if refit is not None:
        out, done = refit_model(out, plain, refit, steps=refit_steps)
    error = own_error(out, plain, [args, *bench.random_args[:1]])
    if error > limit:
        raise ControlError(
            f"fold: the folded model differs by {error:.1e}, more than max_error = {limit:.0e}. "
            "Lower the tolerance, or raise max_error and refit."
        )
    seconds = forward_seconds([plain, out.eval()], args)
    (p0, b0), (p1, b1) = size_of(plain), size_of(out)
    flops = (forward_flops(plain, args), forward_flops(out, args))
    return FoldResult(
        out.train(module.training), tuple(removed), tuple(factored), {**skipped, **left}, error, limit,
        (p0, p1), (b0, b1), flops, (seconds[0], seconds[1]), seconds[0] / seconds[1], done,
        shape_changes(plain, out),
    )  # fmt: skip


def _limit(model: nn.Module, tolerance: float | None, max_error: float | None) -> float:
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ControlError(
            f"fold: tolerance must be None or in [0, 1), got {tolerance!r}; 0 folds what is exactly idle."
        )
    if max_error is not None:
        if not 0 < max_error < math.inf:
            raise ControlError(f"fold: max_error must be a positive number, got {max_error!r}.")
        return max_error
    coarse = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
    exact = max((coarse.get(p.dtype, _EXACT) for p in model.parameters()), default=_EXACT)
    return exact if tolerance == 0 else max(1e-2, tolerance or 0.0, exact)
