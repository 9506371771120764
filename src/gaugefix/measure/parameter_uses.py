"""What each use of a parameter in an autograd graph leaves of the gradients of single samples.

A use is known by the name of its node; the node keeps the inputs that the gradient needs, and the gradient of its
output is what a backward pass is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gaugefix.measure.sample_gradients import Formed, Outer, Piece

Node = Any


class UnknownUseError(Exception):
    """A parameter is used in a way whose per-sample gradients cannot be read off the graph."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of one parameter.

    Attributes:
        node: the node whose output gradient is needed.
        build: ``build(output_gradient, n, layout)`` gives the per-sample gradients; layout 0 if the samples come first
            and 1 if the positions do. It raises `UnknownUseError` where the shapes do not fit.
        outer: sizes ``(rows, a, b)`` of an outer product (rows counts all samples), or None.
        formed: whether ``build`` gives the gradients themselves.
        total: ``total(output_gradient, start)`` gives the sum of the gradients of all samples, added in place to
            ``start`` if there is one; None where that is left to the backward pass.
    """

    node: Node
    build: Callable[[Tensor, int, int], Piece]
    outer: tuple[int, int, int] | None = None
    formed: bool = False
    total: Callable[[Tensor, Tensor | None], Tensor] | None = None

    @property
    def edge(self) -> GradientEdge:
        """For `torch.autograd.grad`."""
        return GradientEdge(self.node, 0)


#: what a node's output goes into, and as which input
Consumers = Mapping[Node, list[tuple[Node, int]]]
Rule = Callable[[Tensor, Node, int, bool, Consumers], Use]


def _by_sample(rows: Tensor, n: int, layout: int) -> Tensor:
    """``(rows, ...)`` to ``(n, positions, ...)``."""
    count = rows.shape[0]
    if count % n:
        raise UnknownUseError("rows are not a multiple of the samples")
    if count == n and layout == 1:
        raise UnknownUseError("with one position there is one layout")
    if layout == 0:
        return rows.reshape(n, -1, *rows.shape[1:])
    return rows.reshape(-1, n, *rows.shape[1:]).transpose(0, 1)


def _matrix(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    """Rows of inputs times the parameter, or times its transpose."""
    inputs = node._saved_mat1 if i == 2 else node._saved_self
    if i == 2 and node._saved_alpha != 1:
        raise UnknownUseError("scaled product")

    def sides(delta: Tensor) -> tuple[Tensor, Tensor]:
        return (delta, inputs) if transposed else (inputs, delta)

    def build(delta: Tensor, n: int, layout: int) -> Outer:
        left, right = (_by_sample(t, n, layout).unsqueeze(1) for t in sides(delta))
        return Outer(left, right, param.shape[0])

    def total(delta: Tensor, start: Tensor | None) -> Tensor:
        left, right = sides(delta)
        return left.mT @ right if start is None else start.addmm_(left.mT, right)

    return Use(node, build, (inputs.shape[0], *param.shape), total=total)


def _broadcast(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    """Added, subtracted, expanded or multiplied entry by entry."""
    factor: Tensor | float = 1.0
    if node.name() == "MulBackward0":
        factor = node._saved_other if i == 0 else node._saved_self
        if factor is None:
            raise UnknownUseError("a factor that was not kept")
    elif i == 1:
        factor = node._saved_alpha * (-1.0 if node.name() == "SubBackward0" else 1.0)
    if transposed or (node.name() == "AddmmBackward0" and node._saved_beta != 1):
        raise UnknownUseError("transposed or scaled")

    def build(delta: Tensor, n: int, layout: int) -> Formed:
        scaled = delta if isinstance(factor, float) and factor == 1 else delta * factor
        return Formed(_reduced(scaled, param.shape, n, layout))

    return Use(node, build, formed=True)


def _reduced(delta: Tensor, shape: torch.Size, n: int, layout: int) -> Tensor:
    """Sum over what was broadcast, except over the samples: ``(n, entries)``."""
    if layout >= delta.ndim or delta.shape[layout] != n:
        delta, layout = _by_sample(delta, n, layout), 0
    padded = (1,) * (delta.ndim - len(shape)) + tuple(shape)
    if padded[layout] != 1 and n != 1:
        raise UnknownUseError("the parameter has an axis of samples")
    summed = [d for d, size in enumerate(padded) if size == 1 and d != layout and delta.shape[d] != 1]
    rows = delta.sum(summed, keepdim=True) if summed else delta
    rows = rows.movedim(layout, 0) if layout else rows
    return rows if rows.ndim == 2 else rows.reshape(n, -1)


def _embedding(param: Tensor, node: Node, _: int, transposed: bool, consumers: Consumers) -> Use:
    """Rows looked up; where all samples share the indices, the gradient is taken where they are added to the rest."""
    index = node._saved_indices
    if node._saved_scale_grad_by_freq or node._saved_sparse or transposed:
        raise UnknownUseError("scaled or sparse")
    target, shared = node, index.ndim == 2 and len(index) == 1
    above = consumers.get(node, [])
    if shared and len(above) == 1 and above[0][0].name() == "AddBackward0":
        target = above[0][0]
    padding = node._saved_padding_idx
    index = index.where(index != padding, -1) if 0 <= padding < len(param) else index

    def build(delta: Tensor, n: int, layout: int) -> Outer:
        each = (index.expand(n, -1) if shared and len(delta) == n else index).reshape(-1)
        rows = delta.reshape(-1, delta.shape[-1])
        if len(rows) != len(each):
            raise UnknownUseError("indices and rows differ")
        return Outer(_by_sample(each, n, layout)[:, None], _by_sample(rows, n, layout)[:, None], len(param))

    return Use(target, build)


def _layer_norm(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    x, mean, scale = (node._saved_input, node._saved_result1, node._saved_result2) if i == 1 else (None, None, None)

    def build(delta: Tensor, n: int, layout: int) -> Formed:
        each = delta if x is None else ((x - mean) * scale).mul_(delta)
        return Formed(_reduced(each, param.shape, n, layout))

    return Use(node, build, formed=True)


def _channel_norm(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    """Group norm, and batch norm with fixed statistics: gains along dimension 1."""
    x = node._saved_input
    if node.name() == "NativeGroupNormBackward0":
        groups = x.reshape(len(x), node._saved_group, -1)
        mean, scale = (t.reshape(len(x), -1, 1) for t in (node._saved_result1, node._saved_result2))
        normal = ((groups - mean) * scale).reshape(x.shape)
    elif node._saved_training:
        raise UnknownUseError("batch statistics")
    else:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = (node._saved_running_var + node._saved_eps).rsqrt()
        normal = (x - node._saved_running_mean.reshape(shape)) * scale.reshape(shape)

    def build(delta: Tensor, n: int, layout: int) -> Formed:
        each = delta * normal if i == 1 else delta
        by = _by_sample(each.flatten(2).sum(2) if each.ndim > 2 else each, n, layout)
        return Formed(by.sum(1))

    return Use(node, build, formed=True)


def _channel_bias(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    def build(delta: Tensor, n: int, layout: int) -> Formed:
        return Formed(_by_sample(delta.flatten(2).sum(2), n, layout).sum(1))

    return Use(node, build, formed=True)


def _convolution(param: Tensor, node: Node, i: int, transposed: bool, _: Consumers) -> Use:
    x, dims = node._saved_input, param.ndim - 2
    if transposed:
        raise UnknownUseError("transposed kernel")
    groups, swapped, kernel = node._saved_groups, node._saved_transposed, param.shape[2:]
    options = [_pair(v, dims) for v in (node._saved_stride, node._saved_padding, node._saved_dilation)]
    where = (
        tuple(x.shape[2:])
        if swapped
        else tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x.shape[2:], kernel, *options, strict=True)
        )
    )
    positions = math.prod(where)

    def build(delta: Tensor, n: int, layout: int) -> Outer:
        if len(delta) % n or layout:
            raise UnknownUseError("samples are not the first dimension of a convolution")
        seen, each = (delta, x) if swapped else (x, delta)  # the gradient of a transposed one swaps the two
        left = each.reshape(len(each), groups, -1, positions)
        right = _patches(seen, kernel, where, *options).reshape(len(seen), groups, -1, positions)
        if len(delta) != n:  # images per sample
            left, right = (t.unflatten(0, (n, -1)).movedim(1, -2).flatten(-2) for t in (left, right))
        return Outer(left.mT, right.mT, param.shape[0] // groups)

    return Use(node, build, (positions * len(x), param.shape[0] // groups, math.prod(param.shape[1:])))


def _pair(values: Iterable[int], dims: int) -> tuple[int, ...]:
    out = tuple(values)
    return out if len(out) == dims else out * dims


def _patches(
    x: Tensor,
    kernel: tuple[int, ...],
    where: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """What every position of a kernel sees, ``(n, channels, *kernel, *where)``, a view of the padded input."""
    x = torch.nn.functional.pad(x, [p for p in reversed(padding) for _ in range(2)]) if any(padding) else x
    x = x.contiguous()
    steps = x.stride()[2:]
    strides = [
        *x.stride()[:2],
        *(d * s for d, s in zip(dilation, steps, strict=True)),
        *(k * s for k, s in zip(stride, steps, strict=True)),
    ]
    return x.as_strided((*x.shape[:2], *kernel, *where), strides, x.storage_offset())


#: by name of the node and position of the parameter among its inputs
RULES: dict[tuple[str, int], Rule] = {
    ("AddmmBackward0", 2): _matrix,
    ("MmBackward0", 1): _matrix,
    ("AddmmBackward0", 0): _broadcast,
    ("AddBackward0", 0): _broadcast,
    ("AddBackward0", 1): _broadcast,
    ("SubBackward0", 1): _broadcast,
    ("ExpandBackward0", 0): _broadcast,
    ("MulBackward0", 0): _broadcast,
    ("MulBackward0", 1): _broadcast,
    ("EmbeddingBackward0", 0): _embedding,
    ("NativeLayerNormBackward0", 1): _layer_norm,
    ("NativeLayerNormBackward0", 2): _layer_norm,
    ("NativeGroupNormBackward0", 1): _channel_norm,
    ("NativeGroupNormBackward0", 2): _channel_norm,
    ("NativeBatchNormBackward0", 1): _channel_norm,
    ("NativeBatchNormBackward0", 2): _channel_norm,
    ("ConvolutionBackward0", 1): _convolution,
    ("ConvolutionBackward0", 2): _channel_bias,
}
