"""Growing an axis class: where the entries of added units go in every parameter it occurs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import SymmetryError
from gaugefix.symmetry.units import Slice, Units

#: a place in the grown dimension: after which old position, new or not, which new unit, which entry
_Key = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Growth:
    """An axis class with further units, and how its parameters change.

    Attributes:
        units: the wider class; in every fiber the last ``n`` units are new.
        n: number of new units in each fiber.
        sources: for every parameter, pairs of a dimension and the old position of each new one, −1 for new entries.
    """

    units: Units
    n: int
    sources: Mapping[str, tuple[tuple[int, np.ndarray], ...]]

    @property
    def added(self) -> Units:
        """The new units alone, with slices into the grown parameters."""
        start = self.units.size - self.n
        slices = tuple(replace(s, index=s.index[:, start:]) for s in self.units.slices)
        return replace(self.units, size=self.n, slices=slices)

    def apply(self, param: str, tensor: Tensor, fill: float = 0.0) -> Tensor:
        """A grown copy of a parameter.

        Args:
            param: its name.
            tensor: its value.
            fill: value of the new entries.

        Returns:
            The tensor, larger along the dimensions of the class.
        """
        for dim, source in self.sources[param]:
            at = torch.from_numpy(source).to(tensor.device)
            tensor = tensor.index_select(dim, at.clamp(min=0)).index_fill(dim, (at < 0).nonzero()[:, 0], fill)
        return tensor


def grow_units(units: Units, shapes: Mapping[str, Sequence[int]], n: int) -> Growth:
    """Add units at the end of every fiber of a class.

    Args:
        units: the class.
        shapes: of the parameters, by name.
        n: number of new units in each fiber.

    Returns:
        The growth; no tensor is touched. New entries lie where the layout of the class continues: behind the last unit
        of a layer, of each head, of each block of a flattened channel.

    Raises:
        SymmetryError: if ``n`` < 1, or the entries of a class do not lie in a regular pattern.

    Example:
        >>> index = np.arange(4).reshape(2, 2, 1)  # two heads of two
        >>> grown = grow_units(Units("h", 2, 2, (Slice("w", 0, index, "write"),)), {"w": (4,)}, 1)
        >>> grown.apply("w", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([1., 2., 0., 3., 4., 0.])
    """
    if n < 1:
        raise SymmetryError(f"grow_units: the number of new units must be at least 1, got {n!r}.")
    places: dict[tuple[str, int], list[Slice]] = {}
    for s in units.slices:
        places.setdefault((s.param, s.dim), []).append(s)
    sources: dict[str, list[tuple[int, np.ndarray]]] = {}
    indices: dict[int, np.ndarray] = {}
    for (param, dim), slices in places.items():
        length = int(shapes[param][dim])
        new = {id(s): _new_keys(s, units.name, shapes[param], n) for s in slices}
        keys: set[_Key] = {(p, 0, 0, 0) for p in range(length)}
        for array in new.values():
            keys.update(map(tuple, array.reshape(-1, 4).tolist()))
        order = sorted(keys)
        position = {key: i for i, key in enumerate(order)}
        sources.setdefault(param, []).append((dim, np.array([k[0] if not k[1] else -1 for k in order])))
        for s in slices:
            old = np.vectorize(lambda p, at=position: at[int(p), 0, 0, 0])(s.index)
            added = np.array([position[tuple(k)] for k in new[id(s)].reshape(-1, 4).tolist()])
            indices[id(s)] = np.concatenate([old, added.reshape(len(old), n, -1)], axis=1)
    if any(d in s.others for (param, d) in places for s in units.slices if s.param == param):
        raise SymmetryError(f"{units.name}: a slice is restricted along a dimension that grows.")
    wide = tuple(Slice(s.param, s.dim, indices[id(s)], s.role, s.others) for s in units.slices)
    return Growth(replace(units, size=units.size + n, slices=wide), n, {k: tuple(v) for k, v in sources.items()})


def _new_keys(s: Slice, name: str, shape: Sequence[int], n: int) -> np.ndarray:
    """Where the entries of new units belong, ``(fibers, n, entries, 4)``."""
    for d, positions in s.others.items():
        same = len(positions) == 1 or bool((s.index == s.index[:1]).all())
        if len(np.unique(positions)) < shape[d] or not same:
            raise SymmetryError(f"{name}: {s.param!r} belongs to the class in a part of dimension {d} only.")
    fibers, units, entries = s.index.shape
    stride = int(s.index[0, 1, 0] - s.index[0, 0, 0]) if units > 1 else entries
    regular = s.index[:, :1] + np.arange(units)[:, None] * stride
    if stride < 1 or not np.array_equal(regular, s.index):
        raise SymmetryError(f"{name}: the entries of {s.param!r} along dimension {s.dim} follow no regular pattern.")
    first = s.index[:, 0]  # (fibers, entries)
    low = (first - s.index.min()) % stride
    keys = np.empty((fibers, n, entries, 4), dtype=np.int64)
    keys[..., 0] = (first - low + units * stride - 1)[:, None]
    keys[..., 1] = 1
    keys[..., 2] = np.arange(n)[:, None]
    keys[..., 3] = low[:, None]
    return keys
