"""Linear maps: linear, addmm, matmul and its relatives, einsum."""

from __future__ import annotations

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import Lowering, aligned, register_rule
from gaugefix.symmetry.records import Label


def _affine(lower: Lowering, x: Value, weight: Value, bias: Value | None, out: Value, transposed: bool) -> None:
    """Out = x Wᵀ + b for W (out, in), or x W + b for W (in, out)."""
    lead: dict[Label, int] = {f"lead{d}": d for d in range(x.ndim - 1)}
    w_in, w_out = (0, 1) if transposed else (1, 0)
    weight_labels: dict[Label, int] = {"in": w_in}
    out_labels: dict[Label, int] = dict(lead)
    if out.ndim == x.ndim:  # a 1-d weight gives no output axis
        weight_labels["out"] = w_out
        out_labels["out"] = x.ndim - 1
    plain = out if bias is None else lower.temp(out.shape, f"{out.name}.mm")
    lower.product([(x, {**lead, "in": x.ndim - 1}), (weight, weight_labels)], plain, out_labels)
    if bias is not None:
        bias_dims: dict[Label, int] = {}
        for label, d in out_labels.items():
            at = d - out.ndim + bias.ndim
            if at >= 0 and bias.shape[at] == out.shape[d]:
                bias_dims[label] = at
        lower.sum([(plain, out_labels), (bias, bias_dims)], out, out_labels)


@register_rule("linear")
def linear(op: Op, lower: Lowering) -> None:
    """F.linear(x, weight, bias)."""
    _affine(lower, op.args[0], op.args[1], op.arg(2, "bias"), op.out, transposed=False)


@register_rule("addmm")
def addmm(op: Op, lower: Lowering) -> None:
    """Bias + x @ weight; the scalars alpha and beta change nothing here."""
    _affine(lower, op.args[1], op.args[2], op.args[0], op.out, transposed=True)


def contract(lower: Lowering, x: Value, y: Value, out: Value) -> None:
    """Out = x @ y with the batching rules of torch.matmul."""
    x_labels: dict[Label, int] = {"k": x.ndim - 1}
    y_labels: dict[Label, int] = {"k": y.ndim - 2 if y.ndim > 1 else 0}
    out_labels: dict[Label, int] = {}
    if y.ndim > 1:
        y_labels["col"] = y.ndim - 1
        out_labels["col"] = out.ndim - 1
    if x.ndim > 1:
        x_labels["row"] = x.ndim - 2
        out_labels["row"] = out.ndim - (2 if y.ndim > 1 else 1)
    n_batch = out.ndim - len(out_labels)
    for d in range(n_batch):
        label = f"batch{d}"
        out_labels[label] = d
        for v, labels, used in ((x, x_labels, 2), (y, y_labels, 2)):
            at = d - n_batch + (v.ndim - used)
            if at >= 0 and v.shape[at] == out.shape[d]:
                labels[label] = at
    lower.product([(x, x_labels), (y, y_labels)], out, out_labels)


@register_rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(op: Op, lower: Lowering) -> None:
    """X @ y."""
    contract(lower, op.args[0], op.args[1], op.out)


@register_rule("baddbmm")
def baddbmm(op: Op, lower: Lowering) -> None:
    """Input + batch1 @ batch2; an input of weight beta = 0 is ignored."""
    plain = lower.temp(op.out.shape, f"{op.out.name}.mm")
    contract(lower, op.args[1], op.args[2], plain)
    beta, alpha = op.arg(3, "beta", 1), op.arg(4, "alpha", 1)
    terms, coefficients = [(plain, aligned(plain, op.out))], [float(alpha)]
    if beta != 0:
        terms.append((op.args[0], aligned(op.args[0], op.out)))
        coefficients.append(float(beta))
    lower.sum(terms, op.out, aligned(op.out, op.out), coefficients)


@register_rule("einsum")
def einsum(op: Op, lower: Lowering) -> None:
    """torch.einsum without repeated indices in one operand; an ellipsis covers leading dimensions."""
    equation: str = op.args[0].replace(" ", "")
    operands = op.args[1] if isinstance(op.args[1], list | tuple) else op.args[1:]
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if not right and "->" not in equation:
        letters = sorted({c for c in left if c.isalpha() and left.count(c) == 1})
        right = ("..." if "..." in left else "") + "".join(letters)
    if any(len(set(t.replace("...", ""))) != len(t.replace("...", "")) for t in terms):
        lower.give_up(op, f"einsum {equation!r} takes a diagonal")
        return
    lower.product([(v, _letters(t, v)) for t, v in zip(terms, operands, strict=True)], op.out, _letters(right, op.out))


def _letters(term: str, value: Value) -> dict[Label, int]:
    before, dots, after = term.partition("...")
    labels: dict[Label, int] = {c: i for i, c in enumerate(before)}
    if dots:
        n = value.ndim - len(before) - len(after)
        labels |= {f"...{n - i}": len(before) + i for i in range(n)}
    labels |= {c: value.ndim - len(after) + i for i, c in enumerate(after)}
    return {c: d for c, d in labels.items() if value.shape[d] != 1}
