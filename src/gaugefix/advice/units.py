"""Diagnoses of one class of units: what is lost, what is fading, whether it is wide enough, whether it is balanced.

Each function takes one record and yields what it has to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from gaugefix.advice.records import Advice, digits, listed, span
from gaugefix.forecast import ClassForecast
from gaugefix.measure import Equipartition, UnitBalance, UnitCollapse
from gaugefix.symmetry import Units

#: A class counts as out of balance when the typical unit has |imbalance| above this: a ratio of norms above 3.
_UNBALANCED = 0.8
#: Residual of the gradient balance above which it counts as far off: one side is three times the other, or they pull
#: in opposite directions; 2 is the largest there is.
_UNEVEN = 1.0


def collapsed(unit: UnitCollapse, item: ClassForecast | None) -> Iterator[Advice]:
    """Every unit of the class is dead."""
    if len(unit.dead) < len(unit.norms):
        return
    evidence = f"All {len(unit.norms)} units have size zero (largest {unit.norms.max(initial=0.0):.1e})."
    action = "Lower the weight decay, then re-initialise the layer: at zero it gets no gradient."
    if item is not None and item.critical_weight_decay > 0:
        limit = digits(item.critical_weight_decay)
        evidence += f" It can come back below λ_c = {limit}, the run used {digits(item.weight_decay)}."
        action = f"Set weight_decay well below {limit}, then re-initialise the layer and train again."
    yield Advice("act", unit.name, f"Layer {unit.name} has collapsed: it computes nothing.", evidence, action)


def redundant(unit: UnitCollapse, owned: int, item: ClassForecast | None) -> Iterator[Advice]:
    """Some units are dead, or copies of others."""
    total, dead, distinct = len(unit.norms), len(unit.dead), unit.distinct
    copies = total - dead - distinct
    if distinct == total or dead == total:
        return
    parts = [f"{dead} dead"] * (dead > 0) + [f"{copies} {'copies' if copies > 1 else 'copy'} of others"] * (copies > 0)
    evidence = f"{distinct} distinct units (equal to within {100 * unit.tolerance:g} %)"
    if owned:
        evidence += f"; each unit owns {owned} parameters"
    if item is not None and item.valid and dead and item.rate < 0:
        evidence += (
            f"; dead units stay dead (κ = {digits(item.kappa)} is below the weight decay {digits(item.weight_decay)})"
        )
    yield Advice(
        "act",
        unit.name,
        f"{total - distinct} of {total} units in layer {unit.name} add nothing: {' and '.join(parts)}.",
        evidence + ".",
        f"Use {distinct} units here: a layer of {distinct} computes the same function to that accuracy"
        + (f" with {(total - distinct) * owned:,} fewer parameters." if owned else "."),
    )


def low_rank(unit: UnitCollapse) -> Iterator[Advice]:
    """Fewer directions than distinct units."""
    if "low rank" in unit.verdict:
        yield Advice(
            "watch",
            unit.name,
            f"Layer {unit.name} has lost rank: {unit.numerical_rank} directions are left of {unit.max_rank}.",
            f"Effective rank {unit.effective_rank:.1f}.",
            f"Factor the layer at rank {unit.numerical_rank}, or lower the weight decay to keep the directions.",
        )


def dying(item: ClassForecast) -> Iterator[Advice]:
    """Live units that fade at the present weight decay."""
    if not item.dying or not item.valid:
        return
    drives = item.drives[list(item.dying)]
    count = len(item.dying)
    which = ("unit " if count == 1 else "units ") + listed(item.dying)
    keep = float(np.nanmin(drives))
    action = (
        f"Lower weight_decay below {digits(keep)} to keep {'it' if count == 1 else 'them'} alive in layer {item.name}"
        if keep > 0
        else f"No weight decay keeps all of them: the loss itself shrinks them. Let layer {item.name} get smaller"
    )
    yield Advice(
        "watch",
        item.name,
        f"{count} of {item.alive} live units in layer {item.name} {'is' if count == 1 else 'are'} fading.",
        f"Drive {span(drives)} against weight decay {digits(item.weight_decay)} for {which}.",
        f"{action}, or plan for {item.alive - count} units.",
    )


def width(item: ClassForecast, spare: int) -> Iterator[Advice]:
    """Whether the class is wide enough; ``spare`` of its units are dead or copies."""
    if not item.valid or not np.isfinite(item.headroom):
        return
    evidence = f"κ/λ = {item.headroom:.3f} (κ = {digits(item.kappa)}, λ = {digits(item.weight_decay)})."
    if item.verdict.startswith("saturated"):
        yield Advice(
            "info",
            item.name,
            f"Layer {item.name} is wide enough: no added unit would lower the objective.",
            evidence,
            "Do not widen it. To use more units, lower the weight decay.",
        )
    elif item.verdict in {"wants more width", "would be reborn"}:
        reborn = item.verdict == "would be reborn"
        use = f"re-initialise its {spare} spare unit{'s' * (spare > 1)} at a small size" if spare else "widen the layer"
        yield Advice(
            "info",
            item.name,
            f"The dead units of layer {item.name} can come back."
            if reborn
            else f"A new small unit in layer {item.name} would grow.",
            f"{evidence} Growth rate κ − λ = {digits(item.rate)} per unit of learning rate × steps.",
            f"If accuracy matters more than size, {use} and train on.",
        )


def no_verdict(item: ClassForecast) -> Iterator[Advice]:
    """The class has no forecast, or not yet."""
    if item.verdict == "not stationary":
        yield Advice(
            "info",
            item.name,
            f"Layer {item.name} has not settled: its forecast holds for this moment, not for the end of training.",
            f"The live units are {item.residual:.0%} away from stationarity.",
            "Train longer or lower the learning rate, then audit again.",
        )
    elif item.verdict == "not applicable":
        gauge = "normal" in item.reason.lower() or "scale" in item.reason.lower()
        yield Advice(
            "info",
            item.name,
            f"Weight decay is a gauge in layer {item.name}: it sets the effective learning rate, not the function."
            if gauge
            else f"No forecast for layer {item.name}.",
            item.reason or "The class is outside the theory.",
            "Tune the learning rate instead of the weight decay here." if gauge else "Read its collapse and balance.",
        )


def unbalanced(item: UnitBalance) -> Iterator[Advice]:
    """Incoming and outgoing weights of very different size."""
    live = (item.incoming + item.outgoing) > 0
    if not item.applies or not live.any():
        return
    typical = float(np.median(np.abs(item.imbalance[live])))
    if typical < _UNBALANCED:
        return
    now = float((item.incoming + item.outgoing).sum())
    best = float((2 * np.sqrt(item.incoming * item.outgoing)).sum())
    side = "outgoing" if float(np.median(item.imbalance[live])) > 0 else "incoming"
    yield Advice(
        "watch",
        item.name,
        f"Layer {item.name} is out of balance: its {side} weights carry almost all of the norm.",
        f"Median |‖u‖² − ‖w‖²| / (‖u‖² + ‖w‖²) = {typical:.2f}; balanced, the same function needs {best / now:.0%} "
        "of the squared norm.",
        "Rescale its units to balance: the function stays, the steps in both layers become comparable.",
    )


def uneven(item: Equipartition) -> Iterator[Advice]:
    """Gradients of the two sides of a class that are far from their equilibrium."""
    if not np.isfinite(item.spread) or item.spread < _UNEVEN:
        return
    drift = float(np.sum(item.drift)) if len(item.drift) else 0.0
    heads = {1: ", towards the outgoing weights", -1: ", towards the incoming weights"}.get(int(np.sign(drift)), "")
    yield Advice(
        "info",
        item.name,
        f"The gradients of layer {item.name} are far from balance: norm is still moving between its two sides{heads}.",
        f"Residual of the gradient balance {digits(item.spread)} over {item.n_batches} batches (0 at rest, at most 2).",
        "Read sizes and charges of this layer as those of a run under way: train longer, or rebalance the layer.",
    )


def entries(units: Units | None, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters that one unit owns; 0 if the shapes are not known."""
    if units is None or any(s.param not in shapes for s in units.slices):
        return 0
    return sum(s.index.shape[2] * prod(shapes[s.param]) // shapes[s.param][s.dim] for s in units.slices)
