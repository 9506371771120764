"""One file per ecosystem; importing one imports its library: ``from gaugefix.monitor.adapters.lightning import …``."""
