"""``python -m gaugefix``."""

from gaugefix.cli import main

main()
