"""The table of exponents, relation by relation."""

from __future__ import annotations

import pytest

from gaugefix.theory import canonical_exponents, deep_linear_exponents


@pytest.mark.parametrize(
    ("outgoing", "row"),
    [
        ("rga_out", (None, (1, 2), (-1, 0))),
        ("rwa_out", ((0, -1), None, (0, 0))),
        ("gwa_out", ((2, 1), (1, 1), None)),
    ],
)
def test_the_table_of_exponents(outgoing, row):
    assert tuple(canonical_exponents(outgoing, f"{name}_in") for name in ("rga", "rwa", "gwa")) == row


def test_a_deep_linear_network_is_in_the_table():
    """The middle layer of three: output gradients and input features both go with the weights."""
    assert deep_linear_exponents(1, 3) == canonical_exponents("gwa_out", "rwa_in")


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(ValueError, match="rga_out"):
        canonical_exponents("rga_in", "rga_in")
    with pytest.raises(ValueError, match="layer"):
        deep_linear_exponents(3, 3)
