"""Symmetries that are declared by the names of their parameters: charge, drift, and the jump to noise equilibrium.

`gaugefix.find_symmetries` finds these by itself in a module. Where there is no module to search, only a loss of
tensors (a hand-written model, an ensemble), they can be stated, and `check` says whether the statement holds.

All are one law. Two sides θ₊ and θ₋ of n rows move as θ₊ → Aθ₊, θ₋ → A⁻¹θ₋ with symmetric A, the charge is
C = θ₊θ₊ᵀ − θ₋θ₋ᵀ, and a step of SGD with minibatch gradient ĝ changes it to (1 − ηλ)²C + η²(ĝ₊ĝ₊ᵀ − ĝ₋ĝ₋ᵀ), exactly
(arXiv 2402.07193). Weight decay is PyTorch's λ; the source's γ is λ/2.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gaugefix.errors import ControlError, ValidityWarning
from gaugefix.theory import matrix_equilibrium, rescaling_equilibrium

Params = Mapping[str, Tensor]


class DeclaredSymmetry(ABC):
    """What `Rescaling`, `Scale`, `MatrixPair` and `AttentionPair` have in common."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """Names of what moves."""

    @abstractmethod
    def _rows(self, tensors: Params) -> tuple[Tensor, Tensor]:
        """Both sides as ``(fibers, n, entries)``; views that can be written into."""

    def charge(self, params: Params) -> Float[Tensor, "fibers n n"]:
        """C = θ₊θ₊ᵀ − θ₋θ₋ᵀ, conserved by gradient flow.

        Args:
            params: tensors by name.

        Returns:
            One matrix per fiber (head); ``(1, 1, 1)`` for `Rescaling` and `Scale`.
        """
        plus, minus = self._sides(params)
        return plus @ plus.mT - minus @ minus.mT

    def drift(
        self, params: Params, gradients: Iterable[Params], *, lr: float, weight_decay: float = 0.0
    ) -> Float[Tensor, "fibers n n"]:
        """Expected change of the charge in one step of SGD, ((1 − ηλ)² − 1)C + η² E[ĝ₊ĝ₊ᵀ − ĝ₋ĝ₋ᵀ].

        Args:
            params: tensors by name.
            gradients: of minibatches, without weight decay; for a single one the change is exact.
            lr: η.
            weight_decay: λ.

        Returns:
            The mean over the minibatches.

        Raises:
            ControlError: if there is no gradient.
        """
        found = [self.charge(g) for g in gradients]
        if not found:
            raise ControlError("drift: at least one minibatch gradient is needed.")
        return ((1 - lr * weight_decay) ** 2 - 1) * self.charge(params) + lr**2 * torch.stack(found).mean(0)

    def check(self, losses: Callable[[Params], Float[Tensor, " n"]], params: Params) -> float:
        """How far the losses of single samples are from being invariant.

        Args:
            losses: maps tensors by name to one loss per sample.
            params: the point.

        Returns:
            Largest ‖ĝ₊θ₊ᵀ − θ₋ĝ₋ᵀ‖/(‖θ‖‖ĝ‖) over the samples, 0 for a symmetry; above 1e-5 it is none. Cost: the
            Jacobian of the losses.
        """
        own = {k: params[k].detach() for k in self.parameters}
        rest = {k: v.detach() for k, v in params.items()}
        jacobian = torch.func.jacrev(lambda moved: losses({**rest, **moved}))(own)
        plus, minus = self._sides(own)
        size, worst = float(torch.cat([p.flatten() for p in own.values()]).norm()), 0.0
        for i in range(len(next(iter(jacobian.values())))):
            g_plus, g_minus = self._sides({k: j[i] for k, j in jacobian.items()})
            scale = size * float(torch.sqrt(g_plus.square().sum() + g_minus.square().sum()))
            if scale > 0:
                worst = max(worst, float((g_plus @ plus.mT - minus @ g_minus.mT).norm()) / scale)
        return worst

    def equilibrium(self, gradients: Iterable[Params]) -> Float[Tensor, "fibers n n"]:
        """The A of the point of rest: there E[ĝ₊ĝ₊ᵀ] = E[ĝ₋ĝ₋ᵀ], and E‖ĝ‖² is least on the orbit.

        Args:
            gradients: of minibatches at the present point, without weight decay; 64 or more.

        Returns:
            Symmetric positive maps for `teleport_`. Where one side has no noise in some direction there is no finite
            point: infinite (or zero) for a scale, nan for a matrix, with a `ValidityWarning`.

        Raises:
            ControlError: if there is no gradient.
        """
        sides = [self._sides(g) for g in gradients]
        if not sides:
            raise ControlError("equilibrium: at least one minibatch gradient is needed.")
        plus, minus = (
            torch.stack([side @ side.mT for side in column]).mean(0).double().cpu().numpy()
            for column in zip(*sides, strict=True)
        )
        if plus.shape[1] == 1:
            logs = rescaling_equilibrium({1.0: plus.reshape(-1), -1.0: minus.reshape(-1)})
            maps = np.exp(logs).reshape(plus.shape)
        else:
            maps = np.stack([matrix_equilibrium(p, k) for p, k in zip(plus, minus, strict=True)])
        if not (np.isfinite(maps).all() and (maps != 0).any(axis=(1, 2)).all()):
            warnings.warn(
                f"{type(self).__name__}: no finite point of rest, a side has no gradient noise in some direction.",
                ValidityWarning,
                stacklevel=2,
            )
        return torch.from_numpy(maps)

    def teleport_(self, params: Params, maps: Float[Tensor, "fibers n n"], momentum: Params | None = None) -> None:
        """Move along the orbit in place, θ₊ → Aθ₊ and θ₋ → A⁻¹θ₋; the function stays.

        Args:
            params: tensors by name.
            maps: A, from `equilibrium`.
            momentum: buffers by the same names; they transform as gradients do, the other way round.

        Raises:
            ControlError: if the maps do not fit, or are not finite and invertible.
        """
        plus, minus = self._sides(params)
        wanted = (*plus.shape[:2], plus.shape[1])
        if tuple(maps.shape) != wanted:
            raise ControlError(f"teleport_: maps must have shape {wanted}, got {tuple(maps.shape)}.")
        if not bool(torch.isfinite(maps).all()) or float(torch.linalg.svdvals(maps).min()) <= 0:
            raise ControlError("teleport_: the maps must be finite and invertible; this orbit has no such point.")
        ahead = maps.to(plus)
        back = torch.linalg.inv(ahead)
        with torch.no_grad():
            plus.copy_(ahead @ plus)
            minus.copy_(back.mT @ minus)
            if momentum is not None:
                plus, minus = self._sides(momentum)
                plus.copy_(back.mT @ plus)
                minus.copy_(ahead @ minus)

    def _sides(self, tensors: Params) -> tuple[Tensor, Tensor]:
        missing = [k for k in self.parameters if k not in tensors]
        if missing:
            raise ControlError(f"{type(self).__name__}: there is no tensor named {missing[0]!r}.")
        with torch.no_grad():
            return self._rows(tensors)


@dataclass(frozen=True)
class Rescaling(DeclaredSymmetry):
    """u → cu, w → w/c, charge ‖u‖² − ‖w‖²: the two sides of a ReLU unit, or two layers of a homogeneous network.

    Attributes:
        u: name of the side that grows.
        w: name of the other.

    Example:
        >>> pair = Rescaling("u", "w")
        >>> params = {"u": torch.tensor([2.0]), "w": torch.tensor([1.0])}
        >>> pair.charge(params).item()
        3.0
        >>> pair.check(lambda p: (p["u"] * p["w"] - torch.tensor([1.0, 3.0])) ** 2, params)
        0.0
    """

    u: str
    w: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what moves."""
        return (self.u, self.w)

    def _rows(self, tensors: Params) -> tuple[Tensor, Tensor]:
        return tensors[self.u].view(1, 1, -1), tensors[self.w].view(1, 1, -1)


