"""Folding: a collapsed model becomes a smaller one with the same function."""

from gaugefix.control.folding.budget import Silenced as Silenced
from gaugefix.control.folding.budget import silence_ as silence_
from gaugefix.control.folding.fold import fold as fold
from gaugefix.control.folding.records import FoldedClass as FoldedClass
from gaugefix.control.folding.records import FoldResult as FoldResult
from gaugefix.control.folding.records import Refit as Refit
from gaugefix.control.folding.reload import load_folded as load_folded
