"""The parametrisations of one tensor: entry by entry, group by group, low rank, and under a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from gaugefix.control.impose.factors import Factorised, positive_factor, without_autocast


class EntryFactors(Factorised):
    """W = u ⊙ v: an L1 penalty."""

    def __init__(self, strength: float, spread: float) -> None:
        super().__init__(strength)
        self.spread = spread

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """The product."""
        return u * v

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Positive u; the sign is in v."""
        u = positive_factor(weight, self.spread)
        return u, weight / u


class GroupFactors(Factorised):
    """W_g = s_g · v_g with one scalar for each group: a group-lasso penalty.

    Groups are the positions along some dimensions (``dims``), or given by ``labels`` 0, …, G − 1 in the shape of W.
    """

    labels: Tensor | None

    def __init__(
        self, strength: float, spread: float, *, dims: tuple[int, ...] = (), labels: Tensor | None = None
    ) -> None:
        super().__init__(strength)
        self.spread, self.dims = spread, dims
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, s: Tensor, v: Tensor) -> Tensor:
        """The product."""
        return (s if self.labels is None else s[self.labels]) * v

    def norms(self, weight: Tensor) -> Tensor:
        """‖W_g‖₂, in the shape of s."""
        if self.labels is not None:
            squares = weight.new_zeros(int(self.labels.max()) + 1)
            return squares.index_add_(0, self.labels.flatten(), weight.square().flatten()).sqrt()
        others = [d for d in range(weight.ndim) if d not in self.dims]
        return weight.square().sum(dim=others, keepdim=True).sqrt() if others else weight.abs()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Positive s; the direction and the sign are in v."""
        s = positive_factor(self.norms(weight), self.spread)
        return s, weight / (s if self.labels is None else s[self.labels])


class RankFactors(Factorised):
    """W = U Vᵀ on the matrix (first dimension, all others): a nuclear-norm penalty."""

    def __init__(self, strength: float, spread: float, shape: torch.Size, rank: int) -> None:
        super().__init__(strength)
        self.spread, self.shape, self.rank = spread, shape, rank

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """The product."""
        with without_autocast(u):
            return (u @ v.mT).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled singular vectors of the best approximation of this rank."""
        exact = weight.flatten(1).double()  # once, so that the function stays to the precision of the weights
        left, sizes, right = torch.linalg.svd(exact, full_matrices=False)
        left, sizes, right = left[:, : self.rank], sizes[: self.rank], right[: self.rank]
        scale = positive_factor(sizes, self.spread)
        u, v = left * scale, right.mT * (sizes / scale)
        return u.to(weight.dtype).contiguous(), v.to(weight.dtype).contiguous()

    def extra_repr(self) -> str:
        """The rank too."""
        return f"{super().extra_repr()}, rank={self.rank}"


class LinearFactors(Factorised):
    """Aθ = b + s_g v_g: the L1 or group penalty of Aθ − b, where A acts along one dimension of θ.

    θ = (w − A⁺(Aw − b)) + A⁺(s ⊙ v), with the columns of θ along ``dim`` and s one scalar per label of a row of A (or
    of an entry). The original w is no factor; what A sees of it has no effect.
    """

    decayed = (1, 2)
    matrix: Tensor
    inverse: Tensor
    target: Tensor
    labels: Tensor | None

    def __init__(
        self,
        strength: float,
        spread: float,
        matrix: Tensor,
        inverse: Tensor,
        target: Tensor,
        *,
        dim: int | None,
        labels: Tensor | None,
    ) -> None:
        super().__init__(strength)
        self.spread, self.dim = spread, dim
        for name, value in (("matrix", matrix), ("inverse", inverse), ("target", target), ("labels", labels)):
            self.register_buffer(name, value, persistent=False)

    def _columns(self, weight: Tensor) -> Tensor:
        """``(n, p)`` with the dimension of A first."""
        return weight.reshape(-1, 1) if self.dim is None else weight.movedim(self.dim, 0).flatten(1)

    def _shaped(self, columns: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_columns`."""
        if self.dim is None:
            return columns.reshape(like.shape)
        return columns.reshape(like.movedim(self.dim, 0).shape).movedim(0, self.dim)

    def residual(self, weight: Tensor) -> Tensor:
        """Aθ − b, ``(k, p)``."""
        return self.matrix @ self._columns(weight) - self.target

    def norms(self, residual: Tensor) -> Tensor:
        """Sizes of the groups: ``(G, 1)`` norms, or the entries themselves."""
        if self.labels is None:
            return residual
        squares = residual.new_zeros(int(self.labels.max()) + 1)
        return squares.index_add_(0, self.labels, residual.square().sum(1)).sqrt()[:, None]

    def expand(self, groups: Tensor) -> Tensor:
        """One value per row of A from one per group."""
        return groups if self.labels is None else groups[self.labels]

    def forward(self, w: Tensor, s: Tensor, v: Tensor) -> Tensor:
        """θ."""
        with without_autocast(w):
            change = self.expand(s) * v - self.residual(w)
            return self._shaped(self._columns(w) + self.inverse @ change, w)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W is θ itself."""
        residual = self.residual(weight)
        s = positive_factor(self.norms(residual), self.spread)
        return weight, s, residual / self.expand(s)
