"""Look-up tables."""

from __future__ import annotations

from gaugefix.symmetry.graph import Op
from gaugefix.symmetry.lowering import Lowering, register_rule
from gaugefix.symmetry.records import Label


@register_rule("embedding")
def embedding(op: Op, lower: Lowering) -> None:
    """Rows of a table chosen by data: the row axis is pinned, the column axis goes on."""
    table, out = op.args[0], op.out
    lower.pin_dims(table, [0])
    columns: dict[Label, int] = {"column": 1}
    lower.sum([(table, columns)], out, {"column": out.ndim - 1})
