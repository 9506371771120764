"""Values inside a module and how they move along some directions of its parameters."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gaugefix.errors import MeasurementError
from gaugefix.symmetry.graph import math_attention, op_name
from gaugefix.symmetry.verify import laboratory_copy, no_lower, to_double
from gaugefix.testing.flat import SPREADS, redraw

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


class Tangents:
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
        for node in list(self.graph.graph.nodes):  # a model that asks for float32 inside is written down with it
            node.args, node.kwargs = (fx.node.map_aggregate(part, no_lower) for part in (node.args, node.kwargs))
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                self.graph.graph.erase_node(node)
        self.graph.recompile()
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

    def nonlinear(self, node: fx.Node) -> list[fx.Node]:
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
        readers = {node: self.nonlinear(node) for node in self.graph.graph.nodes}
        enter = list(dict.fromkeys(n for data in readers.values() for n in data))
        leave = [node for node, data in readers.items() if data]
        wanted = list(dict.fromkeys([*enter, *leave]))
        if not wanted:  # a linear function of its inputs
            return {}, {}, {}
        names = list(self.params)
        tangents: dict[fx.Node, list[Tensor]] = {n: [] for n in wanted}
        values: dict[fx.Node, list[Tensor]] = {n: [] for n in wanted}
        drawn = rounds = 0
        while drawn < samples:
            spread = SPREADS[rounds % len(SPREADS)]
            rounds += 1
            data = pytree.tree_leaves(pytree.tree_map(lambda t, s=spread: redraw(t, generator, s), (args, kwargs)))

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


def _features(value: Tensor) -> Tensor:
    """Samples in rows, features in columns: the last dimension, with the heads; or the channels of an image."""
    if value.ndim < 2:
        return value.reshape(-1, 1)
    if value.ndim == 4 and value.shape[-1] == value.shape[-2]:
        return value.movedim(1, -1).reshape(-1, value.shape[1])
    if value.ndim == 4:
        return value.movedim(1, 2).flatten(2).flatten(0, 1)
    return value.reshape(-1, value.shape[-1])


def module_of(node: fx.Node) -> str:
    """Path of the module in which a node was made."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(v[0]) for v in stack.values()] if stack else []
    return names[-1] if names and names[-1] else node.name
