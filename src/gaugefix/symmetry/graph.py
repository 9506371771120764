"""A module as a flat list of operations: `torch.export` without decompositions.

Only structure is read, never weights, so modules on the meta device work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx, nn

from gaugefix.errors import TraceError
from gaugefix.symmetry.capture import capture

Kind = Literal["param", "buffer", "input", "const", "zeros", "op"]


@dataclass(eq=False)
class Value:
    """A tensor in the graph. Identity is equality: a tied parameter is one value.

    Attributes:
        name: node name; for parameters and buffers the dotted name in the module.
        shape: static shape.
        kind: where it comes from.
        is_float: whether its dtype is floating; integer tensors carry no gradient and no symmetry.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    is_float: bool = True

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}"


@dataclass(eq=False)
class Op:
    """One operation.

    Attributes:
        name: ATen name without namespace and overload, in-place underscore removed ("linear", "add").
        args: positional arguments with nodes replaced by `Value` (or tuples of them).
        kwargs: the same for keyword arguments.
        outputs: what it makes; several for split, unbind, ….
        place: module path for messages.
        in_place: whether it writes to its first argument.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]
    place: str = ""
    in_place: bool = False

    def arg(self, position: int, keyword: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(keyword, default)

    @property
    def out(self) -> Value:
        """The only (or first) output."""
        return self.outputs[0]

    def values(self) -> Iterator[Value]:
        """Every tensor argument, nested lists included."""
        yield from _flatten([*self.args, *self.kwargs.values()])


@dataclass(eq=False)
class Graph:
    """Operations in execution order.

    Attributes:
        ops: the operations.
        params: parameters by their first dotted name.
        aliases: other names of tied parameters -> the name in ``params``.
        inputs: tensor inputs of the module.
        outputs: tensors that the module returns, in pytree order.
        output_name: what `outputs` are, for people.
        notes: on how the graph was made, for people.
    """

    ops: list[Op]
    params: dict[str, Value]
    inputs: list[Value]
    outputs: list[Value]
    aliases: dict[str, str] = field(default_factory=dict)
    output_name: str = "output"
    notes: list[str] = field(default_factory=list)

    def freeze(self, names: set[str]) -> None:
        """Take parameters as constants: nothing may move them, and what they make of data is data.

        Args:
            names: of the parameters.
        """
        for name in names & self.params.keys():
            self.params.pop(name).kind = "buffer"


def _flatten(items: Any) -> Iterator[Value]:
    if isinstance(items, Value):
        yield items
    elif isinstance(items, list | tuple):
        for item in items:
            yield from _flatten(item)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, prefix: str = "") -> Graph:
    """Export a module and flatten the result.

    Args:
        model: any module; its mode, parameters and buffers are left as they were.
        args: example positional arguments.
        kwargs: example keyword arguments.
        prefix: taken off the front of parameter names.

    Returns:
        The graph.

    Raises:
        TraceError: if the module has lazy or complex parameters, or cannot be exported.
    """
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise TraceError(f"Parameter {name!r} is lazy (no shape yet). Run one forward pass first.")
        if p.is_complex():
            raise TraceError(f"Parameter {name!r} is {p.dtype}: complex parameters are not supported.")
    program, names, note = capture(model, args, kwargs or {})
    graph = _Reader(model, program, names).graph()
    graph.notes = [note] if note else []
    for v in graph.params.values():
        v.name = v.name.removeprefix(prefix)
    graph.params = {v.name: v for v in graph.params.values()}
    return graph


class _Reader:
    """Turns an exported program into a `Graph`."""

    def __init__(self, model: nn.Module, program: Any, output_names: list[str]) -> None:
        self.output_names = output_names
        self.program = program
        self.env: dict[fx.Node, Any] = {}
        self.ops: list[Op] = []
        first: dict[int, str] = {}
        self.aliases: dict[str, str] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            self.aliases[name] = first.setdefault(id(p), name)
        self.params: dict[str, Value] = {
            name: Value(name, tuple(p.shape), "param") for name, p in model.named_parameters()
        }

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        inputs: list[Value] = []
        for node in self.program.graph_module.graph.nodes:
            if node.op != "placeholder":
                continue
            target = node.name
            if target in signature.inputs_to_parameters:
                self.env[node] = self.params[self.aliases[_own(signature.inputs_to_parameters[target])]]
            elif target in signature.inputs_to_buffers:
                self.env[node] = self._value(node, "buffer", _own(signature.inputs_to_buffers[target]))
            elif isinstance(node.meta.get("val"), Tensor):
                lifted = target in signature.inputs_to_lifted_tensor_constants
                self.env[node] = self._value(node, "const" if lifted else "input")
                if not lifted:
                    inputs.append(self.env[node])
            else:
                self.env[node] = node.meta.get("val")
        outputs = self._run(self.program.graph_module, prefix="")
        used = {v for op in self.ops for v in op.values()} | set(_flatten(outputs))
        float_outputs = [v for v in _flatten(outputs) if v.is_float][: len(self.output_names)]
        return Graph(
            self.ops,
            {n: v for n, v in self.params.items() if v in used or v.is_float},
            inputs,
            float_outputs,
            {a: b for a, b in self.aliases.items() if a != b},
            ", ".join(self.output_names),
        )

    def _value(self, node: fx.Node, kind: Kind, name: str | None = None) -> Value:
        return _make_value(name or node.name, node.meta["val"], kind)

    def _run(self, module: fx.GraphModule, prefix: str) -> Any:
        """Read one graph (the top one, or an inlined sub-graph) whose placeholders are bound already."""
        result: Any = ()
        for node in module.graph.nodes:
            if node.op == "get_attr":
                attr = module
                for part in str(node.target).split("."):
                    attr = getattr(attr, part)
                self.env[node] = (
                    _make_value(f"{prefix}{node.target}", attr, "const") if isinstance(attr, Tensor) else attr
                )
            elif node.op == "call_function":
                self._call(node, prefix)
            elif node.op == "output":
                result = self._resolve(node.args[0])
        return result

    def _resolve(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return self.env[item]
        if isinstance(item, list | tuple):
            return type(item)(self._resolve(i) for i in item)
        return item

    def _call(self, node: fx.Node, prefix: str) -> None:
        target: Any = node.target
        args, kwargs = self._resolve(node.args), {k: self._resolve(v) for k, v in node.kwargs.items()}
        name = op_name(target)
        if name == "getitem":
            self.env[node] = args[0][args[1]]
            return
        if name.startswith("wrap_with_"):  # set_grad_enabled, autocast: a sub-graph with extra leading arguments
            self._inline(node, args, prefix)
            return
        outputs = node.meta.get("val")
        if outputs is None:  # asserts and other statements without a value
            return
        if not isinstance(outputs, Tensor | list | tuple):
            self.env[node] = outputs
            return
        many = isinstance(outputs, list | tuple)
        values = tuple(
            _make_value(f"{prefix}{node.name}{f'_{i}' if many else ''}", t, "op")
            for i, t in enumerate(outputs if many else [outputs])
            if isinstance(t, Tensor)
        )
        self.env[node] = values if many else values[0]
        in_place = getattr(getattr(target, "_schema", None), "is_mutable", False)
        self.ops.append(Op(name, tuple(args), kwargs, values, _place(node), in_place))

    def _inline(self, node: fx.Node, args: Any, prefix: str) -> None:
        at = next(i for i, a in enumerate(args) if isinstance(a, fx.GraphModule))
        inner = args[at]
        placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for placeholder, value in zip(placeholders, args[at + 1 :], strict=True):
            self.env[placeholder] = value
        self.env[node] = self._run(inner, f"{prefix}{node.name}.")


def _own(name: str) -> str:
    """The name in the user's module, without the wrapper."""
    return name.removeprefix("module.")


def _make_value(name: str, tensor: Tensor, kind: Kind) -> Value:
    return Value(name, tuple(int(n) for n in tensor.shape), kind, tensor.is_floating_point())


def op_name(target: Callable[..., Any]) -> str:
    """The bare ATen name of an operator: no namespace, overload or in-place underscore.

    Args:
        target: the target of a call_function node.

    Returns:
        For example "add" for ``aten.add_.Tensor``.
    """
    packet = getattr(target, "overloadpacket", None)
    name = str(getattr(packet or target, "__name__", target))
    return name.rstrip("_") if packet is not None and not name.startswith("_") else name


def _place(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return _own(str(path).replace("L['self'].", "").removeprefix("L['self']")).removeprefix("module")


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention kernels that can be differentiated twice and batched."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
