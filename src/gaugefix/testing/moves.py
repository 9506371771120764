"""What moves inside a module along hidden directions: each test is linear, and its kernel is what it explains."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from gaugefix.symmetry.graph import op_name
from gaugefix.testing.tangents import BILINEAR, Tangents, module_of

#: a tangent smaller than this, relative to its direction, is zero; a residual larger than this is not affine
ZERO = 1e-5


class Moves:
    """Tests of tangents at the nonlinear operations.

    Args:
        tangents: of the hidden directions.
    """

    def __init__(self, tangents: Tangents) -> None:
        self.tangents = tangents
        self.hidden, self.inputs, self.outputs = tangents.hidden, tangents.inputs, tangents.outputs

    def without(self, kind: str) -> Tensor:
        """Orthonormal directions that pass a test: see `Cause.kind`."""
        match kind:
            case "linear":
                maps = list(self.inputs.values())
            case "removed":
                maps = list(self.outputs.values())
            case _:
                seen = {n: t for n, t in self.outputs.items() if not _only_size(n)}
                if kind == "product":
                    seen = {n: t for n, t in seen.items() if not _is_product(n)}
                if kind == "table":
                    seen = {n: t for n, t in seen.items() if not self._few_rows(n)}
                test = self._not_sized if kind == "size" else self._not_affine
                maps = [test(n, t) for n, t in seen.items()]
        return _kernel([t.flatten(1) for t in maps], self.hidden)

    def _not_affine(self, node: fx.Node, tangent: Tensor) -> Tensor:
        """What of a tangent is no affine function of the value."""
        value = self.tangents.values[node]
        one = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
        if _distinct(value) <= one.shape[1]:
            return tangent  # too few points: anything is affine on them
        basis = torch.linalg.svd(one, full_matrices=False)
        q = basis[0][:, basis[1] > 1e-10 * basis[1][0]]
        rest: Tensor = tangent - torch.einsum("sk,tk,dtf->dsf", q, q, tangent)
        return rest

    def _few_rows(self, node: fx.Node) -> bool:
        """Whether a value only ever takes few rows, so that any change of it is a function of it."""
        value = self.tangents.values[node]
        return 10 * _distinct(value) < len(value)

    def _not_sized(self, node: fx.Node, tangent: Tensor) -> Tensor:
        """What of a tangent, across the value itself, is no affine function of the value."""
        value = self.tangents.values[node]
        n = value.shape[1]
        if n < 3 or _distinct(value) * (n - 1) <= 2 * n * (n + 1):
            return self._not_affine(node, tangent)
        unit = value / value.norm(dim=1, keepdim=True).clamp_min(1e-300)
        one = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
        eye = torch.eye(n, dtype=value.dtype)
        across = eye - unit[:, :, None] * unit[:, None, :]  # (samples, n, n)
        design = torch.einsum("sij,sk->sijk", across, one).reshape(len(value) * n, -1)
        left, values, _ = torch.linalg.svd(design, full_matrices=False)
        q = left[:, values > 1e-10 * values[0]]
        seen = torch.einsum("sij,dsj->dsi", across, tangent).flatten(1)
        rest: Tensor = seen - seen @ q @ q.T
        return rest

    def _along(self, some: Tensor) -> Tensor:
        """Directions as combinations of the hidden ones."""
        return some @ self.hidden.T

    def places(self, some: Tensor, *, removing: bool) -> tuple[str, ...]:
        """Operations that end the directions, or through which they go."""
        mix = self._along(some)
        out = []
        for node, tangent in self.outputs.items():
            leaves = float(torch.einsum("kd,dsf->ksf", mix, tangent).norm()) > ZERO * tangent[0].numel() ** 0.5
            enters = any(
                float(torch.einsum("kd,dsf->ksf", mix, self.inputs[n]).norm()) > ZERO * self.inputs[n][0].numel() ** 0.5
                for n in self.tangents.nonlinear(node)
                if n in self.inputs
            )
            if enters and leaves != removing:
                out.append(f"{op_name(node.target)} at {module_of(node)}")  # type: ignore[arg-type]
        return tuple(dict.fromkeys(out))

    def parameters(self, some: Tensor) -> tuple[str, ...]:
        """Names of the parameters that move."""
        params = self.tangents.params
        parts = some.split([p.numel() for p in params.values()], dim=1)
        return tuple(n for n, p in zip(params, parts, strict=True) if float(p.norm()) > 1e-6)

    def is_table(self, some: Tensor) -> bool:
        """Whether a normalisation of few distinct rows gives a change that stretches: AᵀA ≠ 1 on its output."""
        mix = self._along(some)
        for node, tangent in self.outputs.items():
            if "norm" not in op_name(node.target):  # type: ignore[arg-type]
                continue
            value = self.tangents.values[node]
            n = value.shape[1]
            few = n + 1 < _distinct(value) <= (n + 1) * (n + 2) // 2
            if few and float(torch.einsum("kd,dsf->ksf", mix, tangent).norm()):
                return True
        return False

    @staticmethod
    def beyond(space: Tensor, known: Tensor) -> Tensor:
        """Orthonormal directions of a space that are orthogonal to a known part of it."""
        if not len(space) or not len(known):
            return space
        q = torch.linalg.qr(known.T)[0]
        rest = space - space @ q @ q.T
        _, values, right = torch.linalg.svd(rest, full_matrices=False)
        new: Tensor = right[values > 1e-6]
        return new


def _distinct(value: Tensor) -> int:
    return len(torch.unique(value.round(decimals=9), dim=0))


def _kernel(maps: list[Tensor], hidden: Tensor) -> Tensor:
    """Orthonormal directions on which maps (given by their values on the hidden ones) vanish."""
    gram = torch.zeros(len(hidden), len(hidden), dtype=hidden.dtype)
    for m in maps:
        gram += m @ m.T / m.shape[1]
    values, vectors = torch.linalg.eigh(gram)
    kernel: Tensor = vectors[:, values < ZERO**2].T @ hidden
    return kernel


def _is_product(node: fx.Node) -> bool:
    """Whether a node multiplies data by data, and not by a size."""
    sizes = {"rsqrt", "sqrt", "reciprocal", "softmax", "pow"}
    factors = {op_name(n.target) for n in node.all_input_nodes if callable(n.target)}
    return op_name(node.target) in BILINEAR - {"div"} and not factors & sizes  # type: ignore[arg-type]


def _only_size(node: fx.Node) -> bool:
    """Whether a node is a step of a norm that is written out, or a norm or softmax removes a part of it."""
    if op_name(node.target) in {"pow", "rsqrt", "sqrt", "reciprocal"}:  # type: ignore[arg-type]
        return True
    return _ends_in(node, "norm", {"mul", "view", "reshape", "to"}) or _ends_in(
        node, "softmax", {"mul", "div", "add", "masked_fill", "view", "reshape", "to"}
    )


def _ends_in(node: fx.Node, end: str, onward: set[str]) -> bool:
    """Whether everything that reads a node is one kind of operation, after some others."""
    readers = [(r, op_name(r.target) if callable(r.target) else "") for r in node.users]
    return bool(readers) and all(end in name or (name in onward and _ends_in(r, end, onward)) for r, name in readers)
