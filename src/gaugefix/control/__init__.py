"""CHANGE: move along symmetries, remove what they made idle, impose or remove them."""

from gaugefix.control import impose as impose
from gaugefix.control import remove as remove
from gaugefix.control.gauges import CanonicalForm as CanonicalForm
from gaugefix.control.gauges import Rebalanced as Rebalanced
from gaugefix.control.gauges import canonicalize as canonicalize
from gaugefix.control.gauges import rebalance_ as rebalance_
from gaugefix.control.remove import SyreDecay as SyreDecay
