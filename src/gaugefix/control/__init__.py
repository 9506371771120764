"""CHANGE: move along symmetries, add or remove what they leave idle, impose or remove them."""

from gaugefix.control import impose as impose
from gaugefix.control import remove as remove
from gaugefix.control.alignment import Aligned as Aligned
from gaugefix.control.alignment import Barrier as Barrier
from gaugefix.control.alignment import align as align
from gaugefix.control.alignment import barrier as barrier
from gaugefix.control.compression import CompressionResult as CompressionResult
from gaugefix.control.compression import Stage as Stage
from gaugefix.control.compression import compress as compress
from gaugefix.control.folding import FoldedClass as FoldedClass
from gaugefix.control.folding import FoldResult as FoldResult
from gaugefix.control.folding import Refit as Refit
from gaugefix.control.folding import fold as fold
from gaugefix.control.folding import load_folded as load_folded
from gaugefix.control.gauges import CanonicalForm as CanonicalForm
from gaugefix.control.gauges import Rebalanced as Rebalanced
from gaugefix.control.gauges import canonicalize as canonicalize
from gaugefix.control.gauges import rebalance_ as rebalance_
from gaugefix.control.moments import CompressedPoints as CompressedPoints
from gaugefix.control.moments import WeightedMLP as WeightedMLP
from gaugefix.control.moments import compress_dataset as compress_dataset
from gaugefix.control.moments import compress_points as compress_points
from gaugefix.control.moments import compress_width as compress_width
from gaugefix.control.moments import moment_error as moment_error
from gaugefix.control.remove import SyreDecay as SyreDecay
from gaugefix.control.widen import widen as widen
