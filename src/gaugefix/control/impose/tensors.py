"""One verb per constraint on one tensor: ``verb(module, "weight", strength=…)``.

The module is changed in place: its tensor becomes a function of factors, and what was one parameter becomes several.
The function that the module computes is the same until training starts. Give the factors their weight decay with
`gaugefix.control.impose.parameter_groups` or `gaugefix.control.impose.penalty`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gaugefix.control.impose.checks import check_finite, check_spread, check_strength, holder
from gaugefix.control.impose.factors import Factorised
from gaugefix.control.impose.maps import chain, check_map, group_labels
from gaugefix.control.impose.products import EntryFactors, GroupFactors, LinearFactors, RankFactors
from gaugefix.errors import ControlError


def sparse(module: nn.Module, tensor_name: str, *, strength: float, spread: float = 0.1) -> nn.Module:
    """Write a tensor as W = u ⊙ v: weight decay λ on u and v is the L1 penalty λ‖W‖₁ and gives exact zeros.

    The objective ``loss + strength·‖W‖₁`` has the same minimisers as ``loss + (strength/2)(‖u‖² + ‖v‖²)``; the product
    adds saddles, no spurious minima. A weight ends at zero if |∂loss/∂w| < strength there.

    ``strength`` is PyTorch's ``weight_decay`` of the factors. In scikit-learn's terms: `Lasso` minimises
    ‖y − Xw‖²/(2n) + α‖w‖₁, so with ``MSELoss``, twice its data term, α = strength/2; `LogisticRegression` with an L1
    penalty and the mean cross-entropy has C = 1/(n·strength).

    Args:
        module: holds the tensor, or contains the module that does (then the name is dotted).
        tensor_name: ``"weight"`` or a dotted name.
        strength: λ ≥ 0.
        spread: u² − v² at the start relative to the root mean square of W. Above zero, so that weights can change
            sign and zeros can grow: training from u = ±v exactly would keep every sign for ever.

    Returns:
        The same module.

    Raises:
        ControlError: if there is no such tensor, it cannot be factorised, or a number is out of range; the module is
            as before.

    Cost: one parameter more per entry, one elementwise product per forward pass.

    Source: arXiv 2210.01212.

    Example:
        >>> layer = sparse(nn.Linear(4, 3), "weight", strength=1e-3)
        >>> [name for name, _ in layer.named_parameters()]
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """  # noqa: DOC502
    return _register(module, tensor_name, EntryFactors(check_strength(strength), check_spread(spread)))


def group_sparse(
    module: nn.Module,
    tensor_name: str,
    *,
    strength: float,
    dim: int | Sequence[int] = 0,
    groups: Tensor | None = None,
    spread: float = 0.1,
) -> nn.Module:
    """Write each group of a tensor as a scalar times a vector, W_g = s_g·v_g: the penalty λ Σ_g ‖W_g‖₂.

    Whole groups (rows, channels, kernels) end at zero: those with ‖∂loss/∂W_g‖ < strength. There is no factor
    √(size of the group); put it into ``strength`` if the groups differ. ``strength`` is the weight decay of s and v,
    the ``alpha`` of skglm's `GroupLasso` if the data term is ‖y − Xw‖²/(2n), and 2·alpha with ``MSELoss``.

    Args:
        module: holds the tensor, or contains the module that does.
        tensor_name: ``"weight"`` or a dotted name.
        strength: λ ≥ 0.
        dim: a group for every position along this dimension: 0 for output units and channels, 1 for inputs,
            ``(0, 1)`` for the kernels of a convolution.
        groups: instead of ``dim``, labels 0, …, G − 1 for every entry, an integer tensor in the shape of W.
        spread: s² − ‖v‖² at the start relative to the root mean square of the norms.

    Returns:
        The same module.

    Raises:
        ControlError: if there is no such tensor, it cannot be factorised, or an argument is out of range; the module
            is as before.

    Cost: one parameter per group, one elementwise product per forward pass.

    Source: arXiv 2309.16932, group constraints.

    Example:
        >>> conv = group_sparse(nn.Conv2d(3, 8, 3), "weight", strength=1e-3)
        >>> tuple(conv.parametrizations.weight.original0.shape)
        (8, 1, 1, 1)
    """
    weight = _tensor(module, tensor_name)
    if groups is not None:
        if groups.shape != weight.shape:
            raise ControlError(f"groups must have the shape of the tensor, {tuple(weight.shape)}, got {groups.shape}.")
        labels = group_labels(groups.flatten(), weight.numel()).reshape(weight.shape).to(weight.device)
        kind = GroupFactors(check_strength(strength), check_spread(spread), labels=labels)
    else:
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        if not dims or any(not -weight.ndim <= d < weight.ndim for d in dims):
            raise ControlError(
                f"dim must be in [-{weight.ndim}, {weight.ndim}) for shape {tuple(weight.shape)}, got {dim!r}."
            )
        at = tuple(sorted({d % weight.ndim for d in dims}))
        kind = GroupFactors(check_strength(strength), check_spread(spread), dims=at)
    return _register(module, tensor_name, kind)


def low_rank(
    module: nn.Module, tensor_name: str, *, strength: float = 0.0, rank: int | None = None, spread: float = 0.1
) -> nn.Module:
    """Write a matrix as W = U Vᵀ: weight decay λ on U and V is the nuclear-norm penalty λ‖W‖_*, and rank W ≤ ``rank``.

    Singular values end at zero. A tensor with more than two dimensions is the matrix (first dimension, all others).
    ``strength`` is the weight decay of U and V; with the data term ‖Y − XW‖²/(2n) it is the usual coefficient of ‖W‖_*,
    with ``MSELoss`` mind its mean over outputs too.

    Args:
        module: holds the tensor, or contains the module that does.
        tensor_name: ``"weight"`` or a dotted name.
        strength: λ ≥ 0; at 0 only the rank is bounded.
        rank: columns of U and V. By default as many as the shape allows, and W does not change; a smaller number
            replaces W by its best approximation of that rank.
        spread: U_iᵀU_i − V_iᵀV_i at the start relative to the root mean square of the singular values.

    Returns:
        The same module.

    Raises:
        ControlError: if there is no such tensor, it has fewer than two dimensions or cannot be factorised, or a number
            is out of range; the module is as before.

    Cost: rank·(m + n) parameters in place of m·n, one matrix product per forward pass; one SVD at the start.

    Source: arXiv 2309.16932, low-rank constraint.

    Example:
        >>> layer = low_rank(nn.Linear(64, 32, bias=False), "weight", rank=4)
        >>> sum(p.numel() for p in layer.parameters()), int(torch.linalg.matrix_rank(layer.weight))
        (384, 4)
    """
    weight = _tensor(module, tensor_name)
    if weight.ndim < 2:
        raise ControlError(f"{tensor_name!r} has shape {tuple(weight.shape)}; a rank needs two dimensions or more.")
    largest = min(weight.flatten(1).shape)
    rank = largest if rank is None else rank
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
        raise ControlError(f"rank must be an integer in [1, {largest}] for shape {tuple(weight.shape)}, got {rank!r}.")
    return _register(
        module, tensor_name, RankFactors(check_strength(strength), check_spread(spread), weight.shape, rank)
    )


def tied(
    module: nn.Module,
    tensor_name: str,
    *,
    strength: float,
    units: Sequence[int] | Sequence[Sequence[int]] | None = None,
    dim: int = 0,
    entries: bool = False,
    spread: float = 0.1,
) -> nn.Module:
    """Pull units of a tensor together: the penalty λ Σ ‖W_a − W_b‖ over neighbours a, b in a list of units.

    Each difference is a factor pair δ = s·v (or u ⊙ v), and W_a, W_b = m ± δ/2; three units or more are a chain of
    differences, a fused lasso. Units whose differences are pulled apart by less than ``strength`` end equal.

    Args:
        module: holds the tensor, or contains the module that does.
        tensor_name: ``"weight"`` or a dotted name.
        strength: λ ≥ 0, the weight decay of the factors.
        units: positions along ``dim`` in the order of the chain, or several such lists; by default all of them.
        dim: the dimension along which the units are laid out.
        entries: tie entry by entry, λ‖W_a − W_b‖₁, instead of whole units, λ‖W_a − W_b‖₂.
        spread: s² − ‖v‖² at the start relative to the root mean square of the differences.

    Returns:
        The same module.

    Raises:
        ControlError: if there is no such tensor, it cannot be factorised, or an argument is out of range; the module
            is as before.

    Cost: one unit more per difference, three products with a matrix (differences × units) per forward pass.

    Source: arXiv 2309.16932, weight tying.

    Example:
        >>> layer = tied(nn.Linear(4, 6), "weight", units=[(0, 1), (3, 4, 5)], strength=1e-2)
        >>> tuple(layer.parametrizations.weight.original2.shape)  # one row per difference
        (3, 4)
    """
    weight = _tensor(module, tensor_name)
    if not -weight.ndim <= dim < weight.ndim:
        raise ControlError(
            f"dim must be in [-{weight.ndim}, {weight.ndim}) for shape {tuple(weight.shape)}, got {dim!r}."
        )
    matrix = chain(units, weight.shape[dim])
    labels = None if entries else np.arange(len(matrix))
    return _linear(module, tensor_name, weight, matrix, None, dim % weight.ndim, labels, strength, spread)


def constraint(
    module: nn.Module,
    tensor_name: str,
    A: Float[Tensor, "k n"] | Float[np.ndarray, "k n"],
    b: Float[Tensor, " k"] | Float[np.ndarray, " k"] | None = None,
    *,
    strength: float,
    dim: int | None = None,
    groups: Sequence[int] | None = None,
    spread: float = 0.1,
) -> nn.Module:
    """Pull a tensor onto the plane Aθ = b: the penalty λ‖Aθ − b‖₁, or λ Σ_g ‖(Aθ − b)_g‖₂ for groups of rows.

    θ = (w − A⁺(Aw − b)) + A⁺(u ⊙ v), so that Aθ − b = u ⊙ v; row i of the constraint is fulfilled exactly, not nearly,
    where |∂loss/∂(Aθ)_i| < strength. The weight decay belongs to u and v; w is an ordinary parameter.

    Args:
        module: holds the tensor, or contains the module that does.
        tensor_name: ``"weight"`` or a dotted name.
        A: full row rank. It acts on the flattened tensor (n = its number of entries), or along ``dim``.
        b: right-hand side, zero by default.
        strength: λ ≥ 0, the weight decay of the factors.
        dim: the dimension that A multiplies, n its length; the constraint then holds for every column.
        groups: a label 0, …, G − 1 for every row of A; the rows of a group are fulfilled together or not at all.
            By default every entry of Aθ is on its own.
        spread: u² − v² at the start relative to the root mean square of Aθ − b.

    Returns:
        The same module.

    Raises:
        ControlError: if there is no such tensor, it cannot be factorised, A is rank deficient or does not fit, or a
            number is out of range; the module is as before.

    Cost: k parameters more for each column, two products with A and one with A⁺ per forward pass; A and A⁺ are kept.

    Source: arXiv 2309.16932, differentiable constraint by symmetry; the explicit form is derived here.

    Example:
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> _ = constraint(layer, "weight", torch.ones(1, 3), torch.ones(1), strength=0.1)  # weights that sum to one
    """
    weight = _tensor(module, tensor_name)
    if dim is not None and not -weight.ndim <= dim < weight.ndim:
        raise ControlError(
            f"dim must be in [-{weight.ndim}, {weight.ndim}) for shape {tuple(weight.shape)}, got {dim!r}."
        )
    at = None if dim is None else dim % weight.ndim
    labels = None if groups is None else group_labels(torch.as_tensor(groups), len(A)).numpy()
    return _linear(module, tensor_name, weight, A, b, at, labels, strength, spread)


def _linear(
    module: nn.Module,
    tensor_name: str,
    weight: Tensor,
    matrix: Tensor | np.ndarray,
    target: Tensor | np.ndarray | None,
    dim: int | None,
    labels: np.ndarray | None,
    strength: float,
    spread: float,
) -> nn.Module:
    n = weight.numel() if dim is None else weight.shape[dim]
    a, inverse, b = check_map(matrix, target, n)
    kind = LinearFactors(
        check_strength(strength),
        check_spread(spread),
        *(torch.from_numpy(x).to(weight) for x in (a, inverse, b)),
        dim=dim,
        labels=None if labels is None else torch.from_numpy(labels).to(weight.device),
    )
    return _register(module, tensor_name, kind)


def _tensor(module: nn.Module, tensor_name: str) -> Tensor:
    inner, last = holder(module, tensor_name)
    tensor: Tensor = getattr(inner, last)
    return tensor


def _register(module: nn.Module, tensor_name: str, kind: Factorised) -> nn.Module:
    """Put a checked parametrisation on its tensor."""
    inner, last = holder(module, tensor_name)
    check_finite(tensor_name, getattr(inner, last))
    parametrize.register_parametrization(inner, last, kind.train(inner.training))
    return module
