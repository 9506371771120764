"""Squared error: what the outputs may do in directions in which the targets do not vary.

A loss a‖f − y‖² does not change under f → Q(f − c) + c if Q is orthogonal and keeps every y − c, that is if it turns
only the k directions orthogonal to the differences of the targets. The last layer can do that: W → QW,
b → Q(b − c) + c. Without a bias c = 0, and the targets themselves have to be orthogonal to what turns. This depends on
the data: it holds for these targets and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gaugefix.symmetry.graph import Value
from gaugefix.symmetry.groups import Symmetry
from gaugefix.symmetry.lowering import Lowering
from gaugefix.symmetry.records import Product, Record, Sum
from gaugefix.symmetry.units import Params
from gaugefix.symmetry.verify import to_double
from gaugefix.task import Task

#: relative size below which the targets do not vary in a direction, or a curvature is not isotropic
_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class TargetRotation(Symmetry):
    """O(k) on the outputs, about the targets, in the directions that these leave free. Elements: orthogonal (k, k).

    Attributes:
        weight: name of the last layer's weight.
        dim_out: the dimension of it that makes the outputs.
        bias: name of its bias, if it has one.
        free: orthonormal columns, (outputs, k).
        centre: a target c, (outputs,); zero without a bias.
    """

    weight: str = ""
    dim_out: int = 0
    bias: str | None = None
    free: Tensor | None = None
    centre: Tensor | None = None

    @property
    def _frame(self) -> tuple[Tensor, Tensor]:
        assert self.free is not None
        assert self.centre is not None
        return self.free, self.centre

    @property
    def n_generators(self) -> int:
        """k(k − 1)/2."""
        k = self._frame[0].shape[1]
        return k * (k - 1) // 2

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random orthogonal matrix; −1 for k = 1."""
        k = self._frame[0].shape[1]
        q: Tensor = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
        return q if k > 1 else -torch.ones(1, 1, dtype=torch.float64)

    def path(self, k: int, t: Tensor) -> Tensor:
        """1 + t(E_ij − E_ji)."""
        if not 0 <= k < self.n_generators:
            raise IndexError(f"{self.name}: generator {k} of {self.n_generators}.")
        n = self._frame[0].shape[1]
        i, j = torch.triu_indices(n, n, 1)[:, k].tolist()
        skew = torch.zeros(n, n, dtype=t.dtype)
        skew[i, j], skew[j, i] = 1, -1
        turned: Tensor = torch.eye(n, dtype=t.dtype) + t * skew
        return turned

    def apply(self, params: Params, element: Tensor) -> dict[str, Tensor]:
        """Turn the outputs of the last layer about the targets."""
        free, centre = (t.to(params[self.weight]) for t in self._frame)
        q = element.to(free)
        turn = free @ (q - torch.eye(len(q), dtype=q.dtype, device=q.device)) @ free.T  # Q − 1

        def turned(t: Tensor, dim: int) -> Tensor:
            change: Tensor = torch.tensordot(turn, t, dims=([1], [dim]))
            return t + change.movedim(0, dim)

        out = {**params, self.weight: turned(params[self.weight], self.dim_out)}
        if self.bias is not None:
            out[self.bias] = turned(params[self.bias] - centre, 0) + centre
        return out


@dataclass(frozen=True)
class LastLayer:
    """The linear map that makes the only output.

    Attributes:
        weight: its parameter.
        dim_out: the dimension of the weight that makes the output axis.
        bias: its parameter, if there is one.
        axis: the output axis, a dimension of the output.
    """

    weight: Value
    dim_out: int
    bias: Value | None
    axis: int


def last_layer(lower: Lowering) -> LastLayer | None:
    """The last layer of a lowered graph, if it is a plain linear map with parameters used nowhere else.

    Args:
        lower: the lowered graph.

    Returns:
        The layer, or None.
    """
    if len(lower.graph.outputs) != 1:
        return None
    producers: dict[Value, Record] = {r.out.value: r for r in lower.records}
    uses = [o.value for r in lower.records for o in r.operands()]
    out = lower.graph.outputs[0]
    record, bias, axis = producers.get(out), None, None
    if isinstance(record, Sum) and len(record.terms) == 2 and record.coefficients == (1.0, 1.0):
        plain, added = sorted(record.terms, key=lambda t: t.value.kind == "param")
        if added.value.kind != "param" or len(added.groups) != 1 or added.value.ndim != 1:
            return None
        bias, axis = added.value, record.out.groups[next(iter(added.groups))][0]
        record = producers.get(plain.value) if plain.value.shape == out.shape else None
    if not isinstance(record, Product) or len(record.factors) != 2:
        return None
    w, x = sorted(record.factors, key=lambda f: f.value.kind != "param")
    outer = [k for k in w.groups if k in record.out.groups and k not in x.groups]
    if w.value.kind != "param" or x.value.kind == "param" or len(outer) != 1 or len(w.groups[outer[0]]) != 1:
        return None
    made = record.out.groups[outer[0]][0]
    if axis not in {None, made} or any(uses.count(v) != 1 for v in (w.value, bias) if v is not None):
        return None
    return LastLayer(w.value, w.groups[outer[0]][0], bias, made)


