"""find_symmetries: the public entry of the search."""

from __future__ import annotations

from typing import Any

from torch import nn

from gaugefix.symmetry.symmetries import Symmetries


def find_symmetries(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    verify: bool | str = "auto",
) -> Symmetries:
    """Find the symmetries of a module (engine under construction)."""
    raise NotImplementedError
