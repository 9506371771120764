"""Cut weights in stages to a given fraction while training goes on, and hold what is cut at zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.control.impose.factors import imposed
from gaugefix.errors import ControlError

#: cuts between the first and the last
_STAGES = 10


class Thin:
    """Tighten a magnitude cut over all weights until a fraction is left; what is cut stays zero.

    After `collapse_`, or for any network: the penalty has shrunk the weights that matter little, and the weights that
    are left learn without it. At the first cut, which is made at once, ``start`` · ``keep`` of the weights stay; the
    fraction then falls by the same factor ten times. With a learning rate of the order of that of training the
    rest makes up for each cut; a single cut to 2 % is far worse. Weights are compared across tensors as they are.

    Args:
        model: without constraints; its weights are changed in place, now and at every step.
        keep: fraction in (0, 1] of the entries that is left in the end.
        steps: calls of `step` until the last cut. Leave as many steps again after it. 0 makes one cut at once.
        start: multiple of ``keep`` that stays at the first cut, at least 1.
        names: of the tensors, by default all floating-point parameters with two dimensions or more except embeddings.

    Attributes:
        density: fraction of the entries that may be nonzero now.

    Raises:
        ControlError: if a number is out of range, a name is unknown, or a constraint is imposed.

    Cost: a sort of all weights for each of the ten cuts, one product with a mask per step.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> thin = Thin(net, keep=0.1, steps=20)
        >>> for _ in range(20):
        ...     thin.step()  # after optimizer.step()
        >>> sum(int((layer.weight != 0).sum()) for layer in (net[0], net[2]))
        8
    """

    def __init__(
        self, model: nn.Module, *, keep: float, steps: int, start: float = 4.0, names: Sequence[str] | None = None
    ) -> None:
        if not 0 < keep <= 1:
            raise ControlError(f"keep must be in (0, 1], got {keep!r}.")
        if not isinstance(steps, int) or steps < 0:
            raise ControlError(f"steps must be an integer >= 0, got {steps!r}.")
        if not (math.isfinite(start) and start >= 1):
            raise ControlError(f"start must be a number >= 1, got {start!r}.")
        if found := imposed(model):
            raise ControlError(f"{found[0].name!r} is a product of factors; call impose.collapse_(model) first.")
        self._tensors = _tensors(model, names)
        self._keep, self._steps, self._start, self._done = keep, steps, start, 0
        self._masks = [torch.ones_like(t, dtype=torch.bool) for t in self._tensors.values()]
        self._cut()

    @property
    def density(self) -> float:
        """The fraction, of the schedule in stages."""
        if self._steps == 0:
            return self._keep
        stage = min(math.floor(_STAGES * self._done / self._steps), _STAGES)
        return float(min(self._keep * self._start ** (1 - stage / _STAGES), 1.0))

    def step(self) -> None:
        """Go on by one step: cut if a stage begins, and set to zero what the optimizer has moved."""
        before = self.density
        self._done += 1
        if self.density < before:
            self._cut()
        else:
            self._hold()

    @torch.no_grad()
    def _cut(self) -> None:
        self._hold()
        sizes = torch.cat([t.detach().abs().float().flatten().cpu() for t in self._tensors.values()])
        alive = torch.cat([m.flatten().cpu() for m in self._masks])
        sizes[~alive] = -1.0
        kept = torch.zeros_like(alive)
        kept[sizes.topk(max(round(self.density * len(sizes)), 1)).indices] = True
        parts = (kept & alive).split([m.numel() for m in self._masks])
        self._masks = [p.view_as(m).to(m.device) for p, m in zip(parts, self._masks, strict=True)]
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        for tensor, mask in zip(self._tensors.values(), self._masks, strict=True):
            tensor.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and what is cut."""
        return {"done": self._done, "masks": dict(zip(self._tensors, self._masks, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where another one was."""
        self._done = int(state["done"])
        self._masks = [state["masks"][name].to(t.device) for name, t in self._tensors.items()]
        self._hold()


def _tensors(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    params = dict(model.named_parameters())
    if names is None:
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        names = [n for n, p in params.items() if p.ndim > 1 and p.is_floating_point() and id(p) not in tables]
    if unknown := [n for n in names if n not in params]:
        raise ControlError(f"There is no parameter {unknown[0]!r}; there are {', '.join(params)}.")
    if not names:
        raise ControlError("There is no tensor with two dimensions or more to cut; give names=[…].")
    return {n: params[n] for n in names}
