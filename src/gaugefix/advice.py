"""Advice: from the numbers of an audit to a diagnosis, its evidence and the next step.

One function per diagnosis. Each takes one record and yields what it has to say; `advise` ranks the lot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from gaugefix.forecast import Certificate, ClassForecast, CollapseThreshold, Forecast
from gaugefix.measure import ChargeReport, CollapseReport, GradientNoise, Record, UnitBalance, UnitCollapse
from gaugefix.symmetry import Symmetries, Units

Severity = Literal["act", "watch", "info"]
_RANK: dict[str, int] = {"act": 0, "watch": 1, "info": 2}

#: A class counts as out of balance when the typical unit has |imbalance| above this: a ratio of norms above 3.
_UNBALANCED = 0.8
#: Weight decay above this share of its critical value is close to the edge.
_NEAR_CRITICAL = 0.8


@dataclass(frozen=True)
class Advice(Record):
    """One thing to know, and what to do about it.

    Attributes:
        severity: "act" (something is lost now), "watch" (it will be, or may be) or "info".
        where: the class of units, or "network".
        finding: the diagnosis in one sentence.
        evidence: the numbers it rests on.
        action: the next step.
    """

    severity: Severity
    where: str
    finding: str
    evidence: str
    action: str


def advise(
    symmetries: Symmetries,
    collapse: CollapseReport | None,
    charges: ChargeReport | None,
    noise: GradientNoise | None,
    forecast: Forecast | None,
    certificate: Certificate | None,
) -> tuple[Advice, ...]:
    """Rank everything the measurements have to say; a part that was not measured says nothing.

    Args:
        symmetries: what was found.
        collapse: from `gaugefix.measure.collapse_report`.
        charges: from `gaugefix.measure.check_charge_law`.
        noise: from `gaugefix.measure.gradient_noise`.
        forecast: from `gaugefix.forecast.forecast`.
        certificate: from `gaugefix.forecast.certificate`.

    Returns:
        Advice, the most urgent first.
    """
    by_name = {u.name: u for u in symmetries.units}
    predicted = {c.name: c for c in forecast.classes} if forecast else {}
    out: list[Advice] = []
    for unit in collapse.units if collapse else ():
        out += _collapsed(unit, predicted.get(unit.name))
        out += _redundant(unit, _entries(by_name.get(unit.name), symmetries.shapes), predicted.get(unit.name))
        out += _low_rank(unit)
    out += _wide_enough(certificate)
    spare = {u.name: len(u.norms) - u.distinct for u in collapse.units} if collapse else {}
    for item in forecast.classes if forecast else ():
        out += _dying(item)
        if certificate is None or not certificate.saturated:
            out += _width(item, spare.get(item.name, 0))
        out += _no_verdict(item)
    if forecast:
        out += _threshold(forecast, collapse)
    for item_balance in charges.units if charges else ():
        out += _unbalanced(item_balance)
    out += _noisy(noise)
    out += _unseen(symmetries)
    return rank_advice(out)


def rank_advice(advice: Iterable[Advice]) -> tuple[Advice, ...]:
    """Advice in order of urgency.

    Args:
        advice: in the order in which equally urgent entries stay.

    Returns:
        The most urgent first.
    """
    return tuple(sorted(advice, key=lambda a: _RANK[a.severity]))


def _collapsed(unit: UnitCollapse, item: ClassForecast | None) -> Iterator[Advice]:
    """Every unit of the class is dead."""
    if len(unit.dead) < len(unit.norms):
        return
    evidence = f"All {len(unit.norms)} units have size zero (largest {unit.norms.max(initial=0.0):.1e})."
    action = "Lower the weight decay, then re-initialise the layer: at zero it gets no gradient."
    if item is not None and item.critical_weight_decay > 0:
        limit = _n(item.critical_weight_decay)
        evidence += f" It can come back below λ_c = {limit}, the run used {_n(item.weight_decay)}."
        action = f"Set weight_decay well below {limit}, then re-initialise the layer and train again."
    yield Advice("act", unit.name, f"Layer {unit.name} has collapsed: it computes nothing.", evidence, action)


def _redundant(unit: UnitCollapse, owned: int, item: ClassForecast | None) -> Iterator[Advice]:
    """Some units are dead, or copies of others."""
    total, dead, distinct = len(unit.norms), len(unit.dead), unit.distinct
    copies = total - dead - distinct
    if distinct == total or dead == total:
        return
    parts = [f"{dead} dead"] * (dead > 0) + [f"{copies} {'copies' if copies > 1 else 'copy'} of others"] * (copies > 0)
    evidence = f"{distinct} distinct units (equal to within {unit.tolerance:.0%})"
    if owned:
        evidence += f"; each unit owns {owned} parameters"
    if item is not None and item.valid and dead and item.rate < 0:
        evidence += f"; dead units stay dead (κ = {_n(item.kappa)} is below the weight decay {_n(item.weight_decay)})"
    yield Advice(
        "act",
        unit.name,
        f"{total - distinct} of {total} units in layer {unit.name} add nothing: {' and '.join(parts)}.",
        evidence + ".",
        f"Use {distinct} units here: a layer of {distinct} computes the same function to that accuracy"
        + (f" with {(total - distinct) * owned:,} fewer parameters." if owned else "."),
    )


def _low_rank(unit: UnitCollapse) -> Iterator[Advice]:
    """Fewer directions than distinct units."""
    if "low rank" in unit.verdict:
        yield Advice(
            "watch",
            unit.name,
            f"Layer {unit.name} has lost rank: {unit.numerical_rank} directions are left of {unit.max_rank}.",
            f"Effective rank {unit.effective_rank:.1f}.",
            f"Factor the layer at rank {unit.numerical_rank}, or lower the weight decay to keep the directions.",
        )


def _dying(item: ClassForecast) -> Iterator[Advice]:
    """Live units that fade at the present weight decay."""
    if not item.dying or not item.valid:
        return
    drives = item.drives[list(item.dying)]
    count = len(item.dying)
    which = ("unit " if count == 1 else "units ") + _list(item.dying)
    keep = float(np.nanmin(drives))
    action = (
        f"Lower weight_decay below {_n(keep)} to keep {'it' if count == 1 else 'them'} alive in layer {item.name}"
        if keep > 0
        else f"No weight decay keeps all of them: the loss itself shrinks them. Let layer {item.name} get smaller"
    )
    yield Advice(
        "watch",
        item.name,
        f"{count} of {item.alive} live units in layer {item.name} {'is' if count == 1 else 'are'} fading.",
        f"Drive {_range(drives)} against weight decay {_n(item.weight_decay)} for {which}.",
        f"{action}, or plan for {item.alive - count} units.",
    )


def _wide_enough(certificate: Certificate | None) -> Iterator[Advice]:
    """The certificate holds for the whole network."""
    if certificate is None or not certificate.saturated:
        return
    rest = f" Not covered: {_list(certificate.uncovered)}." if certificate.uncovered else ""
    yield Advice(
        "info",
        "network",
        "Every layer is wide enough: no added unit would lower the objective at this weight decay.",
        f"Largest birth threshold over weight decay κ/λ = {certificate.kappa / certificate.weight_decay:.3f}, in layer "
        f"{certificate.binding}; drives within {certificate.residual:.1%} of λ.{rest}",
        f"Do not widen the network. To put more units to use, lower weight_decay below {_n(certificate.weight_decay)}.",
    )


def _width(item: ClassForecast, spare: int) -> Iterator[Advice]:
    """Whether the class is wide enough; ``spare`` of its units are dead or copies."""
    if not item.valid or not np.isfinite(item.headroom):
        return
    evidence = f"κ/λ = {item.headroom:.3f} (κ = {_n(item.kappa)}, λ = {_n(item.weight_decay)})."
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
            f"{evidence} Growth rate κ − λ = {_n(item.rate)} per unit of learning rate × steps.",
            f"If accuracy matters more than size, {use} and train on.",
        )


def _no_verdict(item: ClassForecast) -> Iterator[Advice]:
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


def _threshold(forecast: Forecast, collapse: CollapseReport | None) -> Iterator[Advice]:
    """How far the weight decay is from the value at which the whole network learns nothing."""
    threshold = forecast.collapse
    if threshold is None or not np.isfinite(threshold.lambda_c) or threshold.lambda_c <= 0:
        return
    ratio = forecast.weight_decay / threshold.lambda_c
    gone = collapse is not None and collapse.n_units == collapse.n_dead
    if ratio < _NEAR_CRITICAL and not gone:
        return
    yield Advice(
        "act" if ratio >= 1 else "watch",
        "network",
        "The weight decay is above the value at which the whole network collapses."
        if ratio >= 1
        else "The weight decay is close to the value at which the whole network collapses.",
        _threshold_evidence(forecast, threshold),
        f"Keep weight_decay well below {_n(threshold.lambda_c)}; {_n(threshold.lambda_c / 10)} is a safe start.",
    )


def _threshold_evidence(forecast: Forecast, threshold: CollapseThreshold) -> str:
    ratio = forecast.weight_decay / threshold.lambda_c
    text = f"λ = {_n(forecast.weight_decay)} is {ratio:.2f} of the critical λ_c = {_n(threshold.lambda_c)}."
    return f"{text} {threshold.reason}".strip()


def _unbalanced(item: UnitBalance) -> Iterator[Advice]:
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


def _noisy(noise: GradientNoise | None) -> Iterator[Advice]:
    """One minibatch against the full gradient."""
    if noise is None or not np.isfinite(noise.total.snr) or noise.total.snr >= 1:
        return
    yield Advice(
        "info",
        "network",
        "Minibatch noise is larger than the gradient.",
        f"Signal-to-noise ratio of one batch {_n(noise.total.snr)} over {noise.n_samples} samples, "
        f"temperature lr / batch size {_n(noise.temperature)}.",
        "Usual at the end of training. To settle closer to the minimum, lower the learning rate or enlarge the batch.",
    )


def _unseen(symmetries: Symmetries) -> Iterator[Advice]:
    """What the search could not see through, and claims that failed."""
    if symmetries.opaque:
        names = _list(tuple(dict.fromkeys(o.op for o in symmetries.opaque)))
        yield Advice(
            "watch",
            "network",
            f"{len(symmetries.opaque)} operations could not be seen through: symmetries behind them are not listed.",
            f"Without a rule: {names}.",
            "Nothing is wrong with the model; read the list as a lower bound.",
        )
    if symmetries.rejected:
        yield Advice(
            "watch",
            "network",
            f"{len(symmetries.rejected)} claimed symmetries failed the numerical check and were dropped.",
            _list(tuple(f"{v.name} (error {v.error:.0e})" for v in symmetries.rejected)) + ".",
            "Please report the model: each is a bug in a rule.",
        )


def _entries(units: Units | None, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters that one unit owns; 0 if the shapes are not known."""
    if units is None or any(s.param not in shapes for s in units.slices):
        return 0
    return sum(s.index.shape[2] * prod(shapes[s.param]) // shapes[s.param][s.dim] for s in units.slices)


def _n(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def _range(values: np.ndarray) -> str:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return _n(low) if _n(low) == _n(high) else f"{_n(low)} to {_n(high)}"


def _list(items: tuple[object, ...], most: int = 6) -> str:
    shown = ", ".join(str(i) for i in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