@dataclass(frozen=True)
class Scale(DeclaredSymmetry):
    """θ → cθ, charge ‖θ‖²: weights in front of a normalisation. Noise grows the charge; only weight decay bounds it.

    Attributes:
        block: name of the tensor.

    Example:
        >>> Scale("w").drift({"w": torch.ones(2)}, [{"w": torch.tensor([1.0, -1.0])}], lr=0.1).item()  # 0.1²·2
        0.019999999552965164
    """

    block: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what moves."""
        return (self.block,)

    def _rows(self, tensors: Params) -> tuple[Tensor, Tensor]:
        rows = tensors[self.block].view(1, 1, -1)
        return rows, rows[..., :0]


@dataclass(frozen=True)
class MatrixPair(DeclaredSymmetry):
    """U → UM, W → M⁻¹W for any invertible M, charge UᵀU − WWᵀ: a function of the product UW.

    Attributes:
        U: name of the matrix ``(out, n)``.
        W: name of the matrix ``(n, in)``.

    Example:
        >>> MatrixPair("U", "W").charge({"U": torch.eye(2), "W": 2 * torch.eye(2)})[0]
        tensor([[-3.,  0.],
                [ 0., -3.]])
    """

    U: str
    W: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what moves."""
        return (self.U, self.W)

    def _rows(self, tensors: Params) -> tuple[Tensor, Tensor]:
        plus, minus = tensors[self.U].mT[None], tensors[self.W][None]
        if plus.ndim != 3 or minus.ndim != 3 or plus.shape[1] != minus.shape[1]:
            shapes = tuple(tensors[self.U].shape), tuple(tensors[self.W].shape)
            raise ControlError(f"MatrixPair needs matrices (out, n) and (n, in), got {shapes[0]} and {shapes[1]}.")
        return plus, minus


@dataclass(frozen=True)
class AttentionPair(DeclaredSymmetry):
    """Queries and keys of every head, charge W_QW_Qᵀ − W_KW_Kᵀ: the logits see W_QᵀW_K alone.

    Attributes:
        WQ: name of the query weight ``(heads · n, in)``.
        WK: name of the key weight, of the same shape.
        heads: how many.

    Example:
        >>> q, k = torch.ones(4, 3), torch.zeros(4, 3)
        >>> AttentionPair("q", "k", heads=2).charge({"q": q, "k": k}).shape
        torch.Size([2, 2, 2])
    """

    WQ: str
    WK: str
    heads: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what moves."""
        return (self.WQ, self.WK)

    def _rows(self, tensors: Params) -> tuple[Tensor, Tensor]:
        q, k = tensors[self.WQ], tensors[self.WK]
        if q.ndim != 2 or k.ndim != 2 or len(q) != len(k) or self.heads < 1 or len(q) % self.heads:
            raise ControlError(
                f"AttentionPair: the rows of both weights must be {self.heads} heads of one size, got "
                f"{tuple(q.shape)} and {tuple(k.shape)}."
            )
        return q.view(self.heads, -1, q.shape[1]), k.view(self.heads, -1, k.shape[1])
