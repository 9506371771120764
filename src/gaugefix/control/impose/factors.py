"""What every factorised tensor has in common: its factors, their weight decay, how a value is split into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Factorised(nn.Module):
    """Base of the parametrisations of this room: a tensor as a function of factors that feel weight decay.

    A subclass has ``forward(*originals) -> Tensor`` and ``right_inverse(Tensor) -> originals``, and says in `decayed`
    which of the originals are factors.

    Args:
        strength: coefficient of the penalty on the tensor, and PyTorch's weight decay λ of each factor.

    Attributes:
        strength: as given.
        decayed: positions of the originals that are factors.
    """

    decayed: tuple[int, ...] = (0, 1)

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def own_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Factors that are not originals of the tensor.

        Yields:
            Name and parameter.
        """
        yield from ()

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        return f"strength={self.strength:g}"


@dataclass(frozen=True, eq=False)
class Imposed:
    """One tensor of a model that is a function of factors.

    Attributes:
        name: dotted name that the tensor had as a parameter.
        module: that holds it.
        tensor_name: its name in that module.
        kind: the parametrisation.
        originals: its arguments.
    """

    name: str
    module: nn.Module
    tensor_name: str
    kind: Factorised
    originals: tuple[nn.Parameter, ...]

    @property
    def factors(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """The parameters that feel the weight decay ``kind.strength``, by name."""
        own = tuple((f"{self.name}: {name}", p) for name, p in self.kind.own_factors())
        return tuple((f"{self.name}: factor {i}", self.originals[i]) for i in self.kind.decayed) + own

    @property
    def value(self) -> Tensor:
        """The tensor itself."""
        tensor: Tensor = getattr(self.module, self.tensor_name)
        return tensor


def imposed(model: nn.Module) -> tuple[Imposed, ...]:
    """The factorised tensors of a model, in the order of its modules."""
    found = []
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        parametrizations: Any = module.parametrizations
        for tensor_name, steps in parametrizations.items():
            if isinstance(steps[0], Factorised):
                originals = (steps.original,) if hasattr(steps, "original") else _originals(steps)
                name = f"{path}.{tensor_name}" if path else tensor_name
                found.append(Imposed(name, module, tensor_name, steps[0], originals))
    return tuple(found)


def _originals(steps: Any) -> tuple[nn.Parameter, ...]:
    return tuple(getattr(steps, f"original{i}") for i in range(steps.ntensors))


def positive_factor(size: Tensor, spread: float) -> Tensor:
    """The scalar factor a > 0 of a product of given size: a² − (size/a)² = c with c = spread·rms(size).

    The charge a² − b² of the two factors is conserved by gradient flow and shrinks with weight decay. With c > 0 the
    other factor can pass through zero, so a sign can flip, and a weight that is zero can grow; with c = 0 both factors
    would sit on a mirror plane there.

    Args:
        size: |w|, norms of groups, or singular values.
        spread: charge relative to the root mean square of the sizes.

    Returns:
        The factor, in the shape of ``size``.
    """
    rms = size.square().mean().sqrt()
    charge = spread * torch.where(rms > 0, rms, torch.ones_like(rms))
    return ((charge + torch.sqrt(charge**2 + 4 * size**2)) / 2).sqrt()


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which products of factors keep the precision of the parameters under ``torch.autocast``."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
