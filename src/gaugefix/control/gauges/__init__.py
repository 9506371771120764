"""Choosing the representative on a symmetry orbit: balanced, noise-balanced, canonical."""

from gaugefix.control.gauges.canonical import CanonicalForm as CanonicalForm
from gaugefix.control.gauges.canonical import canonicalize as canonicalize
from gaugefix.control.gauges.declared import AttentionPair as AttentionPair
from gaugefix.control.gauges.declared import DeclaredSymmetry as DeclaredSymmetry
from gaugefix.control.gauges.declared import MatrixPair as MatrixPair
from gaugefix.control.gauges.declared import Rescaling as Rescaling
from gaugefix.control.gauges.declared import Scale as Scale
from gaugefix.control.gauges.rebalance import Rebalanced as Rebalanced
from gaugefix.control.gauges.rebalance import rebalance_ as rebalance_
