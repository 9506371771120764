"""What the state of Adam, AMSGrad or LaProp tells for free: noise, step sizes, and whether (β₁, β₂) are safe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaugefix.errors import MeasurementError
from gaugefix.measure.records import Record
from gaugefix.theory import adam_noise_rms, adam_stability, gradient_snr, update_bound

Algorithm = Literal["adam", "amsgrad", "laprop"]

_EARLY = 10


@dataclass(frozen=True)
class ParameterState(Record):
    """The optimiser's view of one parameter.

    The update is u = m̂/(√v̂ + ε) with bias-corrected averages, Δθ = −lr·u without weight decay; LaProp averages g/√v̂
    instead.

    Attributes:
        name: of the parameter.
        step: number of updates so far.
        rms_update: root mean square of u over the entries.
        noise_rms: what pure noise would give at this step, `gaugefix.theory.adam_noise_rms`.
        bound: largest |u| that any gradients can give at this step.
        near_bound: fraction of the entries above half of it: rare, large gradients.
        effective_lr: median of lr/(√v̂ + ε), the rate of a plain gradient step.
        effective_lr_range: its smallest and largest value.
        mean_square: Σm̂² (of LaProp: Σu²); average it and the next over steps for a sharper ratio.
        second_moment: Σv̂ (of LaProp: number of entries).
        snr: signal-to-noise ratio ‖E g‖²/Tr C of a minibatch from this one snapshot, 10 to 35 % off.
        valid: whether the reference of pure noise applies.
        reason: why not, or "".
    """

    name: str
    step: int
    rms_update: float
    noise_rms: float
    bound: float
    near_bound: float
    effective_lr: float
    effective_lr_range: tuple[float, float]
    mean_square: float
    second_moment: float
    snr: float
    valid: bool
    reason: str


@dataclass(frozen=True)
class GroupState(Record):
    """The settings of one parameter group.

    Attributes:
        index: of the group.
        algorithm: "adam", "amsgrad" or "laprop".
        lr: learning rate.
        betas: (β₁, β₂).
        eps: ε.
        ratio: β₁/√β₂.
        stable: whether a step is bounded whatever the gradients: Adam needs a ratio below 1, LaProp nothing.
        max_update: the bound of |u| for t → ∞, inf if there is none.
    """

    index: int
    algorithm: Algorithm
    lr: float
    betas: tuple[float, float]
    eps: float
    ratio: float
    stable: bool
    max_update: float


@dataclass(frozen=True)
class OptimizerReport(Record):
    """State of an adaptive optimiser.

    Attributes:
        groups: one per parameter group.
        parameters: one per parameter that has been updated.
        snr: of all parameters together, where the algorithm is Adam's.
        skipped: parameters without a state, and why.
    """

    groups: tuple[GroupState, ...]
    parameters: tuple[ParameterState, ...]
    snr: float
    skipped: tuple[str, ...]


def optimizer_report(optimizer: torch.optim.Optimizer, model: nn.Module) -> OptimizerReport:
    """Read the state of Adam, AdamW, NAdam, RAdam, AMSGrad or LaProp; nothing is changed.

    The ratio of m̂² to v̂ is what gradient noise alone would make it, or larger where there is a signal: that gives the
    signal-to-noise ratio of the gradients without another backward pass. In Adam (not AdamW) weight decay is part of
    the gradient.

    Args:
        optimizer: has ``exp_avg`` and ``exp_avg_sq`` in its state.
        model: names the parameters.

    Returns:
        The report. Cost: a few passes over the state.

    Raises:
        MeasurementError: if it is no optimiser of this family.

    Source: arXiv 2105.07222, 2002.04839; AMSGrad's effective rate 2107.11774.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> adam = torch.optim.Adam(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(2, 3)).sum().backward()
        >>> adam.step()
        >>> found = optimizer_report(adam, layer)
        >>> found.parameters[0].step, round(found.parameters[0].rms_update, 6), found.groups[0].stable
        (1, 1.0, True)
    """
    names = {id(p): k for k, p in model.named_parameters()}
    groups, parameters, skipped = [], [], []
    for index, group in enumerate(optimizer.param_groups):
        if not isinstance(group.get("betas"), tuple | list) or len(group["betas"]) != 2:
            raise MeasurementError(
                f"optimizer_report: {type(optimizer).__name__} has no (β₁, β₂) in group {index}. It reads Adam, AdamW, "
                "NAdam, RAdam, AMSGrad and LaProp; for SGD see gaugefix.measure.gradient_noise."
            )
        algorithm = _algorithm(optimizer, group)
        groups.append(_group(index, group, algorithm))
        for number, p in enumerate(group["params"]):
            name = names.get(id(p), f"group {index}, parameter {number}")
            state = optimizer.state.get(p, {})
            if "exp_avg" not in state:
                skipped.append(f"{name}: no update yet")
            elif "exp_avg_sq" not in state:
                raise MeasurementError(
                    f"optimizer_report: {type(optimizer).__name__} keeps {', '.join(map(str, state))} of {name!r}, "
                    "and no exp_avg_sq; it is not Adam's kind."
                )
            else:
                parameters.append(_parameter(name, state, group, algorithm))
    like_adam = [p for p in parameters if p.valid and not math.isnan(p.snr)]
    return OptimizerReport(tuple(groups), tuple(parameters), _together(like_adam, groups), tuple(skipped))


def amsgrad_effective_lr(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The learning rates that AMSGrad has frozen to, lr/(√v̂_max + ε), entry by entry.

    Once gradients shrink, the largest second moment no longer changes: AMSGrad is then SGD with these rates, and is
    held at a saddle or a maximum where `gaugefix.theory.escape_exponent` at them is negative.

    Args:
        optimizer: ``torch.optim.Adam`` or ``AdamW`` with ``amsgrad=True``.

    Returns:
        One tensor per parameter that has been updated, in the order of the groups; inf where no gradient has been and
        ε = 0.

    Raises:
        MeasurementError: if a group is not AMSGrad's, or nothing has been updated.

    Source: arXiv 2107.11774 (C4).

    Example:
        >>> w = nn.Parameter(torch.tensor([2.0]))
        >>> adam = torch.optim.Adam([w], lr=0.1, amsgrad=True)
        >>> w.grad = torch.tensor([4.0])
        >>> adam.step()
        >>> [round(rate.item(), 4) for rate in amsgrad_effective_lr(adam)]
        [0.025]
    """
    rates = []
    for index, group in enumerate(optimizer.param_groups):
        if not group.get("amsgrad"):
            raise MeasurementError(
                f"amsgrad_effective_lr: group {index} of {type(optimizer).__name__} has no amsgrad=True; the rates of "
                "other optimisers still move, see optimizer_report."
            )
        for p in group["params"]:
            if p in optimizer.state:
                state = optimizer.state[p]
                largest = state["max_exp_avg_sq"].detach().double() / (1 - group["betas"][1] ** int(state["step"]))
                rates.append(float(group["lr"]) / (largest.sqrt() + float(group["eps"])))
    if not rates:
        raise MeasurementError("amsgrad_effective_lr: no parameter has been updated yet.")
    return rates


