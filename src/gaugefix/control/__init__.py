"""CHANGE: move along symmetries, add or remove what they leave idle, impose or remove them."""

from gaugefix.control import impose as impose
from gaugefix.control import remove as remove
from gaugefix.control.alignment import Aligned as Aligned
from gaugefix.control.alignment import Barrier as Barrier
from gaugefix.control.alignment import align as align
from gaugefix.control.alignment import barrier as barrier
from gaugefix.control.folding import FoldedClass as FoldedClass
from gaugefix.control.folding import FoldResult as FoldResult
from gaugefix.control.folding import Refit as Refit
from gaugefix.control.folding import fold as fold
from gaugefix.control.gauges import CanonicalForm as CanonicalForm
from gaugefix.control.gauges import Rebalanced as Rebalanced
from gaugefix.control.gauges import canonicalize as canonicalize
from gaugefix.control.gauges import rebalance_ as rebalance_
from gaugefix.control.reduce import reduce_model as reduce_model
from gaugefix.control.remove import SyreDecay as SyreDecay
from gaugefix.control.widen import widen as widen
