"""States of units."""

from __future__ import annotations

from gaugefix.audit import Audit
from gaugefix.report.units import unit_states


def test_the_largest_of_a_cluster_is_the_original(sample: Audit) -> None:
    data = sample.to_dict()
    states = {u.index: u for u in unit_states(data["collapse"]["units"][0], data["forecast"]["classes"][0])}
    assert [i for i, u in states.items() if u.state == "copy"] == [2, 4, 5]
    assert states[4].text.endswith("copy of unit 0")
    assert states[3].state == states[9].state == "dead"
    assert states[15].state == "fading"
    assert states[0].state == states[1].state == "alive"


def test_a_forecast_outside_its_range_marks_nothing_as_fading(sample: Audit) -> None:
    data = sample.to_dict()
    forecast = {**data["forecast"]["classes"][0], "valid": False}
    assert "fading" not in {u.state for u in unit_states(data["collapse"]["units"][0], forecast)}
    assert "fading" not in {u.state for u in unit_states(data["collapse"]["units"][0], None)}