class _Given(nn.Module):
    """A model whose output is what it is told."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


def squared_error_targets(task: Task, batch: Any, shape: torch.Size, axis: int) -> Tensor | None:
    """The targets y of one batch, if the loss is a‖f − y‖² summed along the output axis, with a of each position.

    The loss is evaluated with given outputs f in place of the model: its gradient is 2a(f − y) and its Hessian 2a for
    every f then, and nothing else has this form.

    Args:
        task: for its loss.
        batch: one batch in float64.
        shape: of the model's output.
        axis: the output axis.

    Returns:
        The targets ``(positions, outputs)``, or None if the loss is of another form.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, Tensor]] = []
    for f in (torch.zeros(shape, dtype=torch.float64), torch.randn(shape, generator=generator, dtype=torch.float64)):
        f.requires_grad_()  # at zero the targets come without rounding
        v = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        try:
            total = task.loss(_Given(f), batch).sum()
            (gradient,) = torch.autograd.grad(total, f, create_graph=True)
            (curvature,) = torch.autograd.grad((gradient * v).sum(), f)
        except (AttributeError, RuntimeError, TypeError, ValueError, IndexError, KeyError):
            return None  # the loss wants more of the model than its output, or is not twice differentiable
        a = (curvature / v).movedim(axis, -1).reshape(-1, shape[axis])
        g, at = (t.detach().movedim(axis, -1).reshape(-1, shape[axis]) for t in (gradient, f))
        size = float(a.abs().max())
        if not size > 0 or float((a - a.mean(1, keepdim=True)).abs().max()) > _TOLERANCE * size:
            return None
        weight = a.mean(1, keepdim=True)
        seen = weight[:, 0] > _TOLERANCE * size
        if bool((weight < -_TOLERANCE * size).any()) or bool((g[~seen] != 0).any()):
            return None
        found.append((weight, (at - g / weight)[seen]))
    (a, y), (a2, y2) = found
    scale = 1 + float(y.abs().max()) if y.numel() else 1.0
    if a.shape != a2.shape or y.shape != y2.shape:
        return None
    same = float((a - a2).abs().max()) <= _TOLERANCE * float(a.max())
    return y if same and (not y.numel() or float((y - y2).abs().max()) <= 1e-9 * scale) else None


def find_target_rotations(task: Task, lower: Lowering) -> list[Symmetry]:
    """The rotation of the outputs that squared error leaves free for the targets of a task, checked on one pass.

    Args:
        task: with a loss and batches, all of the same sizes but for the number of samples.
        lower: the lowered graph of the model.

    Returns:
        One symmetry, or none.

    Cost: two evaluations of the loss per batch, without the model, until the targets span everything.
    """
    layer = last_layer(lower)
    if layer is None:
        return []
    spanned = _Spanned(about_first=layer.bias is not None)
    inputs = task.inputs(task.first_batch())
    n, rest = _sizes(inputs)
    first = lower.graph.outputs[0].shape
    if n is None or first[0] != n:
        return []
    with torch.random.fork_rng(devices=[]):  # a loss may draw noise
        for batch in task.batch_iter():
            m, same = _sizes(task.inputs(batch))
            if m is None or same != rest:
                return []
            y = squared_error_targets(task, to_double(batch), torch.Size((m, *first[1:])), layer.axis)
            if y is None or not spanned.add(y.cpu()):
                return []
    if spanned.root is None:  # every sample has weight zero
        return []
    free, centre = spanned.free()
    k = free.shape[1]
    isometric = float((free.T @ centre).abs().max()) <= _TOLERANCE * (1 + float(centre.abs().max()))
    axes = (f"{layer.weight.name}[{layer.dim_out}]", *([f"{layer.bias.name}[0]"] if layer.bias is not None else []))
    return [
        TargetRotation(
            f"{layer.weight.name}: turn the outputs about these targets",
            f"O({k})" if k > 1 else "Z_2", k * (k - 1) // 2, axes, isometric,
            weight=layer.weight.name, dim_out=layer.dim_out, bias=layer.bias.name if layer.bias is not None else None,
            free=free, centre=centre,
        )
    ]  # fmt: skip


def _sizes(inputs: Any) -> tuple[int | None, list[tuple[int, ...]]]:
    """The number of samples of a batch, and the other sizes; no number on the meta device or without tensors."""
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    known = tensors and tensors[0].ndim and not any(t.is_meta for t in tensors)
    return len(tensors[0]) if known else None, [tuple(t.shape[1:]) for t in tensors]


class _Spanned:
    """What the targets span, without keeping them."""

    def __init__(self, *, about_first: bool) -> None:
        self.about_first = about_first
        self.first: Tensor | None = None
        self.root: Tensor | None = None

    def add(self, y: Tensor) -> bool:
        """Take targets in; False if nothing is left free."""
        if not len(y):
            return True
        if self.first is None or self.root is None:
            self.first = y[0].clone() if self.about_first else torch.zeros_like(y[0])
            self.root = y.new_zeros(0, y.shape[1])
        self.root = torch.linalg.qr(torch.cat([self.root, y - self.first]), mode="r")[1]
        return self.free()[0].shape[1] > 0

    def free(self) -> tuple[Tensor, Tensor]:
        """Orthonormal columns orthogonal to all differences, and the centre."""
        assert self.first is not None
        assert self.root is not None
        _, values, right = torch.linalg.svd(self.root, full_matrices=True)
        size = max(float(values.max()) if len(values) else 0.0, float(self.first.abs().max()), 1e-300)
        return right[int((values > _TOLERANCE * size).sum()) :].T.contiguous(), self.first
