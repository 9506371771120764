"""Entry-by-entry operations: activations, arithmetic, casts, dropout."""

from __future__ import annotations

from typing import Any

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import RULES, Lowering, aligned, register_rule

#: a lower bound that only guards against division by zero; like the ε of a normalisation it is neglected
NEGLIGIBLE = 1e-5

# name -> (degree of positive homogeneity or None, parity or None)
ACTIVATIONS: dict[str, tuple[float | None, str | None]] = {
    "relu": (1, None),
    "leaky_relu": (1, None),
    "rrelu": (1, None),
    "abs": (1, "even"),
    "sign": (0, "odd"),
    "tanh": (None, "odd"),
    "sin": (None, "odd"),
    "asinh": (None, "odd"),
    "atan": (None, "odd"),
    "erf": (None, "odd"),
    "hardtanh": (None, "odd"),
    "softsign": (None, "odd"),
    "tanhshrink": (None, "odd"),
    "softshrink": (None, "odd"),
    "hardshrink": (None, "odd"),
    "cos": (None, "even"),
    "cosh": (None, "even"),
    "square": (2, "even"),
    "sqrt": (0.5, None),
    "rsqrt": (-0.5, None),
    "reciprocal": (-1, "odd"),
    "log_sigmoid": (None, None),
    **dict.fromkeys(
        (
            "gelu", "silu", "sigmoid", "elu", "selu", "celu", "mish", "softplus", "relu6", "hardsigmoid", "hardswish",
            "exp", "log", "rsub_constant", "log1p", "expm1", "logsigmoid", "threshold",
        ),
        (None, None),
    ),
}  # fmt: skip


def _activation(op: Op, lower: Lowering) -> None:
    degree, parity = ACTIVATIONS[op.name]
    if op.name == "hardtanh" and op.arg(1, "min_val", -1.0) != -op.arg(2, "max_val", 1.0):
        parity = None
    name = "identity" if op.name in {"leaky_relu", "rrelu"} and op.arg(1, "negative_slope") == 1 else op.name
    lower.pointwise(op.args[0], op.out, name, degree=degree, parity=parity)


RULES.update(dict.fromkeys(ACTIVATIONS, _activation))


@register_rule(
    "dropout", "alpha_dropout", "feature_dropout", "detach", "alias", "to", "_to_copy", "lift_fresh_copy",
    "type_as", "float", "half", "bfloat16", "double", "identity", "lift", "checkpoint_name",
)  # fmt: skip
def copy(op: Op, lower: Lowering) -> None:
    """Operations that change no value (dropout is traced in eval mode)."""
    if not op.args[0].is_float:  # a comparison that becomes numbers
        lower.give_up(op, "turns a comparison into numbers")
        return
    lower.same(op.args[0], op.out)


def _is_tensor(item: Any) -> bool:
    return isinstance(item, Value)


@register_rule("add", "sub", "rsub")
def add(op: Op, lower: Lowering) -> None:
    """X + y with broadcasting; a constant that is not zero fixes scale and sign."""
    terms = [v for v in op.args[:2] if _is_tensor(v)]
    constant = next((v for v in op.args[:2] if not _is_tensor(v)), 0)
    if op.name == "rsub" and len(terms) == 1:
        constant = op.args[1]
    if len(terms) == 1 and constant != 0:
        lower.pointwise(terms[0], op.out, "add_constant")
        return
    alpha = op.arg(2, "alpha", 1)
    signs = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[op.name]
    coefficients = [c for c, v in zip(signs, op.args[:2], strict=True) if _is_tensor(v)]
    lower.sum([(v, aligned(v, op.out)) for v in terms], op.out, aligned(op.out, op.out), coefficients)


@register_rule("mul", "div", "true_divide", "multiply", "divide")
def mul(op: Op, lower: Lowering) -> None:
    """X * y or x / y with broadcasting; constants drop out."""
    factors = [v for v in op.args[:2] if _is_tensor(v)]
    if len(factors) == 1:
        if op.name.startswith(("div", "true")) and not _is_tensor(op.args[0]):
            lower.pointwise(factors[0], op.out, "reciprocal", degree=-1, parity="odd")
        else:
            number = next(float(v) for v in op.args[:2] if not _is_tensor(v))
            lower.same(factors[0], op.out, 1 / number if op.name.startswith(("div", "true")) and number else number)
        return
    x, y = factors
    if op.name.startswith(("div", "true")):
        if y.is_float and y.kind not in {"buffer", "const", "input"}:
            inverse = lower.temp(y.shape, f"{y.name}.inv")
            lower.pointwise(y, inverse, "reciprocal", degree=-1, parity="odd")
            y = inverse
        else:
            y = lower.use(y)
    if x is y:
        lower.pointwise(x, op.out, "square", degree=2, parity="even")
        return
    lower.product([(x, aligned(x, op.out)), (y, aligned(y, op.out))], op.out, aligned(op.out, op.out))


