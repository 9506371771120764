"""Benchmarks: one script per group of rows, results as JSON with the environment in ``benchmarks/results/``."""
