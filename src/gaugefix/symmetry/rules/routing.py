"""Mixture of experts: rows of a batch are sent to experts that data choose, and come back.

Which expert a row meets is a matter of data, but every row meets *some* expert. So between the first and the last
grouped product each value gets a shadow with the experts as a leading axis, as if every row met all of them; the rules
of ordinary operations act on the shadows, and where the rows are put back in order, one expert is picked. The choice
itself (top-k) pins the axis of experts: their permutation is a symmetry that is not seen.
"""

from __future__ import annotations

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import RULES, Lowering, register_rule
from gaugefix.symmetry.records import Label
from gaugefix.symmetry.symmetries import OpaqueOp

#: operations that act on a shadow as they do on the value, with the position of their dimension argument
_PASSING = {
    "chunk": 2, "split": 2, "split_with_sizes": 2, "silu": None, "gelu": None, "relu": None, "sigmoid": None,
    "tanh": None, "mul": None, "add": None, "to": None, "clamp": None, "dropout": None, "contiguous": None,
}  # fmt: skip


@register_rule("grouped_mm", "_grouped_mm", "grouped_mm_fallback")
def grouped_mm(op: Op, lower: Lowering) -> None:
    """Row n of x times the matrix of its expert, W ``(experts, in, out)``."""
    x, weight = op.args[:2]
    source = lower.routed.get(x, x)
    out = lower.temp((weight.shape[0], *op.out.shape), f"{op.out.name}.experts")
    lead: dict[Label, int] = {"expert": 0} if source is not x else {}
    n = source.ndim - 2
    lower.product(
        [(source, {**lead, "row": n, "in": n + 1}), (weight, {"expert": 0, "in": 1, "out": 2})],
        out,
        {"expert": 0, "row": 1, "out": 2},
    )
    lower.pin_dims(weight, [0])
    lower.routed[op.out] = out


@register_rule("routed")
def routed(op: Op, lower: Lowering) -> None:
    """Apply an operation to the shadows of its routed arguments, or pick one expert and go on without them."""
    if op.name not in _PASSING or not op.outputs:
        pick(op, lower)
        return
    args = list(op.args)
    at = _PASSING[op.name]
    if at is not None and len(args) > at:
        args[at] = args[at] % op.args[0].ndim - op.args[0].ndim  # counted from the end, it is the same in the shadow
    shadows = [lower.routed.get(a, a) if isinstance(a, Value) else a for a in args]
    experts = next(lower.routed[a].shape[0] for a in op.values() if a in lower.routed)
    outputs = tuple(lower.temp((experts, *v.shape), f"{v.name}.experts") for v in op.outputs)
    RULES[op.name](Op(op.name, tuple(shadows), op.kwargs, outputs, op.place), lower)
    lower.routed.update(zip(op.outputs, outputs, strict=True))


def pick(op: Op, lower: Lowering) -> None:
    """Every row keeps the result of its expert; then the operation acts as on any value."""
    for value in op.values():
        shadow = lower.routed.pop(value, None)
        if shadow is not None:
            labels: dict[Label, int] = {d: d + 1 for d in range(value.ndim)}
            lower.pin_dims(shadow, [0])
            lower.sum([(shadow, labels)], value, {d: d for d in range(value.ndim)})
    rule = RULES.get(op.name)
    if rule is None:
        lower.give_up(op, "no rule for this operation")
    else:
        rule(op, lower)


@register_rule("topk")
def topk(op: Op, lower: Lowering) -> None:
    """The largest entries: which ones is a matter of data, so the axis is pinned and scales are fixed."""
    x = op.args[0]
    dim = op.arg(2, "dim", -1) % x.ndim
    fixed = lower.temp(x.shape, f"{op.out.name}.ranked")
    lower.pointwise(x, fixed, "topk")
    keep: dict[Label, int] = {d: d for d in range(x.ndim) if d != dim}
    lower.sum([(fixed, keep)], op.out, keep)
    lower.pin_dims(x, [dim])
    lower.pin_dims(op.out, [dim])
    lower.opaque.append(OpaqueOp(op.name, op.place or op.out.name, "chooses by data: the axis that it ranks is pinned"))


@register_rule("index")
def index(op: Op, lower: Lowering) -> None:
    """Positions of one dimension chosen by an integer tensor; the other dimensions go on."""
    x, indices = op.args[:2]
    given = [d for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or indices[given[0]].is_float or op.out.ndim != x.ndim - 1 + indices[given[0]].ndim:
        lower.give_up(op, "only one dimension can be indexed by a tensor")
        return
    (dim,), more = given, indices[given[0]].ndim - 1
    rest = [d for d in range(x.ndim) if d != dim]
    before: dict[Label, int] = {d: d for d in rest}
    after: dict[Label, int] = {d: d if d < dim else d + more for d in rest}
    lower.pin_dims(x, [dim])
    lower.sum([(x, before)], op.out, after)
    lower.pin_dims(op.out, range(dim, dim + more + 1))
