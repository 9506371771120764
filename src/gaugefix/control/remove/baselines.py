"""Other ways to break symmetry or keep plasticity, to compare with: a frozen random part, decay to the start, noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gaugefix.control.remove.anchors import AnchoredDecay, Parameters, named
from gaugefix.errors import ControlError


class L2Init(AnchoredDecay):
    """Decay to the initial values, (λ/2)‖θ − θ_init‖² (regenerative regularisation).

    The same form as `SyreDecay` with θ₀ = θ_init, whose scale is that of the initialisation, about ten times larger.

    Args:
        params: a model, parameters, or pairs of name and parameter, as they are now.
        weight_decay: λ > 0.

    Raises:
        ControlError: if ``weight_decay`` is not positive, or there is nothing to decay.

    Cost: a copy of the parameters.

    Source: Kumar, Marklund and Van Roy 2023, "Maintaining plasticity via regenerative regularization".

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(4, 3)
        >>> detach = L2Init(model, weight_decay=1e-3).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    """

    def __init__(self, params: Parameters, weight_decay: float) -> None:
        super().__init__(params, weight_decay)
        self._start = {name: p.detach().clone() for name, p in self.params.items()}

    def anchor(self, name: str) -> Tensor:
        """The value at the start.

        Args:
            name: of the parameter.

        Returns:
            A tensor in its shape.
        """
        return self._start[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The anchors, for a checkpoint."""
        return dict(self._start)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The anchors of a checkpoint."""
        for name, value in state.items():
            self._start[name].copy_(value)


class WFix:
    """Hold a random part of the weights at random values, so that no two units can be exchanged.

    Args:
        params: a model, parameters, or pairs of name and parameter; only those with two dimensions or more are touched.
        fraction: of the entries of each, in (0, 1).
        scale: standard deviation of the values times √fan-in.
        seed: of the choice and the values, drawn anew at every step.

    Raises:
        ControlError: if a number is out of range, or there is no weight.

    Source: Lim et al. 2024, "The empirical impact of neural parameter symmetries, or lack thereof" (W-asymmetric
    networks).

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(40, 30)
        >>> detach = WFix(model, fraction=0.1).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    """

    def __init__(self, params: Parameters, *, fraction: float = 0.1, scale: float = 1.0, seed: int = 0) -> None:
        if not 0 < fraction < 1:
            raise ControlError(f"fraction must be in (0, 1), got {fraction!r}.")
        if not (math.isfinite(scale) and scale > 0):
            raise ControlError(f"scale must be a number in (0, inf), got {scale!r}.")
        self.params = {name: p for name, p in named(params).items() if p.ndim > 1}
        if not self.params:
            raise ControlError("There is no weight with two dimensions or more to hold.")
        self.fraction, self.scale, self.seed = fraction, scale, seed

    def held(self, name: str) -> tuple[Tensor, Tensor]:
        """Which entries of a weight are held, and at which values.

        Args:
            name: of the weight.

        Returns:
            A mask and values, both in its shape.
        """
        p = self.params[name]
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(p.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        mask = torch.rand(p.shape, generator=generator, device=p.device) < self.fraction
        values = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        return mask, values * (self.scale / math.sqrt(p.numel() // p.shape[0]))

    @torch.no_grad()
    def apply_(self) -> None:
        """Set the held entries to their values."""
        for name, p in self.params.items():
            mask, values = self.held(name)
            p.copy_(torch.where(mask, values, p))

    def attach(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Set the held entries now and after every step of an optimizer.

        Args:
            optimizer: that trains the parameters.

        Returns:
            A function that takes the hook off again.
        """
        self.apply_()
        return optimizer.register_step_post_hook(lambda *_: self.apply_()).remove


@torch.no_grad()
def shrink_and_perturb_(
    params: Parameters, *, shrink: float = 0.8, perturb: float = 0.1, generator: torch.Generator | None = None
) -> None:
    """θ ← shrink·θ + perturb·ξ/√fan-in, ξ ~ N(0, 1), in place: a partial restart, called from time to time.

    Biases and other one-dimensional parameters shrink and get no noise.

    Args:
        params: a model, parameters, or pairs of name and parameter.
        shrink: in [0, 1].
        perturb: ≥ 0.
        generator: source of the noise, on the device of the parameters; by default seeded with 0.

    Raises:
        ControlError: if a number is out of range.

    Source: Ash and Adams 2020, "On warm-starting neural network training".

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(4, 3)
        >>> shrink_and_perturb_(model, shrink=0.5, perturb=0.0)
    """
    if not 0 <= shrink <= 1:
        raise ControlError(f"shrink must be in [0, 1], got {shrink!r}.")
    if not (math.isfinite(perturb) and perturb >= 0):
        raise ControlError(f"perturb must be a number in [0, inf), got {perturb!r}.")
    for p in named(params).values():
        generator = generator or torch.Generator(p.device).manual_seed(0)
        p.mul_(shrink)
        if p.ndim > 1:
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            p.add_(noise, alpha=perturb / math.sqrt(p.numel() // p.shape[0]))
