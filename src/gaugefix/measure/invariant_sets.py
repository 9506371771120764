"""Sets of weights that SGD never leaves once it is on them, named by layers: for models you know by heart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import nn

from gaugefix.errors import MeasurementError
from gaugefix.symmetry import Mirror, Slice


@dataclass(frozen=True)
class InvariantSet(ABC):
    """The plane of a reflection of the units between two layers.

    Attributes:
        layer_in: name of the layer that produces the units (rows of its weight, its bias).
        layer_out: name of the layer that consumes them (columns of its weight).
    """

    layer_in: str
    layer_out: str

    @abstractmethod
    def _vector(self, size: int) -> tuple[np.ndarray, str, str]:
        """Direction over the units, name and kind of the mirror."""

    def mirror(self, model: nn.Module) -> Mirror:
        """The reflection, as `gaugefix.find_symmetries` would give it. That it is a symmetry is not checked here.

        Args:
            model: has the two layers.

        Returns:
            The mirror.

        Raises:
            MeasurementError: if a layer has no weight, or their widths differ.
        """
        params = dict(model.named_parameters())
        names = f"{self.layer_in}.weight", f"{self.layer_out}.weight"
        if missing := [n for n in names if n not in params]:
            raise MeasurementError(f"{type(self).__name__}: the model has no parameter {missing[0]!r}.")
        size = params[names[0]].shape[0]
        if params[names[1]].ndim < 2 or params[names[1]].shape[1] != size:
            raise MeasurementError(
                f"{type(self).__name__}: {names[0]!r} has {size} rows, {names[1]!r} shape "
                f"{tuple(params[names[1]].shape)}; its second dimension must be as long."
            )
        index = np.arange(size).reshape(1, -1, 1)
        slices = [Slice(names[0], 0, index, "write"), Slice(names[1], 1, index, "read")]
        if f"{self.layer_in}.bias" in params:
            slices.insert(1, Slice(f"{self.layer_in}.bias", 0, index, "write"))
        v, name, kind = self._vector(size)
        return Mirror(f"{self.layer_in}: {name}", tuple(slices), 0, v, kind)

    def _unit(self, size: int, *units: int) -> None:
        for j in units:
            if not 0 <= j < size:
                raise MeasurementError(f"{type(self).__name__}: unit {j} is not in [0, {size}).")


@dataclass(frozen=True)
class ZeroNeuron(InvariantSet):
    """Unit j is zero: its incoming weights, bias and outgoing weights. For odd activations.

    Attributes:
        j: the unit.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> ZeroNeuron("0", "2", 1).mirror(model).codim(dict(model.named_parameters()))
        6
    """

    j: int

    def _vector(self, size: int) -> tuple[np.ndarray, str, str]:
        self._unit(size, self.j)
        return np.eye(size)[self.j], f"{self.j} = 0", "sign"


@dataclass(frozen=True)
class TiedNeurons(InvariantSet):
    """Units i and j are equal. For every activation.

    Attributes:
        i: one unit.
        j: the other.
    """

    i: int
    j: int

    def _vector(self, size: int) -> tuple[np.ndarray, str, str]:
        self._unit(size, self.i, self.j)
        if self.i == self.j:
            raise MeasurementError(f"TiedNeurons needs two different units, got i = j = {self.i}.")
        return (np.eye(size)[self.i] - np.eye(size)[self.j]) / np.sqrt(2), f"{self.i} = {self.j}", "swap"


@dataclass(frozen=True)
class ZeroRank(InvariantSet):
    """The product of two linear layers lacks the direction v of the units between them. For no activation.

    Attributes:
        v: over the units, of any length; by default the first unit.
    """

    v: tuple[float, ...] = ()

    def _vector(self, size: int) -> tuple[np.ndarray, str, str]:
        v = np.array(self.v, dtype=float) if self.v else np.eye(size)[0]
        if v.shape != (size,) or not np.linalg.norm(v) > 0:
            raise MeasurementError(f"ZeroRank: v must have {size} entries, not all zero, got {self.v!r}.")
        return v / np.linalg.norm(v), "rank − 1", "rank"
