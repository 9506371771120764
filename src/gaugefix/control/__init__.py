"""CHANGE: impose a constraint through a symmetry, or remove symmetries."""

from gaugefix.control import impose as impose
from gaugefix.control import remove as remove
from gaugefix.control.remove import SyreDecay as SyreDecay