def _algorithm(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Algorithm:
    states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
    if any("exp_avg_lr_1" in s for s in states) or type(optimizer).__name__ == "LaProp":
        return "laprop"
    return "amsgrad" if group.get("amsgrad") else "adam"


def _group(index: int, group: Mapping[str, Any], algorithm: Algorithm) -> GroupState:
    beta1, beta2 = float(group["betas"][0]), float(group["betas"][1])
    known = adam_stability((beta1, beta2))
    stable, bound = known.stable, known.max_update
    if algorithm == "laprop":
        stable, bound = True, 1 / math.sqrt(1 - beta2)
    eps = float(group.get("eps", 0.0))
    return GroupState(index, algorithm, float(group["lr"]), (beta1, beta2), eps, known.ratio, stable, bound)


def _parameter(name: str, state: Mapping[str, Any], group: Mapping[str, Any], algorithm: Algorithm) -> ParameterState:
    beta1, beta2 = float(group["betas"][0]), float(group["betas"][1])
    lr, eps = float(group["lr"]), float(group.get("eps", 0.0))
    step = int(state["step"] if "step" in state else group["step"])
    first, second = (state[k].detach().double() for k in ("exp_avg", "exp_avg_sq"))
    v_hat = second / (1 - beta2**step)
    largest = state.get("max_exp_avg_sq")
    divisor = (v_hat if largest is None else largest.detach().double() / (1 - beta2**step)).sqrt() + eps
    rate = lr / divisor[divisor > 0]
    if algorithm == "laprop":
        scale = float(state.get("exp_avg_lr_1", lr * (1 - beta1**step)))
        update = first / scale if scale else torch.zeros_like(first)
        bound = math.sqrt((1 - beta2**step) / (1 - beta2))
        mean_square, moment = float(update.square().sum()), float(update.numel())
    else:
        m_hat = first / (1 - beta1**step)
        update = torch.where(divisor > 0, m_hat / divisor.clamp_min(1e-300), torch.zeros_like(m_hat))
        bound = update_bound(step, beta1, beta2)
        mean_square, moment = float(m_hat.square().sum()), float(v_hat.sum())
    reason = _limits(step, algorithm, v_hat, eps)
    return ParameterState(
        name=name,
        step=step,
        rms_update=float(update.square().mean().sqrt()),
        noise_rms=adam_noise_rms(step, beta1),
        bound=bound,
        near_bound=float((update.abs() > bound / 2).double().mean()),
        effective_lr=float(rate.median()) if rate.numel() else math.inf,
        effective_lr_range=(float(rate.min()), float(rate.max())) if rate.numel() else (math.inf, math.inf),
        mean_square=mean_square,
        second_moment=moment,
        snr=gradient_snr(mean_square, moment, beta1, step),
        valid=not reason,
        reason=reason,
    )


def _limits(step: int, algorithm: Algorithm, v_hat: Tensor, eps: float) -> str:
    if algorithm == "amsgrad":
        return "AMSGrad divides by the largest second moment so far: the reference of pure noise does not apply"
    if step < _EARLY:
        return f"only {step} updates so far: averages are of too few gradients"
    if float(v_hat.sqrt().median()) < 10 * eps:
        return f"√v is below 10 ε = {10 * eps:.1g} for half of the entries: ε decides their step"
    return ""


def _together(parameters: list[ParameterState], groups: list[GroupState]) -> float:
    """Ratio over all parameters, if one β₁ and one step hold for all."""
    steps, betas = {p.step for p in parameters}, {g.betas[0] for g in groups}
    if len(steps) != 1 or len(betas) != 1 or any(g.algorithm != "adam" for g in groups):
        return math.nan
    squares, moments = sum(p.mean_square for p in parameters), sum(p.second_moment for p in parameters)
    return gradient_snr(squares, moments, betas.pop(), steps.pop())
