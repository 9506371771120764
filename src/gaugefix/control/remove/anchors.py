"""Weight decay towards a point instead of towards zero: what all forms of it share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaugefix.control.impose.decay import couples_decay
from gaugefix.errors import ControlError

Parameters = nn.Module | Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]]
Form = Literal["auto", "coupled", "decoupled"]


def named(params: Parameters) -> dict[str, nn.Parameter]:
    """Trainable floating-point parameters by name.

    Args:
        params: a model, parameters, or pairs of name and parameter.

    Returns:
        Parameters by name; those that came without one are ``"0.parameter"``, ….

    Raises:
        ControlError: if there is none, or one is on the meta device.
    """
    if isinstance(params, nn.Module):
        items: list[Any] = list(params.named_parameters())
    else:
        items = list(params)
    pairs = [item if isinstance(item, tuple) else (f"{k}.parameter", item) for k, item in enumerate(items)]
    found = {name: p for name, p in pairs if p.requires_grad and p.is_floating_point()}
    if not found:
        raise ControlError("There is no trainable floating-point parameter to decay.")
    if empty := [name for name, p in found.items() if p.is_meta]:
        raise ControlError(f"{empty[0]!r} is on the meta device and has no values. Move the model to a device first.")
    return found


def fan_ins(params: Parameters) -> dict[str, int]:
    """Fan-in of every parameter; of a one-dimensional one that of the weight beside it, else its number of entries."""
    items = named(params)
    own = {name: p.numel() // p.shape[0] for name, p in items.items() if p.ndim > 1 and p.shape[0]}
    beside: dict[str, int] = {}
    for name, fan in own.items():
        beside.setdefault(name.rpartition(".")[0], fan)
    return {name: own.get(name, beside.get(name.rpartition(".")[0], p.numel())) or 1 for name, p in items.items()}


class AnchoredDecay(ABC):
    """The penalty (λ/2) Σ D_i (θ_i − a_i)² as a hook of an optimizer; a subclass says what the anchors a are.

    Attributes:
        weight_decay: λ.
        params: the parameters, by name.
    """

    def __init__(self, params: Parameters, weight_decay: float) -> None:
        if not isinstance(weight_decay, int | float) or not math.isfinite(weight_decay) or weight_decay <= 0:
            raise ControlError(
                f"weight_decay must be a number in (0, inf), got {weight_decay!r}: without decay the anchor pulls "
                f"at nothing."
            )
        self.weight_decay = float(weight_decay)
        self.params = named(params)

    @abstractmethod
    def anchor(self, name: str) -> Tensor:
        """The point that a parameter decays to.

        Args:
            name: of the parameter.

        Returns:
            A tensor in its shape.
        """

    def metric(self, name: str) -> Tensor | None:
        """Weights D of the entries of a parameter.

        Args:
            name: of the parameter.

        Returns:
            Positive numbers in its shape, or None for ones.
        """
        del name
        return None

    def pull(self, name: str, at: Tensor | None = None) -> Tensor:
        """Gradient of the penalty, λ·D ⊙ (θ − a).

        Args:
            name: of the parameter.
            at: θ; by default the parameter as it is.

        Returns:
            A tensor in its shape.
        """
        offset = (self.params[name] if at is None else at).detach() - self.anchor(name)
        metric = self.metric(name)
        return self.weight_decay * (offset if metric is None else metric * offset)

    def penalty(self) -> Tensor:
        """(λ/2) Σ D(θ − a)² with gradient, for optimizers that evaluate the loss several times (LBFGS)."""
        terms = []
        for name, p in self.params.items():
            square, metric = (p - self.anchor(name)).square(), self.metric(name)
            terms.append((square if metric is None else metric * square).sum())
        return self.weight_decay / 2 * torch.stack(terms).sum()

    def attach(self, optimizer: torch.optim.Optimizer, form: Form = "auto") -> Callable[[], None]:
        """Apply the decay at every step of an optimizer.

        Args:
            optimizer: with ``weight_decay=0`` for these parameters.
            form: "coupled" adds the pull to the gradient, "decoupled" moves θ ← θ − lr·pull before the step; "auto" is
                what the optimizer does with its own weight decay.

        Returns:
            A function that takes the hook off again.

        Raises:
            ControlError: if a parameter is not in the optimizer or decays there already.
        """
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, p in self.params.items():
            if id(p) not in groups:
                raise ControlError(f"{name!r} is not in the optimizer, which must train what is decayed.")
            if groups[id(p)].get("weight_decay", 0.0):
                raise ControlError(
                    f"{name!r} has weight_decay {groups[id(p)]['weight_decay']:g} in the optimizer too, which pulls "
                    f"to zero. "
                    "Set it to 0 there."
                )
        if form not in {"auto", "coupled", "decoupled"}:
            raise ControlError(f"form must be 'auto', 'coupled' or 'decoupled', got {form!r}.")
        coupled = {
            key: form == "coupled" or (form == "auto" and couples_decay(optimizer, group))
            for key, group in groups.items()
        }

        @torch.no_grad()
        def before_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            del args, kwargs
            scaled = getattr(optimizer, "grad_scale", None) is not None
            lrs = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            for name, p in self.params.items():
                if p.grad is None:
                    continue  # not part of this step, as with the decay of torch
                if not coupled[id(p)]:
                    p.sub_(lrs[id(p)] * self.pull(name))
                elif scaled:
                    raise ControlError(
                        "The gradients are still multiplied by the scale of GradScaler. Call "
                        "scaler.unscale_(optimizer) "
                        'before scaler.step, or attach with form="decoupled".'
                    )
                else:
                    p.grad.add_(self.pull(name))

        return optimizer.register_step_pre_hook(before_step).remove

    def anchors(self) -> Iterator[tuple[str, Tensor]]:
        """All anchors.

        Yields:
            Name and point.
        """
        for name in self.params:
            yield name, self.anchor(name)
