"""CHANGE: what is done to a model on purpose, with the function kept or the change stated."""

from gaugefix.control.widen import widen as widen
