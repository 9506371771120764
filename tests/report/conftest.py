"""A made-up audit with everything a report has to show, and names that try to break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gaugefix.advice import advise
from gaugefix.audit import Audit, FullMeasurements, RunEvents, TaskSummary
from gaugefix.forecast import Certificate, ClassForecast, CollapseThreshold, Forecast
from gaugefix.measure import (
    AlignmentReport,
    AlignmentSummary,
    ChargeLaw,
    ChargeReport,
    CollapseReport,
    EntropicLoss,
    EntropyReport,
    Equipartition,
    GradientNoise,
    LyapunovReport,
    MirrorExponent,
    NoiseGroup,
    UnitBalance,
    UnitCollapse,
    UnitNoise,
)
from gaugefix.monitor import Event
from gaugefix.symmetry import OpaqueOp, Slice, Symmetries, Units, Verification

EVIL = "<script>alert(1)</script>"
CLOSER = "</script><img src=x onerror=alert(2)>"
NAMES = ("encoder.0", EVIL)


def make_units(name: str, size: int = 16) -> Units:
    index = np.arange(size).reshape(1, size, 1)
    return Units(
        name, size, 1, (Slice(f"{name}.weight", 0, index, "write"), Slice("head.weight", 1, index, "read")), "relu"
    )


def make_collapse(name: str, n: int = 16) -> UnitCollapse:
    norms = np.linspace(2.0, 0.5, n)
    norms[[3, 9]] = 0.0
    return UnitCollapse(
        name=name,
        size=n,
        fibers=1,
        activation="relu",
        kind="hidden",
        norms=norms,
        dead=(3, 9),
        duplicates=((0, 4, 5), (1, 2)),
        distinct=n - 5,
        inactive=(),
        effective_rank=7.25,
        numerical_rank=9,
        max_rank=n,
        spectrum=np.r_[np.geomspace(3, 0.1, 9), np.zeros(n - 9)],
        nearest_pair=(6, 7),
        nearest_distance=0.031,
        tolerance=1e-3,
        verdict="dead units, duplicate units",
    )


def make_forecast(name: str, n: int = 16) -> ClassForecast:
    drives = np.full(n, 0.0101)
    drives[[3, 9]] = np.nan
    drives[15] = 0.0072
    return ClassForecast(
        name=name,
        size=n,
        alive=n - 2,
        kappa=0.0082,
        weight_decay=0.01,
        headroom=0.82,
        drives=drives,
        growth=drives - 0.01,
        spectrum=np.geomspace(0.1, 1e-4, 8),
        residual=0.012,
        verdict="dead stays dead",
        rate=-0.0018,
        dying=(15,),
        critical_weight_decay=0.047,
        predicted_rank=None,
        valid=True,
        reason="",
    )


def make_audit(names: tuple[str, ...] = NAMES, n: int = 16) -> Audit:
    """An audit of a network with the given layer names; nothing was measured."""
    symmetries = Symmetries(
        (),
        tuple(make_units(name, n) for name in names),
        opaque=(OpaqueOp(CLOSER, "block.3", "no rule"),),
        n_parameters=4106,
        rejected=(Verification("bad claim", 0.5, 1e-9, 3, False),),
        shapes={"head.weight": (10, n)} | {f"{name}.weight": (n, 64) for name in names},
    )
    collapse = CollapseReport(tuple(make_collapse(name, n) for name in names), 2 * len(names), 3 * len(names), 32)
    incoming = np.geomspace(0.5, 3, n)
    balances = tuple(
        UnitBalance(name, incoming, incoming[::-1], incoming[::-1] - incoming, np.zeros(n), True, "") for name in names
    )
    laws = tuple(ChargeLaw(name, 10, np.zeros(n), np.zeros(n), 3e-13, True) for name in names)
    group = NoiseGroup(EVIL, 1.5, 0.02, 0.43)
    noise = GradientNoise((group, NoiseGroup("head.weight", 0.0, 0.0, float("nan"))), group, 512, 0.1, 1e-3, "vmap")
    forecast = Forecast(
        tuple(make_forecast(name, n) for name in names),
        0.01,
        0.1,
        32,
        CollapseThreshold(0.047, np.geomspace(0.1, 1e-3, 8), True, None, "one hidden layer"),
        settled=100,
        moved=0.02,
        note="",
    )
    charges = ChargeReport(balances, laws)
    certificate = Certificate(0.0082, 0.01, 0.012, False, names[0], (), "not stationary")
    return Audit(
        task=TaskSummary(CLOSER, 4106, 0.1, 0.01, 32, 0.9, "sgd", 40, {"test accuracy": 0.9721}),
        symmetries=symmetries,
        collapse=collapse,
        charges=charges,
        noise=noise,
        forecast=forecast,
        certificate=certificate,
        advice=advise(symmetries, collapse, charges, noise, forecast, certificate),
        skipped=(f"{EVIL}: no rule", "completeness: level quick"),
        notes=("forecast: slow convergence",),
        training=tuple(np.geomspace(2.3, 0.1, 40)),
        seconds=12.3,
        full=make_full(names, n),
        extra={},
        run=RunEvents("run.jsonl", 400, {name: f"layer {name}" for name in names}, make_events(names), 1),
    )


def make_events(names: Sequence[str]) -> tuple[Event, ...]:
    died = tuple(
        Event(100 * i, "unit died", name, 0.004, f"unit 3 of {name} died.", (3,)) for i, name in enumerate(names)
    )
    return (*died, Event(300, "not finite", "network", float("nan"), CLOSER))


def make_full(names: Sequence[str], n: int) -> FullMeasurements:
    rng = np.random.default_rng(0)
    mirrors = tuple(
        MirrorExponent(
            f"{name}: swap 0, 1", "path", value, 0.001, verdict, 400, 0.1, 0.01, 32, 0.9, 0.2, 1e-16, np.nan, True, ""
        )
        for name, value, verdict in zip(names, (-0.01, 0.0005), ("collapses", "undecided"), strict=False)
    )
    sides = rng.uniform(0.1, 1, (n, 2))
    layers = tuple(
        AlignmentReport(
            name, (n, n), 0.9, 0.8, 0.7, np.nan, -0.2, 0.1, {"rga_out": 0.1}, {"rga_out": 0.01}, 512, True,
            sides[:, 0], sides[:, 1], sides[:, 0], "",
        )
        for name in names
    )  # fmt: skip
    return FullMeasurements(
        LyapunovReport(mirrors, (f"{EVIL}: only the nearest",)),
        EntropyReport(
            EntropicLoss(0.5, 0.01, 0.002, 0.512, 0.1, 0.3, 0.01, 32, True, ""),
            tuple(
                Equipartition(name, tuple(map(str, range(n))), sides, sides, sides[:, 0], sides[:, 1], 0.3, 64)
                for name in names
            ),
            (),
        ),
        AlignmentSummary(layers, ()),
        tuple(UnitNoise(name, *sides.T, np.zeros(n), *sides.T, 512) for name in names),
    )


@pytest.fixture(scope="session")
def sample() -> Audit:
    """The audit with hostile names."""
    return make_audit()


@pytest.fixture(scope="session")
def build() -> Callable[..., Audit]:
    """Makes an audit with other layer names or sizes."""
    return make_audit
