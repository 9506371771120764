"""Conformance checks of a search for symmetries: completeness, soundness, and why something is missing."""

from gaugefix.testing.causes import Cause as Cause
from gaugefix.testing.causes import Explanation as Explanation
from gaugefix.testing.causes import explain_hidden as explain_hidden
from gaugefix.testing.completeness import Completeness as Completeness
from gaugefix.testing.completeness import check_symmetries as check_symmetries
from gaugefix.testing.completeness import completeness as completeness
from gaugefix.testing.flat import FlatDirections as FlatDirections
from gaugefix.testing.flat import flat_directions as flat_directions
