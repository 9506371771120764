"""Plain-data export shared by every result of a measurement."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor


class Record:
    """Mixin of the frozen result dataclasses: `to_dict` gives types that JSON knows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Returns:
            One key per field; arrays become lists, numbers that are not finite become None.

        Raises:
            TypeError: if the class is not a dataclass.
        """
        if not is_dataclass(self):
            raise TypeError(f"{type(self).__name__} must be a dataclass.")
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def plain(value: Any) -> Any:
    """Turn a value into types that JSON knows.

    Args:
        value: a number, string, array, tensor, record, or a nesting of them.

    Returns:
        The same with arrays as lists and non-finite numbers as None.

    Example:
        >>> plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2),)})
        {'a': [1.0, None], 'b': [2]}
    """
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v) for v in value]
    return value
