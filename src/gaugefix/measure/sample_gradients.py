"""Gradients of single samples in the forms that a backward pass leaves them in, and their norms without forming them.

A weight matrix gets Σ_t l_t r_tᵀ from the positions t of a sample (`Outer`): output gradients times inputs for a linear
or convolutional layer, one-hot rows times output gradients for an embedding. A bias, a gain or a raw parameter that is
added or multiplied gets a sum over positions of its own size (`Formed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: largest block of formed gradients, in numbers: small enough to stay in the cache of a processor
_BLOCK = 1 << 18
#: what one number of a formed gradient costs, in multiplications and additions of a matrix product
_MEMORY_COST = 22


@dataclass(frozen=True, eq=False)
class Formed:
    """Gradients that are there as they are.

    Attributes:
        rows: ``(n, entries)``.
    """

    rows: Tensor


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients Σ_t l_t r_tᵀ.

    Attributes:
        left: ``(n, groups, positions, a)``, or ``(n, 1, positions)`` integers for one-hot rows, negative for no row.
        right: ``(n, groups, positions, b)``.
        size: a.
    """

    left: Tensor
    right: Tensor
    size: int

    @property
    def one_hot(self) -> bool:
        """Whether the left rows are one-hot."""
        return self.left.ndim == 3


Piece = Formed | Outer


