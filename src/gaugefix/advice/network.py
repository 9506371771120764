"""Diagnoses of the whole network: enough width, the edge of collapse, noise, mirror planes, gaps of the search.

Each function takes one record and yields what it has to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gaugefix.advice.records import Advice, digits, listed
from gaugefix.forecast import Certificate, CollapseThreshold, Forecast
from gaugefix.measure import CollapseReport, GradientNoise, MirrorExponent
from gaugefix.symmetry import Symmetries

#: Weight decay above this share of its critical value is close to the edge.
_NEAR_CRITICAL = 0.8


def wide_enough(certificate: Certificate | None) -> Iterator[Advice]:
    """The certificate holds for the whole network."""
    if certificate is None or not certificate.saturated:
        return
    rest = f" Not covered: {listed(certificate.uncovered)}." if certificate.uncovered else ""
    yield Advice(
        "info",
        "network",
        "Every layer is wide enough: no added unit would lower the objective at this weight decay.",
        f"Largest birth threshold over weight decay κ/λ = {certificate.kappa / certificate.weight_decay:.3f}, in layer "
        f"{certificate.binding}; drives within {certificate.residual:.1%} of λ.{rest}",
        "Do not widen the network. To put more units to use, lower weight_decay below "
        f"{digits(certificate.weight_decay)}.",
    )


def threshold(forecast: Forecast, collapse: CollapseReport | None) -> Iterator[Advice]:
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
        f"Keep weight_decay well below {digits(threshold.lambda_c)}; "
        f"{digits(threshold.lambda_c / 10)} is a safe start.",
    )


def _threshold_evidence(forecast: Forecast, threshold: CollapseThreshold) -> str:
    ratio = forecast.weight_decay / threshold.lambda_c
    text = f"λ = {digits(forecast.weight_decay)} is {ratio:.2f} of the critical λ_c = {digits(threshold.lambda_c)}."
    return f"{text} {threshold.reason}".strip()


def noisy(noise: GradientNoise | None) -> Iterator[Advice]:
    """One minibatch against the full gradient."""
    if noise is None or not np.isfinite(noise.total.snr) or noise.total.snr >= 1:
        return
    yield Advice(
        "info",
        "network",
        "Minibatch noise is larger than the gradient.",
        f"Signal-to-noise ratio of one batch {digits(noise.total.snr)} over {noise.n_samples} samples, "
        f"temperature lr / batch size {digits(noise.temperature)}.",
        "Usual at the end of training. To settle closer to the minimum, lower the learning rate or enlarge the batch.",
    )


def unseen(symmetries: Symmetries) -> Iterator[Advice]:
    """What the search could not see through, and claims that failed."""
    if symmetries.opaque:
        names = listed(tuple(dict.fromkeys(o.op for o in symmetries.opaque)))
        n = len(symmetries.opaque)
        yield Advice(
            "watch",
            "network",
            f"{n} operation{'' if n == 1 else 's'} could not be seen through: what is behind is not listed.",
            f"Without a rule: {names}.",
            "Nothing is wrong with the model; read the list as a lower bound.",
        )
    if symmetries.rejected:
        n = len(symmetries.rejected)
        yield Advice(
            "watch",
            "network",
            f"{n} claimed symmetr{'y' if n == 1 else 'ies'} dropped: the numerical check failed.",
            listed(tuple(f"{v.name} (error {v.error:.0e})" for v in symmetries.rejected)) + ".",
            "Please report the model: each is a bug in a rule.",
        )


def drawn(mirror: MirrorExponent) -> Iterator[Advice]:
    """A mirror plane that SGD with its noise falls onto."""
    if not mirror.valid or mirror.verdict != "collapses":
        return
    yield Advice(
        "watch",
        re.sub(r"\[\d+\]$", "", mirror.name.rpartition(": ")[0]) or "network",  # without the head
        f"SGD is drawn onto the mirror plane {mirror.name}.",
        f"Λ = {digits(mirror.value)} ± {digits(mirror.stderr)} per step: next to the plane the distance shrinks by a "
        f"factor e in {-1 / mirror.value:,.0f} steps. The model is at a relative distance of "
        f"{digits(mirror.distance)}.",
        "Units that meet there become one, or die, and SGD does not undo it. To stay off, lower the weight decay or "
        "the learning rate, or enlarge the batch (gaugefix.measure.stability_limits says how far); else plan for "
        "fewer units.",
    )
