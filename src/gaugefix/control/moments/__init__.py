"""Moment compression: few of many interchangeable things, with weights that keep their moments."""

from gaugefix.control.moments.datasets import compress_dataset as compress_dataset
from gaugefix.control.moments.points import CompressedPoints as CompressedPoints
from gaugefix.control.moments.points import compress_points as compress_points
from gaugefix.control.moments.points import moment_error as moment_error
from gaugefix.control.moments.widths import WeightedMLP as WeightedMLP
from gaugefix.control.moments.widths import compress_width as compress_width
