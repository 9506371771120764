"""Recurrent cells, written out in the operations that they stand for. Whole sequences (nn.LSTM) have no rule."""

from __future__ import annotations

from typing import Any

from gaugefix.symmetry.graph import Op, Value
from gaugefix.symmetry.lowering import RULES, Lowering, register_rule


class _Writer:
    """Applies the rules of ordinary operations to intermediate values of a compound one."""

    def __init__(self, op: Op, lower: Lowering) -> None:
        self.op, self.lower = op, lower

    def __call__(self, name: str, *args: Any, shape: tuple[int, ...] | None = None, out: Value | None = None) -> Value:
        first = next(a for a in args if isinstance(a, Value))
        made = out or self.lower.temp(shape or first.shape, f"{self.op.out.name}.{name}")
        RULES[name](Op(name, args, {}, (made,), self.op.place), self.lower)
        return made

    def gates(self, x: Value, weight: Value, bias: Value | None, n: int) -> list[Value]:
        """The n parts of a linear map."""
        whole = self("linear", x, weight, bias, shape=(*x.shape[:-1], weight.shape[0]))
        size = weight.shape[0] // n
        parts = tuple(self.lower.temp((*x.shape[:-1], size), f"{self.op.out.name}.gate") for _ in range(n))
        RULES["chunk"](Op("chunk", (whole, n, x.ndim - 1), {}, parts, self.op.place), self.lower)
        return list(parts)


def _arguments(op: Op) -> tuple[Value, Any, Value, Value, Value | None, Value | None]:
    x, state, w_x, w_h = op.args[:4]
    return x, state, w_x, w_h, op.arg(4, "b_ih"), op.arg(5, "b_hh")


@register_rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(op: Op, lower: Lowering) -> None:
    """H' = φ(W x + b + U h + c)."""
    x, h, w_x, w_h, b_x, b_h = _arguments(op)
    do = _Writer(op, lower)
    (a,), (b,) = do.gates(x, w_x, b_x, 1), do.gates(h, w_h, b_h, 1)
    do("tanh" if "tanh" in op.name else "relu", do("add", a, b), out=op.out)


@register_rule("gru_cell")
def gru_cell(op: Op, lower: Lowering) -> None:
    """H' = (1 − z) n + z h with n = tanh(xₙ + r hₙ)."""
    x, h, w_x, w_h, b_x, b_h = _arguments(op)
    do = _Writer(op, lower)
    (xr, xz, xn), (hr, hz, hn) = do.gates(x, w_x, b_x, 3), do.gates(h, w_h, b_h, 3)
    z = do("sigmoid", do("add", xz, hz))
    n = do("tanh", do("add", xn, do("mul", do("sigmoid", do("add", xr, hr)), hn)))
    do("add", do("mul", do("rsub", z, 1), n), do("mul", z, h), out=op.out)


@register_rule("lstm_cell")
def lstm_cell(op: Op, lower: Lowering) -> None:
    """C' = f c + i g, h' = o tanh(c')."""
    x, (h, c), w_x, w_h, b_x, b_h = _arguments(op)
    do = _Writer(op, lower)
    gates = [do("add", a, b) for a, b in zip(do.gates(x, w_x, b_x, 4), do.gates(h, w_h, b_h, 4), strict=True)]
    i, f, o = (do("sigmoid", gates[k]) for k in (0, 1, 3))
    new = do("add", do("mul", f, c), do("mul", i, do("tanh", gates[2])), out=op.outputs[1])
    do("mul", o, do("tanh", new), out=op.outputs[0])
