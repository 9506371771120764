"""Why a flat direction is in no symmetry: what moves inside the module along it, measured.

Along a hidden direction the values inside the module move although the outputs do not. Three tests, each linear in the
direction, so that they are ranks: nothing that enters a nonlinear operation moves (the change is undone between linear
maps); nothing that leaves one moves (the operation removes it); what leaves one moves by an affine function of itself
(a change of basis that goes through it).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gaugefix.errors import MeasurementError
from gaugefix.symmetry.generic import generator_span
from gaugefix.symmetry.graph import math_attention, op_name
from gaugefix.symmetry.symmetries import Symmetries
from gaugefix.symmetry.verify import judgeable_parameters, laboratory_copy, to_double
from gaugefix.testing.flat import flat_directions, redraw

#: operations that are linear in every argument that can depend on data
LINEAR = {
    "linear", "addmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "add", "sub", "rsub",
    "neg", "view", "reshape", "_unsafe_view", "transpose", "permute", "t", "cat", "stack", "split", "chunk", "unbind",
    "split_with_sizes", "select", "slice", "index", "index_select", "mean", "sum", "flatten", "unflatten", "squeeze",
    "unsqueeze", "contiguous", "clone", "expand", "repeat", "to", "alias", "detach", "dropout", "embedding",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "roll", "flip", "getitem", "_to_copy", "identity",
}  # fmt: skip
#: linear in the argument that depends on data if the other does not
BILINEAR = {"mul", "matmul", "mm", "bmm", "einsum", "div"}
#: a tangent smaller than this, relative to its direction, is zero; a residual larger than this is not affine
ZERO = 1e-5


@dataclass(frozen=True)
class Cause:
    """A measured reason for hidden directions.

    Attributes:
        kind: "point": absent at other points of parameter space (units that are dead or always on). "linear": undone
            between linear maps, such as the null space of one behind another. "removed": it enters nonlinear
            operations and does not leave them. "basis": what leaves every nonlinear operation moves by an affine
            function of itself. "table": the same with a change that keeps lengths at the rows of a table only, of
            which there are too few to forbid it. "unknown": none of these.
        count: independent directions.
        where: the operations that remove them, or through which they go, as ``"op at module"``.
        parameters: in which they move.
    """

    kind: str
    count: int
    where: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Where the directions that no symmetry explains come from.

    Attributes:
        hidden: number at the point with the fewest, of those looked at.
        points: number of points looked at.
        causes: for all hidden directions at that point, and for those that only exist at others.
        reliable: whether every count was.
    """

    hidden: int
    points: int
    causes: tuple[Cause, ...]
    reliable: bool

    @property
    def explained(self) -> bool:
        """Whether every direction has a cause."""
        return self.reliable and all(c.kind != "unknown" for c in self.causes)


def explain_hidden(
    found: Symmetries,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    points: int = 12,
    samples: int = 400,
    seed: int = 0,
    max_parameters: int = 6000,
) -> Explanation:
    """Find the cause of every flat direction that is in no symmetry.

    Flat directions are counted at several points; what does not exist at all of them depends on the point. For the
    others the module is run op by op with their tangents.

    Args:
        found: symmetries of the module.
        model: the module.
        args: example positional arguments.
        kwargs: example keyword arguments.
        points: points of parameter space at most; fewer if one of them has no hidden direction.
        samples: inputs on which tangents are compared, at least.
        seed: of parameters and inputs.
        max_parameters: as for `flat_directions`.

    Returns:
        The causes.

    Raises:
        MeasurementError: if the module is too large.

    Cost: `flat_directions` at every point, then one jvp of the module for each hidden direction and batch of inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gaugefix.symmetry import find_symmetries
        >>> mlp = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3))
        >>> explain_hidden(find_symmetries(mlp, (torch.randn(8, 4),)), mlp, (torch.randn(8, 4),)).hidden
        0
    """  # noqa: DOC502
    best: tuple[int, Tensor, dict[str, Tensor]] | None = None
    most, done, reliable = 0, 0, True
    for i in range(points):
        params = judgeable_parameters(model, args, kwargs or {}, torch.Generator().manual_seed(seed + i))
        flat = flat_directions(
            model, args, kwargs, params=params, seed=seed + i + 1, max_parameters=max_parameters, basis=True
        )
        if not flat.reliable:
            continue
        assert flat.basis is not None
        span = generator_span(found, params)
        rest = flat.basis - flat.basis @ span.T @ span
        _, values, right = torch.linalg.svd(rest, full_matrices=False)
        hidden = right[values > 1e-6]
        done, most = done + 1, max(most, len(hidden))
        if best is None or len(hidden) < best[0]:
            best = len(hidden), hidden, params
        if best[0] == 0 and most > 0:
            break
    if best is None:
        return Explanation(0, 0, (), reliable=False)
    count, hidden, params = best
    causes = [Cause("point", most - count)] if most > count else []
    if count:
        causes += _Tangents(model, args, dict(kwargs or {}), params, hidden, samples, seed).causes()
    return Explanation(count, done, tuple(causes), reliable)


