"""A model without the units that its symmetries have made superfluous."""

from __future__ import annotations

from torch import nn

from gaugefix.control.folding import FoldResult, fold
from gaugefix.symmetry import Symmetries
from gaugefix.task import Task


def reduce_model(
    model: nn.Module | Task,
    symmetries: Symmetries | None = None,
    *,
    tolerance: float = 0.0,
    max_error: float | None = None,
    example_inputs: object = None,
) -> FoldResult:
    """Merge copies and drop dead units: the model of the symmetry class that training has ended in.

    Where the weights are invariant under a group, training goes on as that of a smaller model whose weights are the
    invariant ones: r copies of a unit act as one unit times √r. This is `fold` for units alone, with what counts as
    equal given as a number.

    Args:
        model: left as it is; or a task.
        symmetries: what `find_symmetries` gave; searched for if None.
        tolerance: relative size and distance below which units are dead and equal; 0 merges exact copies.
        max_error: largest relative change of the outputs, as in `fold`.
        example_inputs: a tensor or tuple of arguments; a task brings its own.

    Returns:
        The smaller model, what went, and the error of its outputs.

    Raises:
        ControlError: as `fold`.

    Source: arXiv 2502.05300 (model reduction).

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> with torch.no_grad():
        ...     net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        >>> small = reduce_model(net, example_inputs=torch.randn(5, 3))
        >>> small.model[0].out_features, small.error < 1e-5
        (3, True)
    """  # noqa: DOC502
    return fold(
        model, symmetries, tolerance=tolerance, max_error=max_error, factor=False, example_inputs=example_inputs
    )