class RowNorms:
    """Norms of rows, each taken once: what leaves a layer belongs to its weight and to its bias."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # the rows are kept: their address names them

    def __call__(self, rows: Tensor) -> Tensor:
        """Norm along the last dimension, in one pass over memory.

        Args:
            rows: ``(..., entries)``.

        Returns:
            ``(rows,)``, all leading dimensions in one.
        """
        if not rows.is_contiguous():
            return _norms(rows)
        key = (rows.data_ptr(), rows.numel(), rows.shape[-1])
        if key not in self._known:
            self._known[key] = rows, _norms(rows)
        return self._known[key][1]


class Sum:
    """Sum over the samples of the gradients it is called with, for `squares` to visit."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        """Add some samples.

        Args:
            rows: ``(samples, entries)``; not kept.
        """
        if self._value is None:
            self._value = rows.sum(0)
        else:
            self._value.addmv_(rows.mT, rows.new_ones(len(rows)))

    @property
    def value(self) -> Tensor:
        """``(entries,)``."""
        assert self._value is not None
        return self._value


def forming_pays(positions: int, left: int, right: int) -> bool:
    """Whether forming Σ_t l_t r_tᵀ for every sample is cheaper than the Gram matrices of l and r.

    Args:
        positions: T per sample.
        left: entries of l.
        right: entries of r.

    Returns:
        True if so; the formed gradients also give their own sum, which a backward pass need not compute then.
    """
    return positions > 1 and 2 * positions**2 * (left + right) > _MEMORY_COST * left * right


def squares(
    pieces: Sequence[Piece], visit: Callable[[Tensor], None] | None = None, norms: RowNorms | None = None
) -> Tensor:
    """Squared norms of the gradients of a parameter that the pieces add up to.

    Args:
        pieces: one for every use of the parameter, all `Formed` or all `Outer`.
        visit: is given the formed gradients, ``(samples, entries)`` at a time; it must not keep them. Without it they
            are formed only where that is cheaper.
        norms: what is known of rows that these pieces share with others.

    Returns:
        ``(n,)``.

    Raises:
        TypeError: if the pieces are of both kinds.
    """
    norms = RowNorms() if norms is None else norms
    formed = [p.rows for p in pieces if isinstance(p, Formed)]
    outer = [p for p in pieces if isinstance(p, Outer)]
    if formed and outer:
        raise TypeError("formed and outer gradients of one parameter")
    if formed:
        rows = torch.stack(formed).sum(0) if len(formed) > 1 else formed[0]
        if visit is not None:
            visit(rows)
        return norms(rows).square()
    positions = sum(p.right.shape[2] for p in outer)
    if visit is None and (
        any(p.one_hot for p in outer) or not forming_pays(positions, outer[0].size, outer[0].right.shape[3])
    ):
        return _gram_squares(outer, norms)
    found = []
    for rows in _form(outer):
        if visit is not None:
            visit(rows)
        found.append(_norms(rows).square())
    return torch.cat(found)


def diagonal(pieces: Sequence[Piece]) -> Tensor:
    """Sum over the samples of the squared entries of their gradients.

    Args:
        pieces: as in `squares`.

    Returns:
        ``(entries,)``.
    """
    if len(pieces) == 1 and isinstance(piece := pieces[0], Outer):
        if not piece.one_hot and piece.right.shape[2] == 1:
            left, right = (t.squeeze(2).square().transpose(0, 1) for t in (piece.left, piece.right))
            return (left.mT @ right).reshape(-1)
        if piece.one_hot:
            return _one_hot_diagonal(piece)
    total: list[Tensor] = []

    def add(rows: Tensor) -> None:
        total[:] = [rows.square().sum(0) + (total[0] if total else 0)]

    squares(pieces, add)
    return total[0]


def _gram_squares(pieces: Sequence[Outer], norms: RowNorms) -> Tensor:
    """Σ over pairs of positions of ⟨l_t, l_s⟩⟨r_t, r_s⟩."""
    if len(pieces) > 1 and not any(p.one_hot for p in pieces):
        left, right = (torch.cat([getattr(p, side) for p in pieces], dim=2) for side in ("left", "right"))
        pieces = [Outer(left, right, pieces[0].size)]
    if len(pieces) == 1 and not pieces[0].one_hot and pieces[0].right.shape[2] == 1:
        each = (norms(pieces[0].left) * norms(pieces[0].right)).square()
        groups = pieces[0].right.shape[1]
        return each if groups == 1 else each.unflatten(0, (-1, groups)).sum(1)
    total = pieces[0].right.new_zeros(len(pieces[0].right))
    for i, a in enumerate(pieces):
        for b in pieces[i:]:
            part = _left_gram(a, b).mul_(a.right @ b.right.mT).flatten(1).sum(1)
            total += part if a is b else 2 * part
    return total


def _left_gram(a: Outer, b: Outer) -> Tensor:
    """``(n, groups, positions of a, positions of b)``."""
    if a.one_hot and b.one_hot:
        return ((a.left[..., :, None] == b.left[..., None, :]) & (a.left[..., :, None] >= 0)).to(a.right.dtype)
    if b.one_hot:
        return _left_gram(b, a).mT
    if not a.one_hot:
        return a.left @ b.left.mT
    index = a.left.clamp(min=0)[:, :, None, :].expand(*b.left.shape[:3], a.left.shape[2])
    return (b.left.gather(3, index) * (a.left >= 0)[:, :, None, :]).mT


def _form(pieces: Sequence[Outer]) -> Iterator[Tensor]:
    """The gradients themselves, some samples at a time, in memory that the next ones overwrite."""
    n, groups, _, right = pieces[0].right.shape
    step = min(n, max(1, _BLOCK // (groups * pieces[0].size * right)))
    block = pieces[0].right.new_empty(step * groups, pieces[0].size, right)
    for i in range(0, n, step):
        part = slice(i, i + step)
        out = block[: (min(i + step, n) - i) * groups]
        for k, p in enumerate(pieces):
            if p.one_hot:
                rows = _scattered(p, part)
                out = out.copy_(rows) if k == 0 else out.add_(rows)
                continue
            a, b = (t[part].flatten(0, 1) for t in (p.left, p.right))
            out = torch.bmm(a.mT, b, out=out) if k == 0 else out.baddbmm_(a.mT, b)
        yield out.reshape(len(out) // groups, -1)


def _scattered(piece: Outer, part: slice) -> Tensor:
    """Σ_t e_{i_t} r_tᵀ, ``(samples, a, b)``."""
    right, index = piece.right[part, 0], piece.left[part, 0]
    out = right.new_zeros(len(right), piece.size + 1, right.shape[2])
    index = index.where(index >= 0, piece.size)[..., None].expand(-1, -1, right.shape[2])
    return out.scatter_add_(1, index, right)[:, :-1]


def _one_hot_diagonal(piece: Outer) -> Tensor:
    """Rows with one index in one sample add up before they are squared."""
    n, width = len(piece.right), piece.right.shape[3]
    index = piece.left[:, 0]
    key = (torch.arange(n, device=index.device)[:, None] * piece.size + index)[index >= 0]
    unique, where = key.unique(return_inverse=True)
    sums = piece.right.new_zeros(len(unique), width).index_add_(0, where, piece.right[:, 0][index >= 0])
    return piece.right.new_zeros(piece.size, width).index_add_(0, unique % piece.size, sums.square()).reshape(-1)


def _norms(rows: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return found.flatten()
