"""The autograd graph that a forward pass records, and every place where parameters enter it.

The graph is the whole truth about the gradient: a parameter that is used twice, or by a function instead of its module,
shows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gaugefix.measure.parameter_uses import RULES, Consumers, Node, Rule, UnknownUseError, Use


class GradientGraph:
    """The graph that a backward pass takes, from a tensor down to the leaves it was computed from.

    Args:
        output: the tensor.
    """

    def __init__(self, output: Tensor) -> None:
        self._consumers: dict[Node, list[tuple[Node, int]]] = {}
        self._leaves: dict[int, Node] = {}
        stack, seen = [output.grad_fn], {output.grad_fn}
        while stack:
            node = stack.pop()
            for i, (below, _) in enumerate(node.next_functions if node is not None else ()):
                if below is None:
                    continue
                self._consumers.setdefault(below, []).append((node, i))
                if below not in seen:
                    seen.add(below)
                    stack.append(below)
                    if hasattr(below, "variable"):
                        self._leaves[id(below.variable)] = below

    @torch.no_grad()
    def uses(self, params: Mapping[str, Tensor]) -> dict[str, list[Use] | None]:
        """Every use of every parameter.

        Args:
            params: leaves by name.

        Returns:
            By name; None if one of its uses is not known, an empty list if it is not used.
        """
        return {name: _uses(p, self._leaves.get(id(p)), self._consumers) for name, p in params.items()}

    def lowest(self, nodes: Iterable[Node]) -> set[Node]:
        """Those of some nodes below which there is none of the others.

        Args:
            nodes: of this graph.

        Returns:
            A backward pass that reaches these goes through all.
        """
        nodes = list(nodes)
        stack, above = list(nodes), set[Node]()
        while stack:
            for node, _ in self._consumers.get(stack.pop(), ()):
                if node not in above:
                    above.add(node)
                    stack.append(node)
        return {node for node in nodes if node not in above}


def _uses(param: Tensor, leaf: Node, consumers: Consumers) -> list[Use] | None:
    found: list[Use] = []
    try:
        for node, i in consumers.get(leaf, []):
            if _transposes(node):
                found += [_rule(above, j)(param, above, j, True, consumers) for above, j in consumers[node]]
            else:
                found.append(_rule(node, i)(param, node, i, False, consumers))
    except (UnknownUseError, RuntimeError, AttributeError):  # the saved tensors may be gone or changed in place
        return None
    return found


def _transposes(node: Node) -> bool:
    """Whether a node is the transposition of a matrix."""
    name = node.name()
    return name == "TBackward0" or (name == "PermuteBackward0" and [d % 2 for d in node._saved_dims] == [1, 0])


def _rule(node: Node, i: int) -> Rule:
    rule = RULES.get((node.name(), i))
    if rule is None:
        raise UnknownUseError(node.name())
    return rule
