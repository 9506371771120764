"""The law of the balance during training: what one step of SGD must do to every charge, held against what it did.

Booked at a logging step, from the weights and the gradients before the optimizer steps; checked against the weights one
step later. Three statements are told apart, so that a message can name the cause:

- the identity of the symmetry, ⟨u, g_u⟩ = ⟨w, g_w⟩ for the gradients of every batch: fails if the pair has none,
  whatever the optimizer;
- the law, Q' as `predict_charge_step` and `predict_momentum_charge_step` say (arXiv 2308.06671, exact discrete law);
- the norms of both sides, which follow for SGD from the gradients alone: fail if the step was not made of them, as when
  gradients are clipped after the monitor has read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gaugefix.theory import predict_charge_step, predict_momentum_charge_step

#: relative errors above this are violations
VIOLATED = 0.1
#: why there is neither law nor identity: gradients that nobody clears, or none at all
FROZEN = "a parameter is frozen or belongs to another optimizer"
#: the identity is held against its parts plus this share of their largest possible size, which covers bfloat16
_NOISE = 1e-2

Sums = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SGDSettings:
    """What the law needs to know of the optimizer.

    Attributes:
        lr: η.
        weight_decay: λ.
        momentum: μ.
    """

    lr: float
    weight_decay: float
    momentum: float


@dataclass(frozen=True, eq=False)
class Booked:
    """What one step must do to the charges of one symmetry.

    Attributes:
        charge: ``(n,)`` Q after the step (of the shifted parameters, with momentum).
        plus: ``(n,)`` squared norm of the positive side after the step.
        minus: of the negative side.
        movement: ``(n,)`` size of the terms of which the change of Q consists.
        side_movement: of those of which the changes of the two norms consist.
        shift: ημ/(1−μ).
    """

    charge: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    movement: np.ndarray
    side_movement: np.ndarray
    shift: float


def sgd_settings(optimizers: Sequence[torch.optim.Optimizer], params: Sequence[torch.Tensor]) -> SGDSettings | str:
    """The settings of plain SGD for some parameters.

    Args:
        optimizers: of the run.
        params: those of one charge.

    Returns:
        The settings, or why the law does not apply.
    """
    groups = {id(p): (o, g) for o in optimizers for g in o.param_groups for p in g["params"]}
    found: list[tuple[Any, Any]] = [groups[id(p)] for p in params if id(p) in groups]
    if not optimizers:
        return "no optimizer was given"
    if len(found) < len(params):
        return FROZEN
    kinds = {type(o).__name__ for o, _ in found if type(o) is not torch.optim.SGD}
    if kinds:
        return f"the law holds for SGD, the optimizer is {', '.join(sorted(kinds))}"
    for option in ("nesterov", "dampening", "maximize"):
        if any(g.get(option) for _, g in found):
            return f"the law has no form for SGD with {option}"
    settings = {(float(g["lr"]), float(g["weight_decay"]), float(g["momentum"])) for _, g in found}
    if len(settings) > 1:
        return "its parameters have different learning rates or weight decays"
    return SGDSettings(*settings.pop())


def identity_error(plus: Sums, minus: Sums) -> float:
    """|⟨u, g_u⟩ − ⟨w, g_w⟩| over the class, relative to its parts; 0 for a symmetric pair, of order 1 for others.

    Args:
        plus: sums of the positive side, "pp", "pg" and "gg".
        minus: of the negative side.

    Returns:
        The ratio; 0 if there is no gradient.
    """
    gap = np.abs(plus["pg"] - minus["pg"]).sum()
    largest = np.sqrt(plus["pp"] * plus["gg"]) + np.sqrt(minus["pp"] * minus["gg"])
    scale = (np.abs(plus["pg"]) + np.abs(minus["pg"]) + _NOISE * largest).sum()
    return float(gap / scale) if scale > 0 else 0.0


def book(plus: Sums, minus: Sums, settings: SGDSettings, resolution: float) -> Booked:
    """Write down what the next step must do.

    Args:
        plus: sums of the positive side: "pp", "pg", "gg", and with momentum "pm", "mg", "mm".
        minus: of the negative side.
        settings: of the optimizer.
        resolution: relative error of a squared norm, by the precision of the weights.

    Returns:
        The prediction.
    """
    lr, decay, mu = settings.lr, settings.weight_decay, settings.momentum
    a = lr / (1 - mu)
    sides = [_side(s, lr, decay, mu) for s in (plus, minus)]
    floor = resolution * (plus["pp"] + minus["pp"])
    first = sum(2 * a * np.abs(s["pg"]) for s in (plus, minus))
    second = sum(a**2 * s["gg"] for s in (plus, minus))
    charge = plus["pp"] - minus["pp"]
    if not mu:
        pulls = plus["gg"] - minus["gg"]
        after = predict_charge_step(charge, pulls, lr=lr, weight_decay=decay)
    else:
        shift = a * mu
        shifted = _shifted(plus, shift) - _shifted(minus, shift)
        full = _full(plus, decay) - _full(minus, decay)
        cross = (plus["mg"] + decay * plus["pm"]) - (minus["mg"] + decay * minus["pm"])
        after = predict_momentum_charge_step(shifted, charge, full, cross, lr=lr, momentum=mu, weight_decay=decay)
        floor = floor + resolution * shift**2 * (plus["mm"] + minus["mm"])
    return Booked(after, sides[0][0], sides[1][0], first + second + floor, sides[0][1] + sides[1][1] + floor, a * mu)


def check(booked: Booked, plus: Sums, minus: Sums) -> tuple[float, float]:
    """Hold a prediction against the weights after the step.

    Args:
        booked: the prediction.
        plus: sums of the positive side after the step: "pp", and with momentum "pm", "mm".
        minus: of the negative side.

    Returns:
        Relative errors of the law and of the two norms; about 0 if they hold, of order 1 if not.
    """
    charge = _shifted(plus, booked.shift) - _shifted(minus, booked.shift)
    law = np.abs(charge - booked.charge).sum() / max(booked.movement.sum(), 1e-300)
    sides = np.abs(plus["pp"] - booked.plus) + np.abs(minus["pp"] - booked.minus)
    return float(law), float(sides.sum() / max(booked.side_movement.sum(), 1e-300))


def _side(s: Sums, lr: float, decay: float, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """‖θ − η(μm + g + λθ)‖², and the size of what it differs from ‖θ‖² by."""
    zero = np.zeros_like(s["pp"])
    pm, mg, mm = (s.get(k, zero) for k in ("pm", "mg", "mm"))
    inner = mu * pm + s["pg"] + decay * s["pp"]
    square = mu**2 * mm + s["gg"] + decay**2 * s["pp"] + 2 * (mu * mg + mu * decay * pm + decay * s["pg"])
    return s["pp"] - 2 * lr * inner + lr**2 * square, 2 * lr * np.abs(inner) + lr**2 * np.abs(square)


def _shifted(s: Sums, shift: float) -> np.ndarray:
    """‖θ − shift · m‖²."""
    return s["pp"] - 2 * shift * s["pm"] + shift**2 * s["mm"] if shift else s["pp"]


def _full(s: Sums, decay: float) -> np.ndarray:
    """‖g + λθ‖²."""
    return np.asarray(s["gg"] + 2 * decay * s["pg"] + decay**2 * s["pp"])
