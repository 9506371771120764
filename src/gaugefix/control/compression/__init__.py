"""Compression of a model: impose, train, cut, fold, refit."""

from gaugefix.control.compression.compress import compress as compress
from gaugefix.control.compression.records import CompressionResult as CompressionResult
from gaugefix.control.compression.records import Stage as Stage