class _Tangents:
    """Values and tangents of the operations of a module along some directions."""

    def __init__(
        self, model: nn.Module, args: Any, kwargs: Any, params: dict[str, Tensor], hidden: Tensor, samples: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.params, self.hidden = params, hidden
        lab = laboratory_copy(model)
        args, kwargs = to_double(args), to_double(kwargs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(lab, args, kwargs, strict=False)
        except Exception as error:  # export raises whatever it likes
            raise MeasurementError(
                f"the module cannot be exported, so its tangents cannot be taken: {error}"
            ) from error
        self.graph = program.graph_module
        targets = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target is not None}
        state = {**dict(lab.named_buffers()), **program.constants}
        self.slots: list[tuple[str, Any]] = []  # what goes into the placeholders: a parameter, a constant, or data
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                target = targets.get(node.name)
                shared = self._shared(lab, target)
                kind = "param" if shared in params else "const" if target in state else "data"
                self.slots.append((kind, shared if kind == "param" else state.get(str(target))))
        self.depends = self._dependence()
        self.inputs, self.outputs, self.values = self._run(args, kwargs, samples, seed)

    @staticmethod
    def _shared(lab: nn.Module, target: str | None) -> str | None:
        """The name under which a tied parameter is listed."""
        every = dict(lab.named_parameters(remove_duplicate=False))
        if target not in every:
            return target
        return next(n for n, p in lab.named_parameters() if p is every[target])

    def _dependence(self) -> set[fx.Node]:
        """Nodes that depend on data."""
        places = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        data = {n for n, (kind, _) in zip(places, self.slots, strict=True) if kind == "data"}
        for node in self.graph.graph.nodes:
            if any(n in data for n in node.all_input_nodes):
                data.add(node)
        return data

    def _nonlinear(self, node: fx.Node) -> list[fx.Node]:
        """The data that a node treats nonlinearly."""
        if node.op != "call_function" or node not in self.depends:
            return []
        name = op_name(node.target) if callable(node.target) else ""
        name = getattr(node.target, "__name__", name) if "getitem" in str(node.target) else name
        data = [n for n in node.all_input_nodes if n in self.depends]
        if name in LINEAR or "getitem" in str(node.target):
            return []
        return [] if name in BILINEAR and len(data) == 1 else data

    def _run(
        self, args: Any, kwargs: Any, samples: int, seed: int
    ) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, Tensor], dict[fx.Node, Tensor]]:
        """Tangents ``(directions, samples, features)`` at inputs and outputs of nonlinear operations, and values."""
        generator = torch.Generator().manual_seed(seed)
        readers = {node: self._nonlinear(node) for node in self.graph.graph.nodes}
        enter = list(dict.fromkeys(n for data in readers.values() for n in data))
        leave = [node for node, data in readers.items() if data]
        wanted = list(dict.fromkeys([*enter, *leave]))
        if not wanted:  # a linear function of its inputs
            return {}, {}, {}
        names = list(self.params)
        tangents: dict[fx.Node, list[Tensor]] = {n: [] for n in wanted}
        values: dict[fx.Node, list[Tensor]] = {n: [] for n in wanted}
        drawn = 0
        while drawn < samples:
            data = pytree.tree_leaves(pytree.tree_map(lambda t: redraw(t, generator), (args, kwargs)))

            def run(*point: Tensor, data: list[Any] = data) -> list[Tensor]:
                here, flowing = dict(zip(names, point, strict=True)), iter(data)
                given = [here[v] if k == "param" else v if k == "const" else next(flowing) for k, v in self.slots]
                keep = _Keeper(self.graph, set(wanted))
                with math_attention():
                    keep.run(*given)
                return [keep.kept[n] for n in wanted if n in keep.kept]

            rows = []
            for direction in self.hidden:
                parts = direction.split([p.numel() for p in self.params.values()])
                step = tuple(d.reshape(p.shape) for d, p in zip(parts, self.params.values(), strict=True))
                value, tangent = torch.func.jvp(run, tuple(self.params.values()), step)[:2]
                rows.append(tangent)
            for i, node in enumerate(n for n in wanted if isinstance(n.meta.get("val"), Tensor)):
                values[node].append(_features(value[i]))
                tangents[node].append(torch.stack([_features(r[i]) for r in rows]))
            drawn += max(1, min(len(v[-1]) for v in values.values() if v))
        joined = {n: torch.cat(t, dim=1) for n, t in tangents.items() if t}
        return (
            {n: joined[n] for n in enter if n in joined},
            {n: joined[n] for n in leave if n in joined},
            {n: torch.cat(v) for n, v in values.items() if v},
        )

    # tests

    def causes(self) -> list[Cause]:
        """Rank by rank: what each test explains of what the ones before left."""
        still_in = _kernel([t.flatten(1) for t in self.inputs.values()], self.hidden)
        still_out = _kernel([t.flatten(1) for t in self.outputs.values()], self.hidden)
        seen = {n: t for n, t in self.outputs.items() if not self._only_size(n)}
        affine = _kernel([self._residual(n, t).flatten(1) for n, t in seen.items()], self.hidden)
        out = []
        if len(still_in):
            out.append(Cause("linear", len(still_in), (), self._parameters(still_in)))
        removed = _beyond(still_out, still_in)
        if len(removed):
            out.append(Cause("removed", len(removed), self._places(removed, removing=True), self._parameters(removed)))
        basis = _beyond(affine, torch.cat([still_in, removed]))
        if len(basis):
            kind = "table" if self._is_table(basis) else "basis"
            out.append(Cause(kind, len(basis), self._places(basis, removing=False), self._parameters(basis)))
        rest = len(self.hidden) - len(still_in) - len(removed) - len(basis)
        if rest:
            out.append(Cause("unknown", rest, (), self._parameters(self.hidden)))
        return out

    def _only_size(self, node: fx.Node) -> bool:
        """Whether a node is a step of a norm that is written out, or a norm or softmax removes a part of it."""
        if op_name(node.target) in {"pow", "rsqrt", "sqrt", "reciprocal"}:  # type: ignore[arg-type]
            return True
        return _ends_in(node, "norm", {"mul", "view", "reshape", "to"}) or _ends_in(
            node, "softmax", {"mul", "div", "add", "masked_fill", "view", "reshape", "to"}
        )

    def _residual(self, node: fx.Node, tangent: Tensor) -> Tensor:
        """What of a tangent is no affine function of the value."""
        value = self.values[node]
        one = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
        if len(torch.unique(value.round(decimals=9), dim=0)) <= one.shape[1]:
            return tangent  # too few points: anything is affine on them
        basis = torch.linalg.svd(one, full_matrices=False)
        q = basis[0][:, basis[1] > 1e-10 * basis[1][0]]
        rest: Tensor = tangent - torch.einsum("sk,tk,dtf->dsf", q, q, tangent)
        return rest

    def _along(self, some: Tensor) -> Tensor:
        """Directions as combinations of the hidden ones."""
        return some @ self.hidden.T

    def _places(self, some: Tensor, *, removing: bool) -> tuple[str, ...]:
        """Operations that end the directions, or through which they go."""
        mix = self._along(some)
        out = []
        for node, tangent in self.outputs.items():
            leaves = float(torch.einsum("kd,dsf->ksf", mix, tangent).norm()) > ZERO * tangent[0].numel() ** 0.5
            enters = any(
                float(torch.einsum("kd,dsf->ksf", mix, self.inputs[n]).norm()) > ZERO * self.inputs[n][0].numel() ** 0.5
                for n in self._nonlinear(node)
                if n in self.inputs
            )
            if enters and leaves != removing:
                out.append(f"{op_name(node.target)} at {_module(node)}")  # type: ignore[arg-type]
        return tuple(dict.fromkeys(out))

    def _parameters(self, some: Tensor) -> tuple[str, ...]:
        parts = some.split([p.numel() for p in self.params.values()], dim=1)
        return tuple(n for n, p in zip(self.params, parts, strict=True) if float(p.norm()) > 1e-6)

    def _is_table(self, some: Tensor) -> bool:
        """Whether a normalisation of few distinct rows gives a change that stretches: AᵀA ≠ 1 on its output."""
        mix = self._along(some)
        for node, tangent in self.outputs.items():
            name = op_name(node.target)  # type: ignore[arg-type]
            if "norm" not in name:
                continue
            value = self.values[node]
            n = value.shape[1]
            rows = torch.unique(value.round(decimals=9), dim=0)
            if n + 1 < len(rows) <= (n + 1) * (n + 2) // 2 and float(torch.einsum("kd,dsf->ksf", mix, tangent).norm()):
                return True
        return False


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps some values."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run and remember."""
        if n.op == "call_function" and not n.users and op_name(n.target).rstrip("_") == "add":  # type: ignore[arg-type]
            return None  # a counter of batches
        result = super().run_node(n)
        if n in self.wanted and isinstance(result, Tensor):
            self.kept[n] = result
        return result


