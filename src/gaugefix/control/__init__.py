"""CHANGE: impose a constraint through a symmetry, or remove symmetries."""

from gaugefix.control import impose as impose
