"""Events: hysteresis, wording, and real runs in which units die, merge and ranks fall."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.monitor.models import batches, found, mlp, run, seeded
from torch import nn

from gaugefix import Monitor
from gaugefix.monitor.events import changed_partners, changed_ranks, changed_units, switch

TOLERANCE = 0.01


def units(sizes: list[list[float]]) -> list[tuple[str, tuple[int, ...]]]:
    live, out = None, []
    for step, row in enumerate(sizes):
        live, events = changed_units(step, "0", np.array(row), live, TOLERANCE)
        out += [(e.kind, e.units) for e in events]
    return out


def test_units_die_and_come_back_with_hysteresis() -> None:
    flicker = [[1.0, 1.0], [1.0, 0.009], [1.0, 0.011], [1.0, 0.0199], [1.0, 0.02], [1.0, 0.0101], [0.0, 0.0]]
    assert units(flicker) == [("unit died", (1,)), ("unit revived", (1,)), ("unit died", (0, 1))]


def test_what_is_dead_at_the_first_look_is_no_event() -> None:
    assert units([[1.0, 0.0], [1.0, 0.0]]) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_deaths_and_returns_alternate(values: list[float]) -> None:
    kinds = [kind for kind, _ in units([[v] for v in values])]
    assert all(a != b for a, b in pairwise(kinds))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_a_switch_alternates_and_ignores_nan(values: list[float]) -> None:
    on, kinds = None, []
    for step, value in enumerate([v for pair in values for v in (pair, float("nan"))]):
        on, events = switch(
            on, value, low=0.05, high=0.1, step=step, where="0", kinds=("balance reached", "balance lost"), say=str
        )
        kinds += [e.kind for e in events]
    assert all(a != b for a, b in pairwise(kinds))


def test_a_message_is_one_sentence_with_numbers() -> None:
    live, _ = changed_units(0, "net.0", np.ones(20), None, TOLERANCE)
    _, (event,) = changed_units(7, "net.0", np.r_[np.zeros(9), np.ones(11)], live, TOLERANCE)
    assert event.message == "units 0, 1, 2, 3, 4, 5 and 3 more of net.0 died; 11 of 20 are alive."
    assert event.to_dict()["units"] == list(range(9))


def test_partners() -> None:
    def look(step: int, distance: list[float], before: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
        now, events = changed_partners(step, "0", np.array([1, 0, 1]), np.array(distance), before, TOLERANCE)
        return now, [f"{e.kind} {e.units}" for e in events]

    near, events = look(0, [0.5, 0.5, 0.5], None)
    assert events == []
    near, events = look(1, [0.004, 0.004, 0.5], near)
    assert events == ["mirror restored (0, 1)"]  # once for the pair
    near, events = look(2, [0.015, 0.015, 0.5], near)
    assert events == []
    near, events = look(3, [0.03, 0.03, 0.5], near)
    assert events == ["mirror broken (0, 1)"]


def test_many_pairs_at_once_are_one_event() -> None:
    n = 40
    before = np.zeros(n, dtype=bool)
    _, (event,) = changed_partners(5, "0", np.roll(np.arange(n), 1), np.full(n, 0.001), before, TOLERANCE)
    assert event.units == tuple(range(n))


def test_ranks_per_head() -> None:
    events = changed_ranks(300, "attn #2", "QK of attn", (8, 5), 8, (8, 8))
    assert [(e.kind, e.value, e.units) for e in events] == [("rank fell", 5.0, (1,))]
    assert events[0].message == "rank of QK of attn in copy 1 fell from 8 to 5 of 8."
    assert changed_ranks(0, "a", "a", (3,), 4, None) == []


class TestRuns:
    """Training does what the theory says, and the monitor tells."""

    def test_units_die_under_weight_decay(self) -> None:
        model = seeded(lambda: mlp((5, 16, 3))).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.08)
        monitor = Monitor(model, found(model, 5), every=10, level="cheap")
        rows = run(model, optimizer, monitor, list(batches(1, (96, 5))) * 400)
        died = [i for e in monitor.events if e.kind == "unit died" for i in e.units]
        assert len(died) == len(set(died)) == 16 - rows[-1]["0/live"] > 0

    def test_units_fall_onto_a_mirror_and_leave_it(self) -> None:
        """A saddle that training passes: two tanh units nobody chose become equal, stay so, and part again."""
        model = seeded(lambda: mlp((5, 6, 3), nn.Tanh)).double()
        symmetries = found(model, 5)
        (hidden,) = symmetries.units
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.06)
        monitor = Monitor(model, symmetries, every=10, dear=1)
        distances: list[float] = []

        def measure() -> None:
            """The distance of the pair to its mirror, over both signs, at the step of every new event."""
            if len(monitor.events) > len(distances):
                pair = list(monitor.events[0].units)
                both = hidden.rows({n: p.detach() for n, p in model.named_parameters()})[pair]
                gap = min((both[0] - s * both[1]).norm() for s in (1, -1))
                distances.append(float(gap / (2**0.5 * both.norm())))

        run(model, optimizer, monitor, list(batches(1, (96, 5))) * 800, after=measure)
        assert [e.kind for e in monitor.events] == ["mirror restored", "mirror broken"]
        assert monitor.events[0].units == monitor.events[1].units
        assert distances[0] < TOLERANCE
        assert distances[1] > 2 * TOLERANCE
        assert distances == pytest.approx([e.value for e in monitor.events], abs=1e-4)

    def test_weight_decay_takes_the_rank_of_a_linear_pair(self) -> None:
        """A linear network with decay keeps the directions of the target, of rank 2, and loses the other two."""
        model = seeded(lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 6, bias=False))).double()
        symmetries = found(model, 5)
        generator = torch.Generator().manual_seed(0)
        target = (torch.randn(6, 2, generator=generator) @ torch.randn(2, 5, generator=generator)).double()
        x = torch.eye(5).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2)
        monitor = Monitor(model, symmetries, optimizer=optimizer, every=20, dear=1)
        for _ in range(1200):
            optimizer.zero_grad()
            (0.5 * (model(x) - x @ target.T).square().sum()).backward()
            row = monitor.step()
            optimizer.step()
        row = row or monitor.log.rows[-1][1]  # type: ignore[assignment]
        (name,) = [k.removesuffix("/rank") for k in row if k.endswith("/rank")]
        fell = [e for e in monitor.events if e.kind == "rank fell"]
        assert row[f"{name}/rank"] == fell[-1].value == 2
        assert row[f"{name}/law_error"] < 1e-9  # the charge of GL(4), all the while
        assert fell[0].message.startswith(f"rank of {name} fell from 4 to")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_collapse_of_everything_is_told(value: float) -> None:
    """A constant network is a full collapse, not "no collapse"."""
    model = seeded(lambda: mlp((5, 8, 3))).double()
    monitor = Monitor(model, found(model, 5), every=1, dear=1)
    monitor.step()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    row = monitor.step()
    assert row["0/distinct"] == value
    assert row["0/live"] == 8 * value
    assert monitor.events[0].kind == ("mirror restored" if value else "unit died")
