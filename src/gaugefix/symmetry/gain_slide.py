"""Gains that change while the axes on both sides of their normalisation rotate.

A normalisation with gains g between two axes that may rotate is the matrix Γ = diag(g) up to rotations on either side,
so that only its singular values count. If it subtracts the mean, or if what comes next does, one of its d dimensions is
cut away, and d gains have d − 1 singular values: they are the (roots of the) derivative of p(x) = Π(x − bᵢ) with
b = g², or b = g where both subtract the mean. So b may move to the roots of p + c for any small c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaugefix.symmetry.frame_groups import turn
from gaugefix.symmetry.stream_groups import VectorSymmetry
from gaugefix.symmetry.units import Params, Slice


@dataclass(frozen=True, eq=False)
class Side:
    """An axis next to the normalisation.

    Attributes:
        covariant: slices that turn with it.
        contravariant: slices that turn by the inverse transpose.
        even: slices that only ever turn by an orthogonal matrix (behind another normalisation without a gain).
        behind: per normalisation with a gain that reads the axis: the gain, slices covariant and contravariant.
        centred: its mean is cut away: the norm itself (in front), the norms that read it (behind).
    """

    covariant: tuple[Slice, ...]
    contravariant: tuple[Slice, ...]
    even: tuple[Slice, ...]
    behind: tuple[tuple[Slice, tuple[Slice, ...], tuple[Slice, ...]], ...]
    centred: bool

    def slices(self) -> tuple[Slice, ...]:
        """All of them."""
        more = (s for _, a, b in self.behind for s in (*a, *b))
        return (*self.covariant, *self.contravariant, *self.even, *more)

    def apply(self, out: dict[str, Tensor], q: Tensor, a: Tensor) -> None:
        """Turn everything: by A what is linear in the axis, by Q what sees it through a normalisation."""
        for s in self.covariant:
            turn(out, s, a)
        inverse = torch.linalg.inv(a).T
        for s in self.contravariant:
            turn(out, s, inverse)
        for s in self.even:
            turn(out, s, q)
        for gain, covariant, contravariant in self.behind:
            g = gain.take(out[gain.param]).reshape(-1).to(q)
            for s in covariant:
                turn(out, s, g[:, None] * q / g)
            for s in contravariant:
                turn(out, s, q / g[:, None] * g)


@dataclass(frozen=True, eq=False)
class GainSlide(VectorSymmetry):
    """g moves along the curve of equal singular values, and both sides turn. Elements: one number.

    Attributes:
        gain: g.
        before: what the normalisation reads.
        after: what it writes.
        size: d.
    """

    gain: Slice | None = None
    before: Side | None = None
    after: Side | None = None
    size: int = 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """A number of the order of one."""
        return torch.randn(1, generator=generator, dtype=torch.float64)

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Move the gains, then turn."""
        assert self.gain is not None
        assert self.before is not None
        assert self.after is not None
        g = self.gain.take(params[self.gain.param]).reshape(-1).to(element)
        both = self.before.centred and self.after.centred
        b = slide(g if both else g * g, element[0])
        new = b if both else torch.sign(g) * torch.sqrt(b)
        flat = _flat(self.size, like=g)
        left = flat.T if self.after.centred else torch.eye(self.size, dtype=g.dtype)
        right = flat if self.before.centred else torch.eye(self.size, dtype=g.dtype)
        q_left, q_right = _rotations(left @ (g[:, None] * right), left @ (new[:, None] * right))
        one = g.new_full((self.size, self.size), 1 / self.size)
        before = flat @ q_right @ flat.T + one if self.before.centred else q_right
        after = flat @ q_left @ flat.T + one if self.after.centred else q_left
        moved = after
        if self.after.centred:  # the mean, which the norms behind do not see, follows for those that read it linearly
            gap = (new @ before - (after @ torch.diag(g)).sum(0)) @ right @ right.T / self.size
            moved = after + (gap / g).expand(self.size, self.size)
        out = dict(params)
        self.before.apply(out, before, before)
        self.after.apply(out, after, moved)
        out[self.gain.param] = self.gain.put(out[self.gain.param], new.reshape(1, self.size, 1))
        return out


def _flat(n: int, like: Tensor) -> Tensor:
    """Orthonormal columns orthogonal to the vector of ones."""
    full = torch.eye(n, dtype=like.dtype)
    full[:, 0] = 1
    columns: Tensor = torch.linalg.qr(full)[0][:, 1:]
    return columns


def slide(b: Tensor, t: Tensor) -> Tensor:
    """The roots of p(x) + c with p(x) = Π(x − bᵢ) and |c| below the smallest |extremum| of p, so that all are real.

    Args:
        b: the roots of p.
        t: c is tanh(t)/2 times that extremum.

    Returns:
        The roots in the order of b; to first order in t also under differentiation.

    Example:
        >>> import torch
        >>> b = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
        >>> new = slide(b, torch.tensor(1.0, dtype=torch.float64))
        >>> torch.allclose(new.sum(), b.sum()), torch.allclose((new**2).sum(), (b**2).sum())
        (True, True)
    """
    n = len(b)
    flat = _flat(n, b)
    extrema = torch.linalg.eigvalsh((flat.T @ (b[:, None] * flat)).detach())  # the roots of p′
    height = (extrema[:, None] - b.detach()).prod(1).abs().min()
    c = torch.tanh(t) / 2 * height
    order = b.detach().argsort()
    edges = torch.cat([extrema[:1] - _reach(b), extrema, extrema[-1:] + _reach(b)])
    low, high = torch.empty_like(extrema.new_zeros(n)), torch.empty_like(extrema.new_zeros(n))
    low[order], high[order] = edges[:-1], edges[1:]
    fixed = c.detach() if isinstance(c, Tensor) else c
    rising = ((low[:, None] - b.detach()).prod(1) + fixed) < 0
    x = (low + high) / 2
    for _ in range(200):  # bisection: every bracket holds one root
        below = ((x[:, None] - b.detach()).prod(1) + fixed < 0) == rising
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        x = (low + high) / 2
    gaps = x[:, None] - b  # a Newton step, which also carries derivatives
    others = torch.stack([torch.cat([gaps[:, :i], gaps[:, i + 1 :]], dim=1).prod(1) for i in range(n)])
    roots: Tensor = x - (gaps.prod(1) + c) / others.sum(0)
    return roots


def _reach(b: Tensor) -> Tensor:
    spread = b.detach().max() - b.detach().min()
    return (2 * spread + 1e-6).reshape(1)


def _rotations(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal Q and R with new = Q old Rᵀ, for matrices of equal singular values."""
    v, _, w = torch.linalg.svd(old, full_matrices=False)
    v2, _, w2 = torch.linalg.svd(new, full_matrices=False)
    sign = torch.sign((v * v2).sum(0).detach())
    v2, w2 = v2 * sign, w2 * sign[:, None]
    q, r = v2 @ v.T, w2.T @ w
    if old.shape[0] > old.shape[1]:
        q = q + torch.outer(_left_null(new), _left_null(old))
    if old.shape[0] < old.shape[1]:
        r = r + torch.outer(_left_null(new.T), _left_null(old.T))
    return q, r


def _left_null(matrix: Tensor) -> Tensor:
    """The unit vector orthogonal to the columns of a (d, d − 1) matrix, of positive sum of inverse gains."""
    q = torch.linalg.qr(matrix)[0]
    start = torch.ones(len(matrix), dtype=matrix.dtype) / len(matrix) ** 0.5
    vector = start - q @ (q.T @ start)
    unit: Tensor = vector / vector.norm()
    return unit
