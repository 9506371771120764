"""Remove every mirror symmetry at once: weight decay towards a fixed random point."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaugefix.control.remove.anchors import AnchoredDecay, Parameters, fan_ins, named
from gaugefix.errors import ControlError
from gaugefix.measure import OHessian, Record
from gaugefix.symmetry import Mirror


@dataclass(frozen=True)
class Displacement(Record):
    """Where a formerly collapsed solution goes when the decay is no longer towards zero.

    Attributes:
        name: of the mirror.
        coordinates: predicted normal coordinates z = Oᵀθ at the new minimum, ``(k,)``.
        norm: their length.
        stable: whether H_O + λ is positive definite; if not, the plane repels the run without help and the linear
            prediction means nothing.
        valid: whether the prediction holds: stable, on the plane, and a full converged block.
        reason: why not.
    """

    name: str
    coordinates: np.ndarray
    norm: float
    stable: bool
    valid: bool
    reason: str = ""


class SyreDecay(AnchoredDecay):
    """Decay to a random point θ₀ that is drawn once, so that no mirror symmetry of the loss survives.

    The regulariser is (λ/2) Σ D_i (θ_i − θ₀_i)², θ₀ ~ N(0, σ²), σ = sigma0/√fan-in. A mirror plane is no longer where
    the gradient vanishes: the force on it is λ‖Oᵀθ₀‖ (`escape_force`), so units do not stay dead, equal, or rank
    deficient, and relearning after a collapse takes at most about log(1/σ) / growth rate steps. Inference does not
    change: the model has its own weights. ``sigma_d`` > 0 makes D_i ∈ (1 − sigma_d, 1 + sigma_d) distinct, which
    removes the uncountably many mirrors of rotation symmetries too.

    The point is drawn anew from the seed at every use, which costs a normal number per parameter and step and no
    memory; with ``store=True`` it is kept. The decay acts only while there is a learning rate, and its force is λσ:
    with a small λ a larger ``sigma0`` may be needed. Harmless up to σ ≈ 0.2 in the paper's ResNet-18 (their number).

    Args:
        params: a model, parameters, or pairs of name and parameter.
        weight_decay: λ > 0 as in torch, (λ/2)‖θ − θ₀‖²; the paper's γ is λ/2.
        sigma0: scale of the point, ≥ 0.
        sigma_d: spread of D, in [0, 1).
        seed: of the point.
        absolute: standard deviation sigma0 for every entry, whatever its fan-in.
        store: keep the point in memory.

    Raises:
        ControlError: if a number is out of range, or there is nothing to decay.

    Source: arXiv 2408.15495.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)  # weight_decay=0: the hook does it
        >>> syre = SyreDecay(model, weight_decay=1e-3, seed=0)
        >>> detach = syre.attach(sgd)
    """

    def __init__(
        self,
        params: Parameters,
        weight_decay: float,
        *,
        sigma0: float = 0.01,
        sigma_d: float = 0.0,
        seed: int = 0,
        absolute: bool = False,
        store: bool = False,
    ) -> None:
        super().__init__(named(params).items(), weight_decay)
        if not isinstance(sigma0, int | float) or not math.isfinite(sigma0) or sigma0 < 0:
            raise ControlError(f"sigma0 must be a number in [0, inf), got {sigma0!r}.")
        if not isinstance(sigma_d, int | float) or not 0 <= sigma_d < 1:
            raise ControlError(f"sigma_d must be in [0, 1), got {sigma_d!r}: the metric has to be positive.")
        self.sigma0, self.sigma_d, self.seed, self.absolute, self.store = sigma0, sigma_d, seed, absolute, store
        self._fan_in = fan_ins(self.params.items())
        self._kept: dict[str, Tensor] = {}
        if store:
            self._kept = dict(self.anchors())

    def _generator(self, name: str, purpose: str) -> torch.Generator:
        """A source of randomness that depends on the seed and the name, not on the order of the parameters."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}/{name}".encode()).digest()
        return torch.Generator(self.params[name].device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def anchor(self, name: str) -> Tensor:
        """θ₀ of a parameter.

        Args:
            name: of the parameter.

        Returns:
            A tensor in its shape.
        """
        p = self.params[name]
        if name in self._kept:
            self._kept[name] = self._kept[name].to(p)
            return self._kept[name]
        drawn = torch.randn(p.shape, generator=self._generator(name, "point"), dtype=p.dtype, device=p.device)
        point: Tensor = drawn * (self.sigma0 if self.absolute else self.sigma0 / math.sqrt(self._fan_in[name]))
        return point

    def metric(self, name: str) -> Tensor | None:
        """D of a parameter, uniform in (1 − sigma_d, 1 + sigma_d).

        Args:
            name: of the parameter.

        Returns:
            A tensor in its shape, or None if ``sigma_d`` is 0.
        """
        if not self.sigma_d:
            return None
        p = self.params[name]
        u = torch.rand(p.shape, generator=self._generator(name, "metric"), dtype=p.dtype, device=p.device)
        return 1 + self.sigma_d * (2 * u - 1)

    def escape_force(self, mirror: Mirror) -> Tensor:
        """The force off the plane of a mirror, −Oᵀ∇ at the point of the plane nearest to the parameters.

        The loss has no normal gradient there, so this is all of it: λOᵀθ₀ for D = 1, of length Ω(λσ).

        Args:
            mirror: of the model that the parameters are from.

        Returns:
            Normal coordinates, ``(k,)``.

        Raises:
            ControlError: if a parameter of the mirror is not decayed here.

        Source: arXiv 2408.15495, corollary on the escape from symmetric points.
        """  # noqa: DOC502
        on_plane = mirror.project(self._of(mirror))
        return -mirror.coordinates({name: self.pull(name, on_plane[name]) for name in mirror.parameters})

    def predicted_displacement(self, mirror: Mirror, block: OHessian) -> Displacement:
        """Where the minimum that was on the plane goes: z = (H_O + λ)⁻¹ λOᵀθ₀, to first order in θ₀.

        Close to the critical weight decay, where H_O + λ is nearly singular, a small θ₀ moves it far.

        Args:
            mirror: its symmetry was responsible for the collapse.
            block: `o_hessian` of the mirror at the collapsed solution, with the full matrix.

        Returns:
            The prediction with its validity. D is taken as 1.

        Raises:
            ControlError: if the block is not of this mirror, or has no matrix.

        Source: arXiv 2408.15495; the formula is derived here.
        """
        if block.matrix is None or block.name != mirror.name:
            raise ControlError(
                f"predicted_displacement needs the full block of {mirror.name!r}, got one of {block.name!r}"
                f"{'' if block.matrix is not None else ' without a matrix'}. Use o_hessian(task, mirror)."
            )
        force = self.weight_decay * mirror.coordinates(
            {name: self.anchor(name) for name in mirror.parameters}
        ).detach().cpu().double().numpy()  # fmt: skip
        shifted = block.matrix + self.weight_decay * np.eye(len(force))
        stable = bool(np.linalg.eigvalsh(shifted)[0] > 0)
        z = np.linalg.solve(shifted, force)
        reason = "" if stable else "the plane repels at this weight decay"
        if not reason and block.distance > 1e-6:
            reason = f"the model is not on the plane (distance {block.distance:.1e})"
        if not reason and not block.converged:
            reason = "the Hessian block has not converged"
        return Displacement(mirror.name, z, float(np.linalg.norm(z)), stable, not reason, reason)

    def _of(self, mirror: Mirror) -> dict[str, Tensor]:
        missing = [name for name in mirror.parameters if name not in self.params]
        if missing:
            raise ControlError(
                f"{missing[0]!r} of mirror {mirror.name!r} is not decayed here; it may stay on its plane."
            )
        return {name: self.params[name].detach() for name in mirror.parameters}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on with the same point.

        Returns:
            Plain numbers and the kind of device that the point is drawn on; with ``store=True`` also the point, under
            the key "anchors".
        """
        device = next(iter(self.params.values())).device.type
        keys = ("weight_decay", "sigma0", "sigma_d", "seed", "absolute")
        state = {key: getattr(self, key) for key in keys} | {"device": device}
        return state | {"anchors": dict(self._kept)} if self.store else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the point of a checkpoint.

        Args:
            state: from `state_dict`.

        Raises:
            ControlError: if the point was drawn on another kind of device, where the numbers of a seed differ.
        """
        device = next(iter(self.params.values())).device.type
        if state["device"] != device and ("anchors" not in state or state["sigma_d"]):
            raise ControlError(
                f"The point was drawn on {state['device']!r} and the parameters are on {device!r}, where the same "
                f"seed gives "
                "other numbers. Made with store=True (and sigma_d=0) a checkpoint holds the point itself."
            )
        for key in ("weight_decay", "sigma0", "sigma_d", "seed", "absolute"):
            setattr(self, key, state[key])
        self._kept = dict(state.get("anchors", {}))
        self.store = bool(self._kept)
