"""Runs that are compared, their results and tables, and benchmarks."""
