"""find_symmetries: export, axes, charges, groups, gauges, verification, in one page."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

import gaugefix.symmetry.rules  # noqa: F401  (registers the rules)
from gaugefix.symmetry.assemble import assemble
from gaugefix.symmetry.cells import Cells
from gaugefix.symmetry.classes import Classes
from gaugefix.symmetry.graph import trace
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.patterns import recognise
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.verify import verify_symmetries

#: with verify="auto", larger models are not checked numerically
AUTO_VERIFY_PARAMETERS = 2_000_000


def find_symmetries(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    verify: bool | Literal["auto"] = "auto",
    seed: int = 0,
) -> Symmetries:
    """Find the groups that act on the parameters of a module and leave its function unchanged.

    The module is exported (weights are never read, so the meta device works), every operation is lowered to a few
    kinds of statements about axes, and the largest group that they allow is read off: permutations, sign flips,
    rescalings, general linear and orthogonal groups, shifts. Operations without a rule pin what they touch and are
    listed in `Symmetries.opaque`: the result may miss a symmetry there, it does not invent one.

    Normalisations count as they act in training: BatchNorm uses the statistics of the batch, and ε is neglected
    (the function changes by O(ε/variance)).

    Args:
        model: any exportable module. Left exactly as it was.
        args: example positional arguments; only their shapes matter. Use a batch of at least 2.
        kwargs: example keyword arguments.
        verify: apply random elements of every group to random parameters in float64 and compare outputs. "auto" does
            so for models of up to 2 million parameters that are not on the meta device. A claim that fails is dropped
            and listed in `Symmetries.rejected`.
        seed: seed of the verification.

    Returns:
        The symmetries.

    Cost: one export, then linear in the number of operations; verification: a few forward passes per symmetry.

    Source: 2309.16932 (root); the linear-algebraic charges follow 2308.06671 and 2402.07193.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> found = find_symmetries(mlp, (torch.randn(2, 4),))
        >>> [s.group for s in found], found.flat_dim, found.verified
        (['S_6', 'R+^6', 'S_5', 'R+^5'], 11, True)
    """
    graph = recognise(trace(model, args, kwargs))
    lower = Lowering(graph).run()
    classes = Classes(Cells(lower))
    found = assemble(classes)
    n_parameters = sum(p.numel() for p in model.parameters())
    on_meta = any(p.is_meta for p in model.parameters())
    if verify is True or (verify == "auto" and not on_meta and n_parameters <= AUTO_VERIFY_PARAMETERS):
        return verify_symmetries(found, model, args, kwargs or {}, seed=seed)
    return found
