"""Alignment: one network in the coordinates of another."""

from gaugefix.control.alignment.align import Aligned as Aligned
from gaugefix.control.alignment.align import align as align
from gaugefix.control.alignment.barrier import Barrier as Barrier
from gaugefix.control.alignment.barrier import barrier as barrier