def _ends_in(node: fx.Node, end: str, onward: set[str]) -> bool:
    """Whether everything that reads a node is one kind of operation, after some others."""
    readers = [(r, op_name(r.target) if callable(r.target) else "") for r in node.users]
    return bool(readers) and all(end in name or (name in onward and _ends_in(r, end, onward)) for r, name in readers)


def _features(value: Tensor) -> Tensor:
    """Samples in rows, features in columns: the last dimension, with the heads; or the channels of an image."""
    if value.ndim < 2:
        return value.reshape(-1, 1)
    if value.ndim == 4 and value.shape[-1] == value.shape[-2]:
        return value.movedim(1, -1).reshape(-1, value.shape[1])
    if value.ndim == 4:
        return value.movedim(1, 2).flatten(2).flatten(0, 1)
    return value.reshape(-1, value.shape[-1])


def _kernel(maps: list[Tensor], hidden: Tensor) -> Tensor:
    """Orthonormal directions on which maps (given by their values on the hidden ones) vanish."""
    gram = torch.zeros(len(hidden), len(hidden), dtype=hidden.dtype)
    for m in maps:
        gram += m @ m.T / m.shape[1]
    values, vectors = torch.linalg.eigh(gram)
    kernel: Tensor = vectors[:, values < ZERO**2].T @ hidden
    return kernel


def _beyond(space: Tensor, known: Tensor) -> Tensor:
    """Orthonormal directions of a space that are orthogonal to a known part of it."""
    if not len(space) or not len(known):
        return space
    q = torch.linalg.qr(known.T)[0]
    rest = space - space @ q @ q.T
    _, values, right = torch.linalg.svd(rest, full_matrices=False)
    beyond: Tensor = right[values > 1e-6]
    return beyond


def _module(node: fx.Node) -> str:
    """Path of the module in which a node was made."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(v[0]) for v in stack.values()] if stack else []
    return names[-1] if names and names[-1] else node.name