@register_rule("neg", "negative", "positive")
def neg(op: Op, lower: Lowering) -> None:
    """−x."""
    lower.same(op.args[0], op.out, 1.0 if op.name == "positive" else -1.0)


@register_rule("pow")
def power(op: Op, lower: Lowering) -> None:
    """X ** p for a number p."""
    x, p = op.args[0], op.args[1]
    if not _is_tensor(x) or _is_tensor(p):
        lower.give_up(op, "only powers with a constant exponent are understood")
        return
    parity = ("even" if p % 2 == 0 else "odd") if float(p).is_integer() else None
    lower.pointwise(x, op.out, "square" if p == 2 else f"pow{p:g}", degree=float(p), parity=parity)


@register_rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
    "randn_like", "rand_like",
)  # fmt: skip
def constant(op: Op, lower: Lowering) -> None:
    """New numbers (noise too) that depend on a parameter by their shape only."""
    op.out.kind = "const"


@register_rule("prelu")
def prelu(op: Op, lower: Lowering) -> None:
    """max(x, 0) + w min(x, 0) with one slope or one for each channel."""
    x, w, out = op.args[0], op.args[1], op.out
    up, down, sloped = (lower.temp(out.shape, f"{out.name}.{part}") for part in ("up", "down", "sloped"))
    lower.pointwise(x, up, "leaky_relu", degree=1)
    lower.pointwise(x, down, "leaky_relu", degree=1)
    lower.product(
        [(down, aligned(down, out)), (w, {1: 0} if w.shape != (1,) and out.ndim > 1 else {})],
        sloped,
        aligned(sloped, out),
    )
    lower.sum([(up, aligned(up, out)), (sloped, aligned(sloped, out))], out, aligned(out, out))


def _select(lower: Lowering, sources: list[Value], out: Value, name: str) -> None:
    """Each entry of out is an entry of one of the sources: linear in all of them together, but no sum."""
    picked = []
    for v in sources:
        part = lower.temp(v.shape, f"{out.name}.{name}")
        lower.pointwise(v, part, name, degree=1, parity="odd" if name == "where" else None)
        picked.append(part)
    lower.sum([(v, aligned(v, out)) for v in picked], out, aligned(out, out))


@register_rule("masked_fill", "where")
def masked(op: Op, lower: Lowering) -> None:
    """Entries replaced where a mask says so; axes on which the mask varies are pinned."""
    if op.name == "where":
        mask, sources = op.args[0], [v for v in op.args[1:3] if _is_tensor(v) and v.is_float]
        fill = next((v for v in op.args[1:3] if not _is_tensor(v)), 0)
    else:
        mask, sources, fill = op.args[1], [op.args[0]], op.args[2]
    varying = [d + op.out.ndim - mask.ndim for d in range(mask.ndim) if mask.shape[d] > 1]
    if isinstance(fill, int | float) and fill < -1e4:  # stands for −inf before a softmax: a shift passes through
        lower.same(sources[0], op.out)
    elif fill == 0 and not _is_tensor(fill):
        _select(lower, sources, op.out, "where")
    elif isinstance(fill, Value):  # a filling tensor is data
        _select(lower, [*sources, fill], op.out, "where")
    else:
        lower.pointwise(sources[0], op.out, "masked")
    lower.pin_dims(op.out, varying)


@register_rule("clamp", "clamp_min", "clamp_max", "clip", "maximum", "minimum")
def clamp(op: Op, lower: Lowering) -> None:
    """Clipping; max(x, 0) is ReLU."""
    tensors = [v for v in op.args if _is_tensor(v)]
    if len(tensors) == 2:  # max(x, y): positively homogeneous in both together
        _select(lower, tensors, op.out, op.name)
        return
    low, high = op.arg(1, "min"), op.arg(2, "max")
    if op.name == "clamp_max":
        low, high = None, low
    if isinstance(low, float) and 0 < low <= NEGLIGIBLE and high is None:
        low = 0  # an ε that keeps a divisor away from zero
    degree = 1 if {low, high} <= {0, None} else None
    parity = "odd" if low is not None and high is not None and low == -high else None
    name = "relu" if low == 0 and high is None else op.name
    lower.pointwise(op.args[0], op.out, name, degree=degree, parity=parity)
