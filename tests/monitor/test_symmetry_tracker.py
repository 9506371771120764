"""Broken and restored symmetries along a run, and whether the loss falls with them."""

from __future__ import annotations

import pytest
import torch
from tests.monitor.models import mlp, seeded
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.monitor import SymmetryTracker

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


def tracked(every=1):
    model = seeded(lambda: mlp((5, 6, 3), nn.Tanh))
    return model, SymmetryTracker(model, find_symmetries(model, (X,)), every)


def unit(model, i):
    return model[0].weight[i], model[0].bias[i : i + 1], model[2].weight[:, i]


@torch.no_grad()
def copy(model, source, target, sign=1.0):
    for a, b in zip(unit(model, source), unit(model, target), strict=True):
        b.copy_(sign * a)


def test_what_happens_to_a_unit_is_an_event():
    model, tracker = tracked()
    assert tracker.step()[0].stabiliser == "1"
    copy(model, 0, 1)
    copy(model, 0, 2, sign=-1.0)  # the same unit under the sign flip of tanh
    assert tracker.step()[0].stabiliser == "S_3"
    with torch.no_grad():
        for part in unit(model, 3):
            part.zero_()
    assert tracker.step()[0].dead == 1
    with torch.no_grad():
        unit(model, 1)[0].add_(1.0)
    assert tracker.step()[0].stabiliser == "S_2"
    kinds = {(e.step, e.kind) for e in tracker.events}
    assert {(1, "mirror restored"), (2, "unit died"), (3, "mirror broken")} <= kinds


def test_drops_of_the_loss_are_matched_with_events():
    model, tracker = tracked()
    copy(model, 0, 1)
    for loss in (1.0, 1.0, 1.0, 1.0):
        tracker.step(loss)
    with torch.no_grad():
        unit(model, 1)[0].add_(1.0)
    for loss in (0.5, 0.5, 0.5, 0.1):
        tracker.step(loss)
    found = tracker.coincidence()
    assert found.drops == (4, 7)
    assert found.explained == 1
    assert (found.events, found.looks) == (1, 8)
    assert 0 < found.expected < 1


def test_it_looks_every_so_often_and_shows_the_last_look():
    _, tracker = tracked(every=3)
    assert [bool(tracker.step()) for _ in range(5)] == [True, False, False, True, False]
    assert [n for n, _ in tracker.history] == [0, 3]
    assert tracker.table().splitlines()[1].split()[:3] == ["0", "6", "0"]


def test_without_symmetries_there_is_nothing_and_no_error():
    model = nn.Linear(3, 2)
    tracker = SymmetryTracker(model, find_symmetries(model, (torch.ones(2, 3),)))
    assert tracker.step(1.0) == ()
    assert tracker.coincidence().looks == 0
    assert len(tracker.table().splitlines()) == 1
    with pytest.raises(MeasurementError, match="every must be at least 1"):
        SymmetryTracker(model, (), every=0)
