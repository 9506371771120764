"""Colours of the pictures in the documentation; fonts and axes are set by ``plot_rcparams`` in conf.py."""

BLUE, RED, GREY, GREEN = "#1f4e79", "#d1495b", "#8a8f98", "#2a7f62"
