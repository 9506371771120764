"""Everything that the measurements of an audit have to say, ranked."""

from __future__ import annotations

from gaugefix.advice import network, units
from gaugefix.advice.records import Advice, rank_advice
from gaugefix.forecast import Certificate, Forecast
from gaugefix.measure import ChargeReport, CollapseReport, EntropyReport, GradientNoise, LyapunovReport
from gaugefix.symmetry import Symmetries


def advise(
    symmetries: Symmetries,
    collapse: CollapseReport | None,
    charges: ChargeReport | None,
    noise: GradientNoise | None,
    forecast: Forecast | None,
    certificate: Certificate | None,
    lyapunov: LyapunovReport | None = None,
    entropy: EntropyReport | None = None,
) -> tuple[Advice, ...]:
    """Rank everything the measurements have to say; a part that was not measured says nothing.

    Args:
        symmetries: what was found.
        collapse: from `gaugefix.measure.collapse_report`.
        charges: from `gaugefix.measure.check_charge_law`.
        noise: from `gaugefix.measure.gradient_noise`.
        forecast: from `gaugefix.forecast.forecast`.
        certificate: from `gaugefix.forecast.certify`.
        lyapunov: from `gaugefix.measure.lyapunov`.
        entropy: from `gaugefix.measure.entropy_report`.

    Returns:
        Advice, the most urgent first.
    """
    by_name = {u.name: u for u in symmetries.units}
    predicted = {c.name: c for c in forecast.classes} if forecast else {}
    out: list[Advice] = []
    for unit in collapse.units if collapse else ():
        out += units.collapsed(unit, predicted.get(unit.name))
        out += units.redundant(unit, units.entries(by_name.get(unit.name), symmetries.shapes), predicted.get(unit.name))
        out += units.low_rank(unit)
    out += network.wide_enough(certificate)
    spare = {u.name: len(u.norms) - u.distinct for u in collapse.units} if collapse else {}
    for item in forecast.classes if forecast else ():
        out += units.dying(item)
        if certificate is None or not certificate.saturated:
            out += units.width(item, spare.get(item.name, 0))
        out += units.no_verdict(item)
    if forecast:
        out += network.threshold(forecast, collapse)
    for item_balance in charges.units if charges else ():
        out += units.unbalanced(item_balance)
    out += network.noisy(noise)
    for mirror in lyapunov.mirrors if lyapunov else ():
        out += network.drawn(mirror)
    for gradients in entropy.equipartition if entropy else ():
        out += units.uneven(gradients)
    out += network.unseen(symmetries)
    return rank_advice(out)
